#include "runtime/layers/attention_layer.h"

#include "runtime/layers/layer_steps.h"

namespace posattn {

AttentionLayer::AttentionLayer(const LayerWeights &weights, const LayerOptions &options,
                               PositionSet positions) {
  const LayerDims dims = layer_dims(weights, options);
  check_positions_fit(dims, positions);
  const bool zero = options.add_zero_attn;
  placed_ = options.device ? options.device->place(weights, dims, zero, std::move(positions))
                           : place_on_cpu(weights, dims, zero, std::move(positions));
}

void AttentionLayer::forward_into(const ForwardArgs &args, const ForwardOutputs &outputs) const {
  placed_->forward_into(args, outputs);
}
void AttentionLayer::forward_from_host(const ForwardArgs &args, const ForwardOutputs &outputs) const {
  placed_->forward_from_host(args, outputs);
}
size_t AttentionLayer::workspace_size(const ForwardArgs &args) const { return placed_->workspace_size(args); }
std::unique_ptr<KvCacheBase> AttentionLayer::make_cache(int64_t batch, int64_t capacity,
                                                        CacheFormat format) const {
  return placed_->make_cache(batch, capacity, format);
}

int64_t AttentionLayer::embed_dim() const { return placed_->facts().dims.embed; }
int64_t AttentionLayer::key_dim() const { return placed_->facts().dims.key; }
int64_t AttentionLayer::value_dim() const { return placed_->facts().dims.value; }
int64_t AttentionLayer::num_heads() const { return placed_->facts().dims.heads; }
int64_t AttentionLayer::num_kv_heads() const { return placed_->facts().dims.kv_heads; }
DType AttentionLayer::dtype() const { return placed_->facts().dims.type; }
int64_t AttentionLayer::extra_keys() const { return placed_->facts().extra_keys; }
std::string AttentionLayer::branches() const { return placed_->positions().names(); }
const PositionSet &AttentionLayer::positions() const { return placed_->positions(); }

}  // namespace posattn
