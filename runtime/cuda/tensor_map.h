// What the copy engine of Hopper is told of a tensor.
#pragma once

#include <cstdint>

#include "runtime/kernel_call.h"

namespace posattn::cuda {

// A CUtensorMap, which the driver makes and kernels get by value.
struct alignas(64) TensorMap {
  unsigned char bytes[128];
};

// Whether there can be a map of (channel, token, head, batch) in 16 bits: channels contiguous, everything
// else at multiples of 16 bytes, no steps backwards.
bool can_map(const KernelBuffer &buffer);
// For boxes of 64 channels and `tokens` tokens, in shared memory swizzled by 128 bytes. What lies outside of
// the tensor reads as zero. Throws Error.
TensorMap tensor_map(const KernelBuffer &buffer, int64_t tokens);

}  // namespace posattn::cuda
