// y = x W^T + b on a GPU: runtime/linear.h's map, by cuBLASLt. Many rows of float32 are multiplied on tensor
// cores, as split_float.h says, with errors no larger than those of plain float32.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "runtime/cuda/context.h"
#include "runtime/cuda/memory.h"
#include "runtime/cuda/split_float.h"

namespace posattn::cuda {

// Immutable, and safe to use from several threads at once.
class CudaLinear {
 public:
  struct Part {
    TensorView weight, bias;  // (out, in), (out) or empty, on the host
  };
  // The parts' rows one after the other, copied to the GPU and waited for. Sums are made in float32; weights
  // and biases are kept in `type`, as frameworks do. Those of float32 are kept as split_float.h splits them,
  // too, where that pays and all of their precision is kept: three times as much memory again.
  CudaLinear(const std::vector<Part> &parts, DType type, const CudaStream &stream);

  int64_t in_features() const { return in_; }
  int64_t out_features() const { return out_; }

  // Bytes that forward() of so many tokens (of all batches) needs beside its workspace; 0 where it multiplies
  // its input as it is.
  int64_t split_size(int64_t tokens, int64_t begin, int64_t end) const;

  // Output features [begin, end). x (B, T, in), y (B, T, end - begin): on the GPU, last dimension contiguous,
  // tokens and batches apart from each other. workspace: kWorkspace bytes, 256-byte aligned. split:
  // split_size() bytes, 64-byte aligned.
  static constexpr int64_t kWorkspace = int64_t{32} << 20;  // what NVIDIA advises for Hopper
  void forward(const TensorView &x, const MutableTensorView &y, int64_t begin, int64_t end,
               const Scope &scope, void *workspace, void *split) const;

 private:
  struct Key;
  struct Plan;
  struct Product;
  std::shared_ptr<const Plan> plan_for(const Key &key, const Scope &scope) const;
  const void *weight_of(const Product &product) const;
  void multiply(const Product &product, const TensorView &x, const MutableTensorView &y, const Scope &scope,
                void *workspace) const;
  void multiply_split(const TensorView &x, const MutableTensorView &y, int64_t begin, int64_t end,
                      const Scope &scope, void *workspace, void *split) const;

  DType type_;
  int64_t in_ = 0, out_ = 0;
  bool biased_ = false;
  int capability_ = 0;
  CudaMemory weight_, bias_;
  std::optional<SplitForm> form_;  // of split_weight_, if there is one
  CudaMemory split_weight_;
  // Descriptions and algorithms of shapes that were asked for before.
  struct Plans;
  std::shared_ptr<Plans> plans_;
};

}  // namespace posattn::cuda
