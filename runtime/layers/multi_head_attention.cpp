#include "runtime/layers/multi_head_attention.h"

#include "runtime/error.h"

namespace posattn {

MultiHeadAttention::MultiHeadAttention(const LayerWeights &weights, const LayerOptions &options, bool causal,
                                       PositionSet positions)
    : layer_(weights, options, std::move(positions)), causal_(causal) {}

MultiHeadAttention MultiHeadAttention::load(const SafeTensors &file, const std::string &prefix,
                                            const LayerOptions &options, bool causal, PositionSet positions) {
  return MultiHeadAttention(find_layer_weights(file, prefix), options, causal, std::move(positions));
}

ForwardArgs MultiHeadAttention::general(const MultiHeadArgs &args) const {
  ForwardArgs general;
  static_cast<ForwardOptions &>(general) = args;
  general.query = args.x;
  const int64_t cached = args.cache ? args.cache->length() : 0;
  if (args.xa.empty()) {
    general.key = general.value = args.x;
  } else if (cached == 0) {
    general.key = general.value = args.xa;
  } else if (args.xa.rank() != 3 || args.xa.size(1) != cached) {
    fail("xa: the cache holds ", cached, " projected tokens, got ", args.xa.shape_text(),
         " (clear the cache for another xa)");
  }
  return general;
}

ForwardArgs MultiHeadAttention::with_causal(const ForwardArgs &args) const {
  ForwardArgs result = args;
  if (causal_ && args.causal == Causal::none) result.causal = Causal::bottom_right;
  return result;
}

void MultiHeadAttention::forward_into(const ForwardArgs &args, const ForwardOutputs &outputs) const {
  layer_.forward_into(with_causal(args), outputs);
}

void MultiHeadAttention::forward_from_host(const ForwardArgs &args, const ForwardOutputs &outputs) const {
  layer_.forward_from_host(with_causal(args), outputs);
}

size_t MultiHeadAttention::workspace_size(const ForwardArgs &args) const {
  return layer_.workspace_size(with_causal(args));
}

void MultiHeadAttention::forward_into(const MultiHeadArgs &args, const ForwardOutputs &outputs) const {
  forward_into(general(args), outputs);
}

ForwardResult MultiHeadAttention::forward(const MultiHeadArgs &args) const { return forward(general(args)); }

Tensor MultiHeadAttention::forward_espnet(const TensorView &x, const TensorView &xa, const TensorView &mask,
                                          KvCacheBase *cache) const {
  if (causal_ && !mask.empty()) fail("mask is not allowed when the attention is causal");
  MultiHeadArgs args;
  args.x = x;
  args.xa = xa;
  args.cache = cache;
  if (!mask.empty()) (mask.dtype() == DType::boolean ? args.keep_mask : args.add_mask) = mask;
  ForwardArgs forward_args = general(args);
  if (causal_) {
    const bool same_length = xa.empty() || (x.rank() == 3 && xa.rank() == 3 && x.size(1) == xa.size(1));
    forward_args.causal = same_length ? Causal::bottom_right : Causal::none;
  }
  return std::move(layer_.forward(forward_args).out);
}

}  // namespace posattn
