// How attention runs on the CUDA cores of a GPU: the path that serves every case, tensor cores or not.
#pragma once

#include "schedules/attention_simd.h"

namespace posattn::schedules {

struct CudaForm {
  bool decode;
  int per_word;  // elements in one place of what is staged of keys and values
};

// bytes: of an element.
AttentionTiles attention_tiles_cuda(int head_dim, int bytes, bool decode);

void schedule_attention_cuda(AttentionFuncs &f, const AttentionTiles &tiles, const CudaForm &form);

}  // namespace posattn::schedules
