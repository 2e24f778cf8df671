// How merging split attention runs on a GPU.
#pragma once

#include "schedules/merge_simd.h"

namespace posattn::schedules {

// Splits that a call may have: their logarithms lie in shared memory.
constexpr int kMostSplitsCuda = 1024;
// So many parts of a block of threads share the splits of a row, and each has so many loads in flight. (With
// more parts the block takes longer to start: 64 splits take 4.7 us with 32 of them, 3.4 us with 16, 3.7 us
// with 8 on an H100.)
constexpr int kMergeParts = 16, kMergeSteps = 4;

void schedule_merge_cuda(MergeFuncs &f, int head_dim);

}  // namespace posattn::schedules
