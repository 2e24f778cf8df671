#include "schedules/cuda_tensor.h"

#include <algorithm>

namespace posattn::schedules {

using namespace Halide;

TensorTiles tensor_tiles(bool hopper, int head_dim, TensorScores scores) {
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
    if (head_dim <= 128) return {head_dim, 48, 1, 2, 2, false, false, false, true, 1};
    return {head_dim, 32, 2, 1, 2, false, false, false, false, 1};
  }
  // Addresses of a dense bias take too many registers for two blocks.
  if (head_dim <= 64 && scores != TensorScores::dense_tiles)
    return {head_dim, 128, 2, 1, 2, false, false, false, false, scores == TensorScores::dense ? 1 : 2};
  const bool reads_bias = scores == TensorScores::table || scores == TensorScores::dense;
  const int keys = head_dim <= 128 ? 128 : scores == TensorScores::dense ? 32 : 64;
  TensorTiles tiles{head_dim, keys, 2, 1, 2, true, true, reads_bias, false, 1};
  // Before, D 128 and S 512 ran at 0.90 of cuDNN's speed on an H100, and since then at 1.09.
  tiles.ahead = tiles.in_turns = head_dim <= 128 && scores != TensorScores::dense;
  tiles.bias_places = scores == TensorScores::dense_tiles ? 1 : 0;
  return tiles;
}

TensorTiles tensor_float_tiles(bool hopper, int head_dim, TensorScores scores) {
  if (hopper) {
    // Of small heads two blocks of threads fit, one of which multiplies while the other one computes weights
    // (D 64, S 512: 74 against 66 TFLOP/s on an H100); of others one with all of the shared memory.
    const bool is_small = head_dim <= 64;
    // What would spill registers with 64 keys.
    const bool has_few = scores == TensorScores::dense || (scores == TensorScores::table && head_dim < 128);
    const int keys = has_few && !is_small ? 32 : 64;
    return {head_dim, keys, is_small ? 1 : 2, 1, 1, false, false, false, true, is_small ? 2 : 1};
  }
  // Splitting an operand takes as long as multiplying it by 16 rows, so small heads have 32 rows a warp; of
  // larger ones, three blocks of threads are worth more (D 128, S 1024, causal: 40 against 34 TFLOP/s on an
  // H100). Shared memory stays below the 99 KB of the smallest cards.
  const int blocks = scores == TensorScores::dense ? 2 : 3;
  if (head_dim <= 64) return {head_dim, 32, 1, 2, 2, false, false, false, true, blocks};
  if (head_dim <= 128) return {head_dim, 16, 1, 1, 2, false, false, false, true, blocks};
  TensorTiles tiles{head_dim, 16, 1, 1, 2, false, false, false, true, 1};
  tiles.group_warps = 2;
  return tiles;
}

TensorTiles tensor_decode_tiles(int head_dim, int bytes) {
  // One warp, with 32 KB of keys and values (16 keys of the largest heads take more): its sixth part of a
  // multiprocessor's shared memory is on its way at any time, and products take a small part of that. Blocks
  // of 32 keys at most, as a short call has no more than one or two a warp.
  const int row = (head_dim * bytes + 127) / 128 * 128;
  const int keys = std::clamp(8192 / row / 16 * 16, 16, 32), stages = keys * row < 8192 ? 4 : 2;
  TensorTiles tiles{head_dim, keys, 1, 1, stages, false, false, false, true, bytes == 2 ? 6 : 1};
  tiles.group_warps = 1, tiles.streams = true;
  return tiles;
}

