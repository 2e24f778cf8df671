// A layer's weights and tables in the memory of a GPU.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "runtime/cuda/encoder.h"
#include "runtime/cuda/linear.h"
#include "runtime/cuda/moved_branch.h"
#include "runtime/layers/layer_steps.h"

namespace posattn::cuda {

struct LayerMemory {
  LayerMemory(const LayerWeights &weights, const LayerDims &dims, bool add_zero_attn,
              const PositionSet &positions, const CudaStream &stream);

  // Of query, key and value: the map that holds its rows, and where they begin there. Parts that read streams
  // of as many channels are neighbours in one map.
  struct PartOfMap {
    int map;
    int64_t begin, end;
  };
  PartOfMap parts[3];
  std::vector<CudaLinear> in;
  std::optional<CudaLinear> out;

  std::optional<CudaEncoder> encoder;
  std::vector<std::unique_ptr<LogitBranch>> branches;
  std::optional<Rope> rope;
  CudaTensor dense;

  bool has_bias_key = false, has_zero_key = false;
  CudaTensor bias_key, bias_value;  // (kv_heads, d) f32
  CudaTensor unused;                // for inputs of kernels that a call does not use

 private:
  std::vector<CudaTensor> tables_;  // of branches and rope
};

}  // namespace posattn::cuda
