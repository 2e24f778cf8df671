#include "schedules/attention_amx.h"

#include "lowering/tile_matmul.h"

namespace posattn::schedules {

using namespace Halide;

namespace {

constexpr int kLanes = 16;     // floats in a vector
constexpr int kKeyLanes = 32;  // keys of a score tile: two AMX tiles wide

}  // namespace

AttentionTiles attention_tiles_amx(int head_dim) {
  // 32 rows are two tiles. With blocks of 256 keys kernels were 8 % faster than with 128 and 20 % faster than
  // with 64, though their scores leave the first-level cache: blocks merge less often.
  return {head_dim, 32, 32, 256, 32, head_dim, 0};
}

TuningSpace attention_tuning_space_amx(int head_dim) {
  const AttentionTiles hand = attention_tiles_amx(head_dim);
  TuningSpace space;
  space.parameters = {{"key_block", hand.key_block, 2 * kKeyLanes, 1024, kKeyLanes},
                      {"query_block", hand.query_block, 32, 128, 32}};
  space.shapes = prefill_shapes();
  space.infeasible = [=](const TuningPoint &point) -> std::string {
    const int rows = point.at("query_block"), keys = point.at("key_block");
    if (keys % kKeyLanes != 0) return "key_block is no multiple of " + std::to_string(kKeyLanes);
    // Scores, weights in 16 bits, weighted values and the state, on a thread's stack.
    const int bytes = rows * (6 * keys + 8 * head_dim);
    constexpr int kMostBytes = 1 << 19;
    if (bytes > kMostBytes)
      return "a task needs " + std::to_string(bytes >> 10) + " of " + std::to_string(kMostBytes >> 10) +
             " KiB";
    return "";
  };
  return space;
}

void schedule_attention_amx(AttentionFuncs &f, const AttentionTiles &tiles, Pipeline pipeline) {
  const auto &[x, lane, tile, row, block, split, row_block, head, batch, d] = f.vars;
  const int D = tiles.head_dim, rows = tiles.query_block, key_tiles = tiles.key_block / kKeyLanes;
  const auto &[per_task, per_row] = schedule_tasks(f, rows, kLanes);
  const LoopLevel per_block(f.state, f.rb.x);

  // On the stack, of a size that is known now: with tiles in use, every call costs their configuration.
  const auto local = [&](Func g, const LoopLevel &level) {
    g.compute_at(level).store_in(MemoryType::Stack);
    bound_to_task(f, g);
  };
  local(f.range, per_task);
  f.range.update().unroll(f.block_rows.x, 4);

  // Always whole blocks of rows: beyond the last one they repeat it.
  local(f.query, per_task);
  f.query.bound_extent(row, rows).bound_extent(d, D).vectorize(d, 2 * kLanes);
  f.query.specialize(f.full_head_dim);

  local(f.state, per_task);
  f.state.bound_extent(row, rows).bound_extent(x, kLanes).vectorize(x);
  f.state.update().reorder(x, row, f.rb.x).vectorize(x).never_partition(f.rb.x);

  local(f.edge_tiles, per_block);
  local(f.score, per_block);
  f.score.bound_extent(row, rows).bound_extent(lane, kKeyLanes).bound_extent(tile, key_tiles);
  f.score.update(0).reorder(f.rd.x, lane, row, f.rd.y);
  // Each tile's rows side by side: 16 rows of a tile that lie 1 KB apart take 1.4 times as long to store.
  std::vector<Var> order = f.score.args();
  std::swap(order[1], order[2]);
  f.score.reorder_storage(order);
  f.score.update(1).reorder(lane, f.unscaled_tiles, row).vectorize(lane, kLanes).unroll(lane);
  f.score.update(1).specialize(f.has_offsets);
  for (size_t i = 0; i < f.passes.size(); i++) {
    f.score.update(int(i) + 2).reorder(lane, row, f.passes[i]).vectorize(lane, kLanes).unroll(lane);
  }

  local(f.maximum, per_block);
  f.maximum.bound_extent(row, rows).vectorize(row, kLanes);
  local(f.ordered, per_block);
  f.ordered.bound_extent(row, rows).vectorize(row, kLanes);
  f.ordered.update().atomic().vectorize(f.ry.x);
  Func by_lane = f.maximum_tree[0];
  local(by_lane, LoopLevel(f.ordered, row));
  by_lane.bound_extent(x, kLanes).vectorize(x);
  by_lane.update().reorder(x, f.rk.x, f.rk.y).vectorize(x).unroll(f.rk.x);

  local(f.weight, per_block);
  f.weight.bound_extent(row, rows).bound_extent(lane, kKeyLanes / 2).bound_extent(tile, key_tiles);
  f.weight.reorder_storage(order);
  f.weight.update().reorder(lane, f.tiles, row).vectorize(lane, kLanes).unroll(lane);
  if (f.products.defined())
    f.weight.update(1).reorder(lane, f.products, row).vectorize(lane, kLanes).unroll(lane);
  local(f.sum, LoopLevel(f.state, row));
  f.sum.bound_extent(x, kLanes).vectorize(x);
  f.sum.update().reorder(x, f.rs.x, f.rs.y).vectorize(x).unroll(f.rs.x);

  local(f.weighted, per_block);
  f.weighted.bound_extent(row, rows).bound_extent(d, D);
  f.weighted.update().reorder(f.rv.x, d, row, f.rv.y);

  for (Func g : {f.total, f.inverse, f.row_lse}) {
    local(g, per_task);
    g.bound_extent(row, rows);
  }
  f.total.update().atomic().vectorize(f.rx.x);
  local(f.result, per_row);
  f.result.bound_extent(d, D).vectorize(d, kLanes).unroll(d);

  pipeline.add_custom_lowering_pass(new lowering::LowerTileMatmuls(
      {{f.score.name(), "lane", "row", f.rd.x.name(), "", 1},
       {f.weighted.name(), "d", "row", f.rv.x.name(), f.rv.y.name(), key_tiles}}));
}

}  // namespace posattn::schedules
