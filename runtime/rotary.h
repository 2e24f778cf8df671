// Rotation of projected queries and keys (rope), for keys that go into a cache.
#pragma once

#include "runtime/positions.h"
#include "runtime/tensor.h"

namespace posattn {

// out = x rotated by its positions. x, out: (B, H, T, D), f32, bf16 or f16, last dimension contiguous, no
// overlap. positions and position_mask as in AttendArgs: (T), (1, T) or (B, T), both optional; a token whose
// mask is false is copied bit for bit. Throws Error before anything is written.
void rotate(const Rope &rope, const TensorView &x, const TensorView &positions,
            const TensorView &position_mask, const MutableTensorView &out);

}  // namespace posattn
