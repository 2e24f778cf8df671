// How merging split attention runs on a CPU's SIMD units.
#pragma once

#include "Halide.h"
#include "schedules/machine.h"

namespace posattn::schedules {

// The stages of generators/merge_generator.cpp, by the names that they have there.
struct MergeFuncs {
  Halide::Func split_lse{"split_lse"}, maximum{"maximum"}, sum{"sum"}, row_lse{"row_lse"}, weight{"weight"},
      value{"value"}, weighted{"weighted"};
  Halide::Func out, lse;
  struct {
    Halide::Var d, split, query, head, batch;
  } vars;
  Halide::RDom splits;
  Halide::Expr whole_rows;  // the head dimension needs no padding
};

void schedule_merge(MergeFuncs &f, const Machine &machine, int head_dim);

}  // namespace posattn::schedules
