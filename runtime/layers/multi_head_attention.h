// The layer of Whisper-style models (openai/whisper, ESPnet's speechlm): one call for self-attention,
// cross-attention and decoding through a key/value cache.
#pragma once

#include "runtime/layers/attention_layer.h"

namespace posattn {

struct MultiHeadArgs : ForwardOptions {
  TensorView x;   // (B, T, E)
  TensorView xa;  // (B, Ta, E): keys and values come from here in place of x
};

// With a cache, self-attention (no xa) appends x and attends to all that it holds; cross-attention projects
// xa once, into the empty cache, and afterwards reads the cache (xa then only says that it is
// cross-attention, and how many tokens there should be). Use one cache for each. Keys are cached rotated.
class MultiHeadAttention : public PositionalAttentionBase {
 public:
  // causal: every call is, bottom-right: a decoding step and each token of a chunk see their past. It
  // composes with the call's masks.
  MultiHeadAttention(const LayerWeights &weights, const LayerOptions &options, bool causal = false,
                     PositionSet positions = {});
  static MultiHeadAttention load(const SafeTensors &file, const std::string &prefix,
                                 const LayerOptions &options, bool causal = false,
                                 PositionSet positions = {});

  ForwardResult forward(const MultiHeadArgs &args) const;
  void forward_into(const MultiHeadArgs &args, const ForwardOutputs &outputs) const;

  // ESPnet's signature and rules. mask broadcasts to (B, H, T, Tk): boolean, true = attend, or float, added.
  // A mask for a causal layer is the Error that ESPnet documents, and causal cross-attention is causal only
  // if x and xa have one length. Differs from ESPnet in one case, on purpose: a chunk of more than one token
  // after a prefix is causal here (there its tokens see each other's future).
  Tensor forward_espnet(const TensorView &x, const TensorView &xa = {}, const TensorView &mask = {},
                        KvCacheBase *cache = nullptr) const;

  // The general interface (a causal layer stays causal).
  using PositionalAttentionBase::forward;
  void forward_into(const ForwardArgs &args, const ForwardOutputs &outputs) const override;
  void forward_from_host(const ForwardArgs &args, const ForwardOutputs &outputs) const override;
  size_t workspace_size(const ForwardArgs &args) const override;
  size_t workspace_size(const MultiHeadArgs &args) const { return workspace_size(general(args)); }
  std::unique_ptr<KvCacheBase> make_cache(int64_t batch, int64_t capacity,
                                          CacheFormat format = CacheFormat::exact) const override {
    return layer_.make_cache(batch, capacity, format);
  }

  bool causal() const { return causal_; }
  int64_t embed_dim() const override { return layer_.embed_dim(); }
  int64_t key_dim() const override { return layer_.key_dim(); }
  int64_t value_dim() const override { return layer_.value_dim(); }
  int64_t num_heads() const override { return layer_.num_heads(); }
  int64_t num_kv_heads() const override { return layer_.num_kv_heads(); }
  DType dtype() const override { return layer_.dtype(); }
  int64_t extra_keys() const override { return layer_.extra_keys(); }
  std::string branches() const override { return layer_.branches(); }

 private:
  ForwardArgs general(const MultiHeadArgs &args) const;
  ForwardArgs with_causal(const ForwardArgs &args) const;
  AttentionLayer layer_;
  bool causal_;
};

}  // namespace posattn
