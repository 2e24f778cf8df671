#include "schedules/attention_cuda.h"

namespace posattn::schedules {

using namespace Halide;

namespace {

constexpr int kWarp = 32;

}  // namespace

AttentionTiles attention_tiles_cuda(int head_dim, int bytes) {
  // Shared memory stays below the 99 KB that a block of threads may have on the smallest cards.
  const int rows = head_dim <= 128 ? 32 : bytes < 4 ? 16 : 8;
  return {head_dim, rows, rows, head_dim <= 64 ? 64 : 32, 8, 0, 0};
}

void schedule_attention_cuda(AttentionFuncs &f, const AttentionTiles &tiles) {
  const auto &[x, lane, tile, row, block, split, row_block, head, batch, d] = f.vars;
  const int D = tiles.head_dim, key_tiles = tiles.key_block / kWarp, query_block = tiles.query_block;
  const int warps = query_block / tiles.rows;
  Var ob("ob"), oi("oi"), dx("dx"), dv("dv"), warp("warp"), ri("ri"), ro("ro");
  Var lane_in("lane_in"), lane_out("lane_out");

  // A block of threads has one block of rows of one head. (Fused loops would lose their inner variable where
  // two outputs are computed together.)
  const auto into_blocks = [&, &row = row, &head = head, &batch = batch](Func g) {
    g.split(row, ob, oi, query_block, TailStrategy::GuardWithIf).gpu_blocks(ob, head, batch);
  };
  // Rows in a block of threads: a warp has the same ones throughout.
  const auto rows_to_warps = [&, &row = row](Stage stage) { stage.split(row, warp, ri, tiles.rows); };

  into_blocks(f.out);
  f.out.split(d, dv, dx, kWarp, TailStrategy::GuardWithIf).split(oi, warp, ri, tiles.rows);
  f.out.gpu_threads(dx, warp);
  into_blocks(f.lse);
  f.lse.split(oi, ro, ri, kWarp, TailStrategy::GuardWithIf).gpu_threads(ri);
  // There is one split: a loop around the launch.
  f.out.reorder(dv, ri, dx, warp, ob, head, batch, split);
  f.lse.reorder(ro, ri, ob, head, batch, split);
  f.lse.compute_with(f.out, ob);

  const auto bounded_to_one = [&](Func g) { bound_to_task(f, g); };
  const auto bounded = [&, row = row](Func g) {
    bounded_to_one(g);
    for (const Var &v : g.args()) {
      if (v.same_as(row)) g.bound_storage(row, query_block).bound_extent(row, query_block);
    }
  };

  const LoopLevel per_task(f.out, ob);

  // Stored, or Halide would not see that they bound the loop over blocks of keys.
  f.range.compute_at(per_task).bound_extent(row_block, 1).bound_extent(batch, 1);

  f.query.compute_at(per_task).bound_extent(d, D).split(d, dv, dx, kWarp);
  bounded(f.query);
  rows_to_warps(f.query);
  f.query.reorder(dv, ri, dx, warp).gpu_threads(dx, warp);

  f.state.compute_at(per_task).bound_extent(x, kWarp);
  bounded(f.state);
  rows_to_warps(f.state);
  f.state.reorder(ri, x, warp).gpu_threads(x, warp);
  rows_to_warps(f.state.update());
  f.state.update().reorder(ri, x, warp, f.rb.x).gpu_threads(x, warp);
  const LoopLevel per_block(f.state, f.rb.x);

  // Keys and values in shared memory.
  const auto stage = [&, &d = d, &lane = lane, &tile = tile](Func g, int padding) {
    g.compute_at(per_block).bound_extent(d, D).bound_extent(lane, kWarp).bound_extent(tile, key_tiles);
    g.bound_storage(d, D + padding);
    bounded(g);
    g.split(lane, lane_out, lane_in, kWarp / warps)
        .split(d, dv, dx, kWarp)
        .reorder(dv, lane_in, tile, dx, lane_out)
        .unroll(dv)
        .unroll(lane_in)
        .gpu_threads(dx, lane_out);
  };
  stage(f.key, 4);

  f.score.compute_at(per_block).bound_extent(lane, kWarp).bound_extent(tile, key_tiles);
  bounded(f.score);
  Stage scores = f.score.update(0);
  f.product.compute_at(f.score, lane).bound_extent(tile, key_tiles);
  rows_to_warps(scores);
  scores.reorder(f.tiles, ri, lane, warp).unroll(f.tiles).unroll(ri).gpu_threads(lane, warp);
  f.product.bound_extent(row, tiles.rows).unroll(tile).unroll(row);
  RVar d_out("d_out"), d_in("d_in");
  f.product.update()
      .split(f.rd.x, d_out, d_in, 4)
      .reorder(tile, row, d_in, d_out)
      .unroll(tile)
      .unroll(row)
      .unroll(d_in);
  // Loads of 16 bytes; rows of keys are padded by as much, so that those of neighbouring lanes never collide.
  Func key_registers = f.key.in(f.product), query_registers = f.query.in(f.product);
  key_registers.compute_at(f.product, d_out).vectorize(d, 4).unroll(tile);
  query_registers.compute_at(f.product, d_out).vectorize(d, 4).unroll(d).unroll(row);
  for (const Func &g : {f.product, key_registers, query_registers}) bounded_to_one(g);
  for (size_t i = 0; i < f.passes.size(); i++) {
    Stage pass = f.score.update(int(i) + 1);
    rows_to_warps(pass);
    pass.reorder(f.passes[i], ri, lane, warp).gpu_threads(lane, warp);
  }

  // Each lane's maximum, then one thread a row.
  Func by_lane = f.maximum_tree[0], lanes_shared = by_lane.in(f.maximum_tree[1]);
  lanes_shared.compute_at(per_block).bound_extent(x, kWarp).bound_storage(x, kWarp + 1);
  bounded(lanes_shared);
  rows_to_warps(lanes_shared);
  lanes_shared.reorder(ri, x, warp).gpu_threads(x, warp);
  by_lane.compute_at(lanes_shared, ri);
  bounded_to_one(by_lane);
  by_lane.update().unroll(f.rk.y);

  f.maximum.compute_at(per_block);
  bounded(f.maximum);
  f.maximum.split(row, ro, ri, kWarp, TailStrategy::GuardWithIf).reorder(ro, ri).gpu_threads(ri);
  int width = kWarp;
  for (Func g : f.maximum_tree) {
    if (width < kWarp) g.compute_at(f.maximum, ro).bound_extent(x, width).unroll(x);
    bounded_to_one(g);
    width /= 2;
  }

  f.weight.compute_at(per_block).bound_extent(lane, kWarp).bound_extent(tile, key_tiles);
  bounded(f.weight);
  Stage weights = f.weight.update();
  rows_to_warps(weights);
  weights.reorder(f.tiles, ri, lane, warp).gpu_threads(lane, warp);

  stage(f.value, 0);

  f.sum.compute_at(f.state, ri);
  bounded_to_one(f.sum);
  f.sum.update().unroll(f.rs.y);

  // Of the weighted values a lane has neighbouring channels, and loads weights four at a time.
  const int channels = D / kWarp;
  f.block_output.compute_at(per_block).bound_extent(d, D);
  bounded(f.block_output);
  f.block_output.split(d, dx, dv, channels)
      .split(row, warp, row, tiles.rows)
      .split(row, ro, ri, tiles.rows)
      .reorder(dv, ri, ro, dx, warp)
      .unroll(dv)
      .unroll(ri)
      .gpu_threads(dx, warp);
  f.weighted.compute_at(f.block_output, ro)
      .bound_extent(row, tiles.rows)
      .bound_extent(d, channels)
      .unroll(d)
      .unroll(row);
  RVar k_out("k_out"), k_in("k_in");
  f.weighted.update()
      .split(f.rv.x, k_out, k_in, 4)
      .unroll(d)
      .unroll(row)
      .unroll(k_in)
      .reorder(d, row, k_in, k_out, f.rv.y);
  Func weight_registers = f.weight.in(f.weighted);
  weight_registers.compute_at(f.weighted, k_out)
      .bound_extent(lane, 4)
      .bound_extent(tile, 1)
      .vectorize(lane, 4)
      .unroll(row);
  bounded_to_one(f.weighted), bounded_to_one(weight_registers);

  Func total_shared = f.total.in({f.inverse, f.row_lse});
  for (Func g : {total_shared, f.inverse, f.row_lse}) {
    g.compute_at(per_task);
    bounded(g);
    g.split(row, ro, ri, kWarp, TailStrategy::GuardWithIf).reorder(ro, ri).gpu_threads(ri);
  }
  f.total.compute_at(total_shared, ro);
  bounded_to_one(f.total);
}

}  // namespace posattn::schedules
