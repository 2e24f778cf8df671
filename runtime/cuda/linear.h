// y = x W^T + b on a GPU: runtime/linear.h's map, by cuBLASLt.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "runtime/cuda/context.h"
#include "runtime/cuda/memory.h"

namespace posattn::cuda {

// Immutable, and safe to use from several threads at once.
class CudaLinear {
 public:
  struct Part {
    TensorView weight, bias;  // (out, in), (out) or empty, on the host
  };
  // The parts' rows one after the other, copied to the GPU and waited for. Sums are made in float32; weights
  // and biases are kept in `type`, as frameworks do.
  CudaLinear(const std::vector<Part> &parts, DType type, const CudaStream &stream);

  int64_t in_features() const { return in_; }
  int64_t out_features() const { return out_; }

  // Output features [begin, end). x (B, T, in), y (B, T, end - begin): on the GPU, last dimension contiguous,
  // tokens and batches apart from each other. workspace: kWorkspace bytes, 256-byte aligned.
  static constexpr int64_t kWorkspace = int64_t{32} << 20;  // what NVIDIA advises for Hopper
  void forward(const TensorView &x, const MutableTensorView &y, int64_t begin, int64_t end,
               const Scope &scope, void *workspace) const;

 private:
  struct Key;
  struct Plan;
  std::shared_ptr<const Plan> plan_for(const Key &key, const Scope &scope) const;

  DType type_;
  int64_t in_ = 0, out_ = 0;
  bool biased_ = false;
  CudaMemory weight_, bias_;
  // Descriptions and algorithms of shapes that were asked for before.
  struct Plans;
  std::shared_ptr<Plans> plans_;
};

}  // namespace posattn::cuda
