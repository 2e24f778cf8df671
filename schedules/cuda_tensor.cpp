#include "schedules/cuda_tensor.h"

namespace posattn::schedules {

using namespace Halide;

TensorTiles tensor_tiles(bool hopper, int head_dim, TensorScores scores) {
  const bool plain = scores == TensorScores::plain;
  // With every term compiled in, registers for any of them are worth more than large blocks.
  if (scores == TensorScores::full || scores == TensorScores::branches) {
    const bool is_small = hopper && scores == TensorScores::full && head_dim <= 64;
    const int keys = is_small ? 64 : scores == TensorScores::branches && head_dim > 128 ? 16 : 32;
    return {head_dim, keys, 2, 1, 2, false, false, false, false, 1};
  }
  // keys, warpgroups, row_tiles, stages, copy_warpgroup, overlap, early_value_wait, shared_queries,
  // blocks_per_sm
  if (!hopper) {
    if (head_dim <= 64) return {head_dim, 64, 1, 2, 2, false, false, false, false, 2};
    if (head_dim <= 128) return {head_dim, 64, 1, 2, 2, false, false, false, true, 1};
    return {head_dim, 32, 2, 1, 2, false, false, false, false, 1};
  }
  // Addresses of a dense bias take too many registers for two blocks.
  if (head_dim <= 64)
    return {head_dim, 128, 2, 1, 2, false, false, false, false, scores == TensorScores::dense ? 1 : 2};
  if (head_dim <= 128) return {head_dim, 128, 2, 1, 2, true, true, !plain, false, 1};
  return {head_dim, scores == TensorScores::dense ? 32 : 64, 2, 1, 2, true, true, !plain, false, 1};
}

void schedule_tensor(TensorFuncs &f, const TensorTiles &tiles) {
  const auto &[i, thread, group, block, block_y, block_z] = f.vars;
  const auto in_registers = [](Func g, const LoopLevel &level) {
    return g.compute_at(level).store_in(MemoryType::Register);
  };
  f.done.bound(thread, 0, 128)
      .bound(group, 0, tiles.groups())
      .gpu_threads(thread, group)
      .gpu_blocks(block, block_y, block_z);
  const LoopLevel in_thread(f.done, thread), in_round(f.rounds, f.round.x);
  in_registers(f.rounds, in_thread);
  for (const Func &g : f.of_thread) in_registers(g, in_thread);
  in_registers(f.loop, in_round);
  for (const Func &g : f.of_round) in_registers(g, in_round);
  const auto place = [&, &i = i](TensorBlockFuncs &funcs, const LoopLevel &level) {
    for (const Func &g : funcs.of_thread) in_registers(g, level);
    for (const Func &g : funcs.of_fragment) in_registers(g, level).unroll(i);
  };
  f.rounds.update(0).partition(f.round.x, Partition::Never);
  place(f.first, in_round);
  place(f.masked, LoopLevel(f.loop, f.masked_steps.x));
  f.loop.update(0).partition(f.masked_steps.x, Partition::Never);
  if (f.inner_steps.defined()) {
    place(f.inner, LoopLevel(f.loop, f.inner_steps.x));
    f.loop.update(1).partition(f.inner_steps.x, Partition::Never);
  }
}

}  // namespace posattn::schedules
