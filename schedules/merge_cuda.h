// How merging split attention runs on a GPU.
#pragma once

#include "Halide.h"

namespace posattn::schedules {

// So many parts of a block of threads share the splits of a row, and each has so many loads in flight.
constexpr int kMergeParts = 16, kMergeSteps = 4;
constexpr int kMergeChannels = 4;  // that a thread loads at a time

// The stages of generators/merge_generator.cpp, by the names that they have there.
struct MergeCudaFuncs {
  Halide::Func split_lse{"split_lse"}, value{"value"}, part{"merged_part"}, shared{"shared_parts"},
      maximum{"maximum"}, sum{"sum"}, joined{"joined"}, row_lse{"row_lse"};
  Halide::Func out, lse;
  Halide::RDom turns, parts;
  struct {
    Halide::Var d, split, query, head, batch, part, piece;
  } vars;
};

void schedule_merge_cuda(MergeCudaFuncs &f, int head_dim);

}  // namespace posattn::schedules
