#include "runtime/layers/attention_layer.h"

#include "runtime/layers/attention_call.h"

namespace posattn {

struct AttentionLayer::Parts : LayerParts {};

AttentionLayer::AttentionLayer(const LayerWeights &weights, const LayerOptions &options,
                               PositionSet positions) {
  const LayerDims dims = layer_dims(weights, options);
  check_positions_fit(dims, positions);
  parts_ = std::make_shared<const Parts>(
      Parts{{dims, std::move(positions), Projections(weights, dims.type),
             stacked({{weights.out, weights.out_bias}}, dims.type),
             ExtraKeys(weights.bias_k, weights.bias_v, options.add_zero_attn, dims.kv_heads, dims.type)}});
}

void AttentionLayer::forward_into(const ForwardArgs &args, const ForwardOutputs &outputs) const {
  Scratch own;
  AttentionCall(*parts_, args, outputs).run(args.scratch ? *args.scratch : own);
}

int64_t AttentionLayer::embed_dim() const { return parts_->dims.embed; }
int64_t AttentionLayer::key_dim() const { return parts_->dims.key; }
int64_t AttentionLayer::value_dim() const { return parts_->dims.value; }
int64_t AttentionLayer::num_heads() const { return parts_->dims.heads; }
int64_t AttentionLayer::num_kv_heads() const { return parts_->dims.kv_heads; }
DType AttentionLayer::dtype() const { return parts_->dims.type; }
int64_t AttentionLayer::extra_keys() const { return parts_->extra.count(); }
std::string AttentionLayer::branches() const { return parts_->positions.names(); }
const PositionSet &AttentionLayer::positions() const { return parts_->positions; }

}  // namespace posattn
