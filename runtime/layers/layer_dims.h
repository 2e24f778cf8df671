// The sizes of a layer, from its weights and options.
#pragma once

#include "runtime/layers/attention_layer.h"

namespace posattn {

struct LayerDims {
  int64_t embed, key, value;  // channels of the streams
  int64_t heads, kv_heads, head_dim;
  DType type;
};

// Both throw Error for what does not fit together.
LayerDims layer_dims(const LayerWeights &weights, const LayerOptions &options);
void check_positions_fit(const LayerDims &dims, const PositionSet &positions);

}  // namespace posattn
