// The three input projections of a layer.
#pragma once

#include <initializer_list>
#include <optional>

#include "runtime/layers/layer_steps.h"
#include "runtime/layers/layer_weights.h"
#include "runtime/linear.h"

namespace posattn {

// One linear map for several that read the same stream: the rows of their weights one after the other, of any
// floating-point type.
struct WeightAndBias {
  TensorView weight, bias;
};
Linear stacked(std::initializer_list<WeightAndBias> parts, DType type);

// What goes in: streams (B, T, channels), and what is added to them first (empty: nothing). key and value may
// both be empty.
struct Streams {
  TensorView query, key, value;
  TensorView query_addend, key_addend;
};

// What comes out: (B, T, heads * d), as slices of whatever buffer the products wrote.
struct Projected {
  MutableTensorView query, key, value;
};

// Streams that are one tensor, with one addend, share one product.
Projected project(const Streams &streams, const LayerDims &dims, LayerSteps &steps);

// The linear maps on a CPU.
class Projections {
 public:
  Projections(const LayerWeights &weights, DType type);
  // Of query, key and value the parts [first, last), which must read streams of as many channels.
  void forward(int first, int last, const TensorView &x, const TensorView &addend,
               const MutableTensorView &y) const;

 private:
  std::optional<Linear> linear_[3][4];  // [first][last]: parts stacked, where they can be
};

}  // namespace posattn
