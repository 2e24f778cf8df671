// How merging split attention runs on a GPU.
#pragma once

#include "schedules/merge_simd.h"

namespace posattn::schedules {

// Splits that a call may have: their logarithms lie in shared memory.
constexpr int kMostSplitsCuda = 1024;

void schedule_merge_cuda(MergeFuncs &f, int head_dim);

}  // namespace posattn::schedules
