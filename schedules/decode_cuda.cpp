#include "schedules/decode_cuda.h"

#include <algorithm>

namespace posattn::schedules {

using namespace Halide;

namespace {

constexpr int kWarp = 32;
constexpr int kWords = 4;      // that a thread loads at a time: 16 bytes
constexpr int kInFlight = 16;  // such loads of a thread; more would take registers from other warps

}  // namespace

AttentionTiles decode_tiles_cuda(int head_dim) { return {head_dim, 8, 8, kWarp, 4, 0, 0}; }

// A block of threads is one warp, so that its barriers cost next to nothing and no warp waits for another: it
// goes over one split of the keys, 32 at a time. For scores a lane has a key, which comes through shared
// memory; for weighted values it has some channels, which come from memory directly. Some ten such warps on
// every multiprocessor have enough loads in flight together.
void schedule_decode_cuda(AttentionFuncs &f, const AttentionTiles &tiles, int per_word) {
  const auto &[x, lane, tile, row, block, split, row_block, head, batch, d] = f.vars;
  const int D = tiles.head_dim, rows = tiles.query_block, key_tiles = tiles.key_block / kWarp;
  Var dx("dx"), dv("dv"), ri("ri"), ro("ro"), lane_in("lane_in"), lane_out("lane_out"), t("t");

  // Not by all threads where a split has fewer rows than the kernel.
  const auto by_rows = [&, &row = row](Stage stage) {
    stage.split(row, ro, ri, kWarp, TailStrategy::GuardWithIf).reorder(ro, ri).gpu_threads(ri);
  };
  f.out.split(d, dv, dx, kWarp, TailStrategy::GuardWithIf)
      .reorder(dv, row, dx, split, head, batch)
      .gpu_threads(dx)
      .gpu_blocks(split, head, batch);
  f.lse.split(row, ro, ri, kWarp, TailStrategy::GuardWithIf)
      .reorder(ro, ri, split, head, batch)
      .gpu_threads(ri)
      .gpu_blocks(split, head, batch)
      .compute_with(f.out, split);

  const auto bounded_to_one = [&](Func g) { bound_to_task(f, g); };
  const auto bounded = [&, row = row](Func g) {
    bounded_to_one(g);
    for (const Var &v : g.args()) {
      if (!v.same_as(row)) continue;
      // Whole loads, so that what lies behind it in shared memory is aligned to them.
      g.bound_storage(row, g.args()[0].same_as(row) ? std::max(rows, 4) : rows);
      if (rows == 1) g.bound_extent(row, 1);
    }
  };
  const LoopLevel per_task(f.out, split);

  // Stored, or Halide would not see that they bound the loop over blocks of keys.
  f.range.compute_at(per_task).bound_extent(row_block, 1).bound_extent(batch, 1).bound_storage(row_block, 4);

  f.query.compute_at(per_task).bound(d, 0, D).split(d, dv, dx, kWarp);
  bounded(f.query);
  f.query.reorder(dv, row, dx).gpu_threads(dx);

  f.state.compute_at(per_task).bound_extent(x, kWarp);
  bounded(f.state);
  f.state.reorder(row, x).gpu_threads(x);
  f.state.update().reorder(row, x, f.rb.x).gpu_threads(x);
  const LoopLevel per_block(f.state, f.rb.x);

  // Keys in shared memory; a thread has the same piece of neighbouring ones.
  const int places = D / per_word, pieces = places / kWords;
  f.key.compute_at(per_block).bound(d, 0, places).bound_extent(lane, kWarp).bound_extent(tile, key_tiles);
  // Padded by a load, so that those of neighbouring lanes never collide.
  f.key.bound_storage(d, places + kWords);
  bounded(f.key);
  if (kWarp % pieces == 0 || pieces % kWarp == 0) {
    const int across = std::min(pieces, kWarp), neighbours = std::min(across, kInFlight);
    Var piece("piece"), word("word"), piece_out("piece_out"), group("group");
    f.key.split(d, piece, word, kWords)
        .vectorize(word)
        .split(piece, piece_out, piece, across)
        .split(lane, group, lane_in, across)
        .fuse(piece, group, t)
        .split(lane_in, lane_out, lane_in, neighbours)
        .reorder(word, lane_in, lane_out, piece_out, tile, t)
        .unroll(lane_in)
        .gpu_threads(t);
    f.loaded_key.compute_at(f.key, lane_out).vectorize(d, kWords).unroll(d).unroll(lane);
    bounded_to_one(f.loaded_key);
  } else {
    Var wi("wi"), wo("wo"), key("key"), ki("ki"), word("word");
    f.key.split(d, wo, wi, kWords)
        .vectorize(wi)
        .fuse(lane, tile, key)
        .fuse(wo, key, word)
        .split(word, ki, t, kWarp)
        .reorder(wi, ki, t)
        .unroll(ki)
        .gpu_threads(t);
  }

  f.score.compute_at(per_block).bound_extent(lane, kWarp).bound_extent(tile, key_tiles);
  bounded(f.score);
  f.score.update(0)
      .split(row, ro, ri, tiles.rows, TailStrategy::RoundUp)
      .reorder(ri, ro, f.tiles, lane)
      .unroll(ri)
      .gpu_threads(lane);
  f.product.compute_at(f.score, ro).bound_extent(tile, 1).bound_extent(row, tiles.rows).unroll(row);
  RVar d_out("d_out"), d_in("d_in");
  f.product.update()
      .split(f.rd.x, d_out, d_in, kWords * per_word)
      .reorder(tile, row, d_in, d_out)
      .unroll(row)
      .unroll(d_in);
  Func key_registers = f.key.in(f.product), query_registers = f.query.in(f.product);
  key_registers.compute_at(f.product, d_out).vectorize(d, kWords);
  query_registers.compute_at(f.product, d_out).vectorize(d, 4).unroll(d).unroll(row);
  for (const Func &g : {f.product, key_registers, query_registers}) bounded_to_one(g);
  for (size_t i = 0; i < f.passes.size(); i++) {
    f.score.update(int(i) + 1).reorder(row, f.passes[i], lane).gpu_threads(lane);
  }

  // Each lane's maximum, then one thread a row.
  Func by_lane = f.maximum_tree[0], lanes_shared = by_lane.in(f.maximum_tree[1]);
  lanes_shared.compute_at(per_block).bound_extent(x, kWarp).bound_storage(x, kWarp + 4);
  bounded(lanes_shared);
  lanes_shared.reorder(row, x).gpu_threads(x);
  by_lane.compute_at(lanes_shared, row);
  bounded_to_one(by_lane);
  by_lane.update().unroll(f.rk.y);
  f.maximum.compute_at(per_block);
  bounded(f.maximum);
  by_rows(f.maximum);
  int width = kWarp;
  for (Func g : f.maximum_tree) {
    if (width < kWarp) g.compute_at(f.maximum, ro).bound_extent(x, width).unroll(x);
    bounded_to_one(g);
    width /= 2;
  }

  f.weight.compute_at(per_block).bound_extent(lane, kWarp).bound_extent(tile, key_tiles);
  bounded(f.weight);
  f.weight.update().reorder(row, f.tiles, lane).gpu_threads(lane);

  f.sum.compute_at(f.state, row);
  bounded_to_one(f.sum);
  f.sum.update().unroll(f.rs.y);

  // Of the weighted values a lane has neighbouring channels, in whole loads if it can, and then only every so
  // many keys: groups of lanes have the others, and are added up.
  const bool in_loads = D % (kWords * per_word) == 0 && (kWarp % pieces == 0 || pieces % kWarp == 0);
  const int channels = in_loads ? std::max(D / kWarp, kWords * per_word) : D / kWarp;
  const int groups = kWarp * channels / D;
  // Fewer loads in flight where there are sums of many rows.
  const int together = std::min(kWarp / groups, rows == 1 ? kInFlight : kInFlight / 2);
  RVar group("group"), key("key"), k_out("k_out"), k_in("k_in");
  Var u("u");
  Func sums = f.weighted.update().split(f.rv.x, group, key, kWarp / groups).rfactor(group, u);
  Func shared = sums.in(f.weighted);
  shared.compute_at(per_block).bound_extent(d, D).bound_extent(u, groups);
  bounded(shared);
  shared.split(d, dx, dv, channels)
      .split(row, ro, ri, rows, TailStrategy::RoundUp)
      .fuse(dx, u, t)
      .reorder(dv, ri, ro, t)
      .unroll(dv)
      .unroll(ri)
      .gpu_threads(t);
  sums.compute_at(shared, ro).bound_extent(row, rows).bound_extent(d, channels).unroll(d).unroll(row);
  sums.update()
      .split(key, k_out, k_in, together)
      .reorder(d, row, k_in, k_out, f.rv.y)
      .unroll(d)
      .unroll(row)
      .unroll(k_in);
  Func weight_registers = f.weight.in(sums);
  weight_registers.compute_at(sums, k_out).bound_extent(lane, together).bound_extent(tile, 1);
  weight_registers.vectorize(lane, 4).unroll(lane).unroll(row);
  bounded_to_one(sums), bounded_to_one(weight_registers);
  if (in_loads) {
    Func value_registers = f.value.in(sums);
    for (Func g : {f.loaded_value, value_registers}) {
      g.compute_at(sums, k_out)
          .bound_extent(d, channels / per_word)
          .bound_extent(lane, together)
          .bound_extent(tile, 1)
          .vectorize(d, kWords)
          .unroll(d)
          .unroll(lane);
      bounded_to_one(g);
    }
    value_registers.specialize(!f.has_visible);
  }
  f.block_output.compute_at(per_block).bound_extent(d, D);
  bounded(f.block_output);
  f.block_output.split(d, dv, dx, kWarp).reorder(row, dv, dx).unroll(dv).gpu_threads(dx);
  f.weighted.compute_at(f.block_output, row);
  f.weighted.update().unroll(group);
  bounded_to_one(f.weighted);

  Func total_shared = f.total.in({f.inverse, f.row_lse});
  for (Func g : {total_shared, f.inverse, f.row_lse}) {
    g.compute_at(per_task);
    bounded(g);
    by_rows(g);
  }
  f.total.compute_at(total_shared, ro);
  bounded_to_one(f.total);
}

}  // namespace posattn::schedules