namespace {

// Why a point cannot be built, would not run, or would spill registers; empty: it may be.
std::string infeasible_tiles(bool hopper, const TensorTiles &t) {
  const auto is_power_of_two = [](int n) { return (n & (n - 1)) == 0; };
  if (!is_power_of_two(t.stages)) return "stages is no power of two";
  constexpr int kMostRows = 256;  // of a copied box, and of the padding of a table of offsets
  if (t.rows() > kMostRows) return "more than " + std::to_string(kMostRows) + " rows";
  if (t.overlap && t.stages < 2) return "overlap needs two stages";
  if (t.early_value_wait && !t.overlap) return "early_value_wait is about overlap";
  if (t.ahead && !(t.copy_warpgroup && t.overlap)) return "ahead needs a copy warpgroup and overlap";
  if (t.in_turns && t.warpgroups < 2) return "one warpgroup has nobody to take turns with";
  if (t.bias_places > 0 && !t.copy_warpgroup) return "a copy warpgroup fetches the bias";
  if (t.bias_places > 0 && t.keys % 64 != 0) return "a bias comes in chunks of 64 keys";
  if (t.copy_warpgroup && t.stages > 2) return "a copy warpgroup posts tasks for two stages at most";
  if (t.copy_warpgroup && t.blocks_per_sm > 1) return "a copy warpgroup takes all of the registers";

  constexpr int kRegisters = 65536, kMostOfThread = 255, kOthers = 24;
  const int shared_registers = kRegisters / (128 * t.groups() * t.blocks_per_sm);
  const int of_copy = t.warpgroups > 3   ? 112
                      : t.warpgroups > 2 ? 160
                                         : 240;  // see RegisterShares in lowering/hopper.cpp
  const int budget = t.copy_warpgroup ? of_copy : std::min(shared_registers, kMostOfThread);
  const int queries = !hopper && !t.shared_queries ? t.row_tiles * t.head_dim / 4 : 0;
  const int weights = t.overlap ? t.scores() / 2 : 0;
  const int biases_kept = t.bias_places > 0 ? t.scores() / 2 : 0;
  const int needed = t.scores() + t.outputs() + queries + weights + biases_kept + kOthers;
  if (needed > budget)
    return "a thread needs " + std::to_string(needed) + " of " + std::to_string(budget) + " registers";

  // Tiles are rows of chunks of 64 channels; of mma.sync's queries only those that stay.
  constexpr int kSharedBytes = 227 << 10, kBarriers = 1 << 10;
  const int chunks = (t.head_dim + 63) / 64, blocks = 2 * t.stages * t.keys;
  const int queries_kept = t.rows() * (t.ahead ? 2 : 1);
  const int rows = hopper || t.shared_queries ? blocks + queries_kept : std::max(blocks, t.rows());
  const int biases = t.bias_places * t.rows() * t.keys * 2;
  const int bytes = chunks * 128 * rows + biases + kBarriers;
  if (bytes * t.blocks_per_sm > kSharedBytes)
    return std::to_string((bytes * t.blocks_per_sm) >> 10) + " of 227 KiB of shared memory";
  return "";
}

}  // namespace

TuningSpace tensor_tuning_space(bool hopper, int head_dim, TensorScores scores) {
  const TensorTiles hand = tensor_tiles(hopper, head_dim, scores);
  TuningSpace space;
  space.parameters = {{"key_block", hand.keys, 16, 256, 16},
                      {"warpgroups", hand.warpgroups, 1, 3},
                      {"stages", hand.stages, 1, 4},
                      {"blocks_per_sm", hand.blocks_per_sm, 1, 3}};
  if (hopper) {
    space.parameters.push_back({"copy_warpgroup", hand.copy_warpgroup, 0, 1});
    space.parameters.push_back({"overlap", hand.overlap, 0, 1});
    space.parameters.push_back({"early_value_wait", hand.early_value_wait, 0, 1});
    space.parameters.push_back({"ahead", hand.ahead, 0, 1});
    space.parameters.push_back({"in_turns", hand.in_turns, 0, 1});
    if (hand.bias_places > 0) space.parameters.push_back({"bias_places", hand.bias_places, 1, 2});
  } else {
    space.parameters.push_back({"row_tiles", hand.row_tiles, 1, 2});
    space.parameters.push_back({"shared_queries", hand.shared_queries, 0, 1});
  }
  // As many rows in all, whatever their length; and batches of sequences that are shorter than a tile.
  space.shapes = {{"tiny", 64, 64, {{{"batch", 512}, {"heads", 6}, {"queries", 15}}}},
                  {"short",
                   1024,
                   1024,
                   {{{"batch", 16}, {"heads", 16}, {"queries", 512}},
                    {{"batch", 16}, {"heads", 16}, {"queries", 512}, {"causal", 1}}}},
                  {"long",
                   0,
                   0,
                   {{{"heads", 16}, {"queries", 4096}}, {{"heads", 16}, {"queries", 4096}, {"causal", 1}}}}};
  space.infeasible = [=](const TuningPoint &point) {
    TensorTiles tiles = hand;
    tiles.keys = point.at("key_block"), tiles.warpgroups = point.at("warpgroups");
    tiles.stages = point.at("stages"), tiles.blocks_per_sm = point.at("blocks_per_sm");
    if (hopper) {
      tiles.copy_warpgroup = point.at("copy_warpgroup"), tiles.overlap = point.at("overlap");
      tiles.early_value_wait = point.at("early_value_wait"), tiles.ahead = point.at("ahead");
      tiles.in_turns = point.at("in_turns");
      if (hand.bias_places > 0) tiles.bias_places = point.at("bias_places");
    } else {
      tiles.row_tiles = point.at("row_tiles"), tiles.shared_queries = point.at("shared_queries");
    }
    return infeasible_tiles(hopper, tiles);
  };
  return space;
}

void schedule_tensor(TensorFuncs &f, const TensorTiles &tiles) {
  const auto &[i, thread, group, block, block_y, block_z] = f.vars;
  const auto in_registers = [](Func g, const LoopLevel &level) {
    return g.compute_at(level).store_in(MemoryType::Register);
  };
  f.done.bound(thread, 0, tiles.group_threads())
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
