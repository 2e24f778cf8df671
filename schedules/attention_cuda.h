// How attention of many queries runs on the CUDA cores of a GPU: the path that serves every case, tensor
// cores or not.
#pragma once

#include "schedules/attention_simd.h"

namespace posattn::schedules {

// bytes: of an element of queries, keys and values.
AttentionTiles attention_tiles_cuda(int head_dim, int bytes);

void schedule_attention_cuda(AttentionFuncs &f, const AttentionTiles &tiles);

}  // namespace posattn::schedules
