// Rows of float32 split for tensor cores, on a GPU.
#pragma once

#include "Halide.h"

namespace posattn::schedules {

struct SplitFuncs {
  Halide::Func out;
  struct {
    Halide::Var pair, product, group, token, batch;
  } vars;
};

void schedule_split_cuda(SplitFuncs &f);

}  // namespace posattn::schedules
