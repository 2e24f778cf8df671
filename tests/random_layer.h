// Random weights and streams for tests of layers.
#pragma once

#include <cmath>
#include <vector>

#include "runtime/layers/layer_weights.h"
#include "tests/random.h"

namespace posattn::oracle {

inline Tensor random_tensor(Random &random, DType type, std::initializer_list<int64_t> shape,
                            double scale = 1) {
  Tensor tensor(DType::f32, shape);
  for (int64_t i = 0; i < tensor.view().num_elements(); i++) {
    tensor.as<float>()[i] = static_cast<float>(scale * random.normal());
  }
  return tensor.to(type);
}

// The projections of a layer with E channels, and kv_channels of keys and values.
struct RandomLayer {
  RandomLayer(uint64_t seed, int64_t E, int64_t kv_channels = 0, DType type = DType::f32,
              bool biased = true) {
    Random random(seed);
    const int64_t kv = kv_channels ? kv_channels : E;
    const double scale = 1 / std::sqrt(static_cast<double>(E));
    for (const int64_t rows : {E, kv, kv, E}) {
      tensors.push_back(random_tensor(random, type, {rows, E}, scale));
      tensors.push_back(random_tensor(random, type, {rows}, 0.3));
    }
    weights.query = tensors[0].view();
    weights.key = tensors[2].view();
    weights.value = tensors[4].view();
    weights.out = tensors[6].view();
    if (!biased) return;
    weights.query_bias = tensors[1].view();
    weights.key_bias = tensors[3].view();
    weights.value_bias = tensors[5].view();
    weights.out_bias = tensors[7].view();
  }

  std::vector<Tensor> tensors;  // weight and bias of query, key, value, out
  LayerWeights weights;
};

}  // namespace posattn::oracle
