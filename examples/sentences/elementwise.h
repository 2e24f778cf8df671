// The parts of a BERT layer that are no matrix product. All tensors are contiguous f32.
#pragma once

#include "runtime/tensor.h"

namespace sentences {

struct LayerNorm {
  posattn::Tensor weight, bias;  // (E)
  float epsilon = 0;
};

// x = norm(x + added) over the last dimension; `added` has x's shape, or is empty.
void add_and_normalise(const posattn::MutableTensorView &x, const posattn::TensorView &added,
                       const LayerNorm &norm);

// x = x * Phi(x) with the normal distribution's Phi: the exact GELU, not its tanh approximation.
void gelu(const posattn::MutableTensorView &x);

}  // namespace sentences
