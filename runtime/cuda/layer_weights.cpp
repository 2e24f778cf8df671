#include "runtime/cuda/layer_weights.h"

namespace posattn::cuda {

LayerMemory::LayerMemory(const LayerWeights &weights, const LayerDims &dims, bool add_zero_attn,
                         const PositionSet &positions, const CudaStream &stream) {
  const CudaLinear::Part given[] = {{weights.query, weights.query_bias},
                                    {weights.key, weights.key_bias},
                                    {weights.value, weights.value_bias}};
  for (int first = 0; first < 3;) {
    std::vector<CudaLinear::Part> together;
    int64_t row = 0;
    int i = first;
    for (; i < 3 && given[i].weight.size(1) == given[first].weight.size(1); ++i) {
      together.push_back(given[i]);
      parts[i] = {static_cast<int>(in.size()), row, row + given[i].weight.size(0)};
      row = parts[i].end;
    }
    in.emplace_back(together, dims.type, stream);
    first = i;
  }
  out.emplace(std::vector<CudaLinear::Part>{{weights.out, weights.out_bias}}, dims.type, stream);

  const auto upload = [&](const TensorView &host) -> TensorView {
    tables_.emplace_back(host, stream);
    return tables_.back().view();
  };
  if (positions.encoder()) encoder.emplace(*positions.encoder(), stream);
  for (const auto &branch : positions.logit_branches()) {
    branches.push_back(std::make_unique<MovedBranch>(*branch, upload));
  }
  if (positions.rope()) rope = Rope{upload(positions.rope()->inv_freq), positions.rope()->layout};
  if (!positions.dense().empty()) dense = CudaTensor(positions.dense(), stream);

  has_zero_key = add_zero_attn;
  has_bias_key = !weights.bias_k.empty();
  if (has_bias_key) {
    const auto rows = [&](const TensorView &bias) {
      const Tensor rounded = copy_of(bias, dims.type).to(DType::f32);
      return CudaTensor(TensorView(rounded.view().data(), DType::f32, {dims.kv_heads, dims.head_dim}),
                        stream);
    };
    bias_key = rows(weights.bias_k);
    bias_value = rows(weights.bias_v);
  }
  const Tensor zeros(DType::f32, {64});
  unused = CudaTensor(zeros.view(), stream);
}

}  // namespace posattn::cuda
