// Copies of strided rows on a GPU.
#pragma once

#include "runtime/cuda/context.h"
#include "runtime/tensor.h"

namespace posattn::cuda {

// to (B, H, T, d) = from, with rows of the batch given by `source` (i32 or i64 on the GPU; empty: as they
// are). Last dimension contiguous; f32, bf16 or f16.
void copy_rows(const TensorView &from, const TensorView &source, const MutableTensorView &to,
               const Scope &scope);

}  // namespace posattn::cuda
