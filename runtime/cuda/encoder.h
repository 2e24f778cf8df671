// Additive positions on a GPU.
#pragma once

#include <memory>
#include <vector>

#include "runtime/cuda/launch.h"
#include "runtime/cuda/linear.h"
#include "runtime/layers/layer_steps.h"
#include "runtime/layers/position_encoder.h"

namespace posattn::cuda {

// A PositionEncoder's tables and maps in the memory of a GPU. Immutable.
class CudaEncoder {
 public:
  // Throws Error if it is of a kind that has no form for GPUs.
  CudaEncoder(const PositionEncoder &encoder, const CudaStream &stream);

  // What LayerSteps::encode() says, with memory from `steps` and cuBLASLt's workspace. Rows of positions
  // outside of a table are NaN. launch: null to take memory only.
  TensorView encode(const TokenArgs &tokens, int64_t batch, int64_t count, LayerSteps &steps,
                    const Scope &scope, void *blas_workspace, Launch *launch, const void *unused) const;

 private:
  int64_t dim_;
  CudaTensor table_;                // (positions, dim) f32, or
  CudaTensor frequencies_, waves_;  // (channels) f64 and bytes
  float scale_ = 1;
  std::vector<CudaLinear> maps_;  // of a network behind them
  Activation activation_ = Activation::gelu;
};

}  // namespace posattn::cuda
