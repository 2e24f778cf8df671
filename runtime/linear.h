// y = x W^T + b: torch.nn.Linear with its weights packed once for the kernels of this machine.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>

#include "runtime/tensor.h"

namespace posattn {

// Immutable, and safe to use from several threads at once. Computes on the target that was in force when it
// was made (see set_target), because the packed form depends on it.
class Linear {
 public:
  // weight: (out, in); bias: (out) or empty. f32, bf16 or f16, any strides; both are copied. `type` (f32,
  // bf16 or f16) is that of x and y and of the copied weight; the bias is kept, and sums are made, in
  // float32. Throws Error for bad shapes, and if the program links no projection kernel of `type` for this
  // machine.
  Linear(const TensorView &weight, const TensorView &bias, DType type);

  int64_t in_features() const { return in_; }
  int64_t out_features() const { return out_; }

  // y = (x + addend) W^T + b. x: (T, in) or (B, T, in), y: (T, out) or (B, T, out), both of the type given to
  // the constructor, last dimension contiguous, not overlapping. addend: f32, broadcast to x: leading
  // dimensions may be 1 or missing; (x + addend) is not rounded to x's type, except in bf16 on the targets
  // amx and avx512bf16. A row of y depends on nothing but its row of x: not on other rows, nor on the number
  // of threads. Throws Error before anything is written.
  void forward(const TensorView &x, const MutableTensorView &y, const TensorView &addend = {}) const;

  // Output features [begin, end) on their own, from the same memory; nothing if the packed form cannot be cut
  // there.
  std::optional<Linear> columns(int64_t begin, int64_t end) const;

 private:
  struct Packed;
  Linear() = default;

  std::shared_ptr<const Packed> packed_;
  int64_t in_ = 0, begin_ = 0, out_ = 0;  // output features [begin_, begin_ + out_) of the packed ones
};

}  // namespace posattn
