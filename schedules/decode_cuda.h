// How attention of few rows over long keys runs on a GPU: as fast as keys and values come from memory.
#pragma once

#include "schedules/attention_simd.h"

namespace posattn::schedules {

AttentionTiles decode_tiles_cuda(int head_dim);

// per_word: elements in a word of keys and values.
void schedule_decode_cuda(AttentionFuncs &f, const AttentionTiles &tiles, int per_word);

}  // namespace posattn::schedules
