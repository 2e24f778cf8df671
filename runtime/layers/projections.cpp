#include "runtime/layers/projections.h"

#include "runtime/layers/position_rows.h"

namespace posattn {

Linear stacked(std::initializer_list<WeightAndBias> parts, DType type) {
  int64_t rows = 0;
  bool biased = false;
  for (const WeightAndBias &part : parts) {
    rows += part.weight.size(0);
    biased = biased || !part.bias.empty();
  }
  const int64_t columns = parts.begin()->weight.size(1);
  Tensor weight(type, {rows, columns});
  Tensor bias(DType::f32, {rows});  // zero where a part has none
  int64_t row = 0;
  for (const WeightAndBias &part : parts) {
    const int64_t end = row + part.weight.size(0);
    copy(part.weight, weight.view().slice(0, row, end));
    if (!part.bias.empty()) copy(part.bias, bias.view().slice(0, row, end));
    row = end;
  }
  return Linear(weight.view(), biased ? TensorView(bias.view()) : TensorView(), type);
}

Projections::Projections(const LayerWeights &weights, DType type) {
  const WeightAndBias parts[] = {{weights.query, weights.query_bias},
                                 {weights.key, weights.key_bias},
                                 {weights.value, weights.value_bias}};
  int64_t begin[4] = {};  // rows of query, key and value in the stacked weight, and its end
  for (int i = 0; i < 3; i++) begin[i + 1] = begin[i] + parts[i].weight.size(0);

  const int64_t channels[] = {weights.query.size(1), weights.key.size(1), weights.value.size(1)};
  const bool stackable = channels[0] == channels[1] && channels[1] == channels[2];
  if (stackable) linear_[0][3] = stacked({parts[0], parts[1], parts[2]}, type);
  for (int first = 0; first < 3; first++) {
    for (int last = first + 1; last <= 3; last++) {
      std::optional<Linear> &linear = linear_[first][last];
      if (linear) continue;
      // Slices of the stacked weight where its packing allows: no second copy in memory.
      if (stackable) linear = linear_[0][3]->columns(begin[first], begin[last]);
      if (linear) continue;
      if (last - first == 1) linear = stacked({parts[first]}, type);
      if (last - first == 2 && channels[first] == channels[first + 1]) {
        linear = stacked({parts[first], parts[first + 1]}, type);
      }
    }
  }
}

void Projections::forward(int first, int last, const TensorView &x, const TensorView &addend,
                          const MutableTensorView &y) const {
  linear_[first][last]->forward(x, y, addend);
}

Projected project(const Streams &s, const LayerDims &dims, LayerSteps &steps) {
  const int64_t kv = dims.kv_heads * dims.head_dim;
  const int64_t begin[] = {0, dims.embed, dims.embed + kv, dims.embed + 2 * kv};
  const auto product = [&](int first, int last, const TensorView &x, const TensorView &addend) {
    const MutableTensorView y = steps.take(dims.type, {x.size(0), x.size(1), begin[last] - begin[first]});
    if (y.num_elements() > 0) steps.project(first, last, x, addend, y);
    return y;
  };
  const auto part = [&](int which, int first, const MutableTensorView &y) {
    return y.slice(2, begin[which] - begin[first], begin[which + 1] - begin[first]);
  };

  Projected result;
  const bool query_key =
      !s.key.empty() && same_view(s.query, s.key) && same_view(s.query_addend, s.key_addend);
  const bool key_value = !s.key.empty() && same_view(s.key, s.value) && s.key_addend.empty();
  const int end_of_query = query_key ? (key_value ? 3 : 2) : 1;
  const MutableTensorView query = product(0, end_of_query, s.query, s.query_addend);
  result.query = part(0, 0, query);
  if (s.key.empty()) return result;

  if (query_key) {
    result.key = part(1, 0, query);
  } else {
    const MutableTensorView key = product(1, key_value ? 3 : 2, s.key, s.key_addend);
    result.key = part(1, 1, key);
    if (key_value) result.value = part(2, 1, key);
  }
  if (!key_value) {
    result.value = product(2, 3, s.value, {});
  } else if (query_key) {
    result.value = part(2, 0, query);
  }
  return result;
}

}  // namespace posattn
