// How attention runs on tensor cores: tiles, and where the stages of a thread are computed.
#pragma once

#include <string>
#include <vector>

#include "Halide.h"
#include "lowering/tensor_backend.h"

namespace posattn::schedules {

// The stages of generators/attention_tensor_generator.cpp about one block of keys.
struct TensorBlockFuncs {
  std::vector<Halide::Func> of_thread;    // one value, or one tuple, a thread
  std::vector<Halide::Func> of_fragment;  // one value a score
};

struct TensorFuncs {
  Halide::Func done;                     // tokens of (thread, group, tile, head, batch)
  std::vector<Halide::Func> of_thread;   // before, between and after the loops
  Halide::Func loop;                     // its updates are the loops over masked and over other blocks
  TensorBlockFuncs first, masked, inner;
  Halide::RDom masked_steps, inner_steps;
  struct {
    Halide::Var i, thread, group, tile, head, batch;
  } vars;
};

enum class TensorScores { plain, biased, full };

// For Hopper, or for the cards since Ampere.
TensorTiles tensor_tiles(bool hopper, int head_dim, TensorScores scores);

void schedule_tensor(TensorFuncs &f, const TensorTiles &tiles);

}  // namespace posattn::schedules
