// Tokens' positions and masks as arguments of kernels on a GPU, in whatever form they came.
#pragma once

#include "runtime/kernel_call.h"

namespace posattn::cuda {

// A kernel of the target that has every kind. Throws Error that lists what is linked.
const Kernel &simt_kernel(const char *kind, DType type = DType::f32);

// An input that a call does not use: one element of `memory`, which lies on the GPU.
KernelBuffer unused_buffer(const void *memory, DType type, int dimensions);

// (token, batch) of a tensor (T), (1, T) or (B, T); unused if it is empty.
KernelBuffer of_tokens(const TensorView &view, DType type, int64_t batches, const void *unused);

// Binds p_f32, p_f64, p_i32, p_i64, form, first, mask and has_mask. No positions: first, first + 1, ...
void set_positions(KernelCall &call, const TensorView &positions, const TensorView &mask, int64_t batches,
                   int64_t first, const void *unused);

}  // namespace posattn::cuda
