// How attention runs on tensor cores: tiles, and where the stages of a thread are computed.
#pragma once

#include <string>
#include <vector>

#include "Halide.h"
#include "lowering/tensor_backend.h"
#include "schedules/tuning_space.h"

namespace posattn::schedules {

// The stages of generators/attention_tensor_generator.cpp about one block of keys.
struct TensorBlockFuncs {
  std::vector<Halide::Func> of_thread;    // one value, or one tuple, a thread
  std::vector<Halide::Func> of_fragment;  // one value a score
};

struct TensorFuncs {
  Halide::Func done;                    // tokens of (thread, group, block)
  Halide::Func rounds;                  // its update is the loop over the tiles of a block of threads
  std::vector<Halide::Func> of_thread;  // before that loop, of (thread, group, block), besides `rounds`
  std::vector<Halide::Func> of_round;   // of (thread, group, round, block), besides `loop`
  // Its updates are the loops over masked and over other blocks of keys; or one loop over all of them, where
  // there are no inner_steps.
  Halide::Func loop;
  TensorBlockFuncs first, masked, inner;
  Halide::RDom round, masked_steps, inner_steps;
  struct {
    Halide::Var i, thread, group, block, block_y, block_z;
  } vars;
};

// Terms that are compiled in: none, a tabulated bias, a dense one, the same in tiles of 16 bits, all but
// branches, all.
enum class TensorScores { plain, table, dense, dense_tiles, full, branches };

// For Hopper, or for the cards since Ampere.
TensorTiles tensor_tiles(bool hopper, int head_dim, TensorScores scores);

// For few rows, and splits of the keys, on any card.
TensorTiles tensor_decode_tiles(int head_dim, int bytes);

// For float32, on Hopper (heads of up to 128 channels) or on the cards since Ampere.
TensorTiles tensor_float_tiles(bool hopper, int head_dim, TensorScores scores);

TuningSpace tensor_tuning_space(bool hopper, int head_dim, TensorScores scores);

void schedule_tensor(TensorFuncs &f, const TensorTiles &tiles);

}  // namespace posattn::schedules
