// The one implementation behind every layer: positions on the streams -> projections -> (append to a cache)
// -> attend with the positions on logits and heads -> bias_k / zero key -> output projection.
#pragma once

#include <memory>
#include <optional>

#include "runtime/layers/layer_weights.h"
#include "runtime/layers/position_set.h"
#include "runtime/layers/positional_attention_base.h"

namespace posattn {

class LayerDevice;
class PlacedLayer;

struct LayerOptions {
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;    // 0: num_heads; fewer: grouped queries
  std::optional<DType> dtype;  // computes in; default: the query weight's
  bool add_zero_attn = false;  // torch's: one more key and value of zeros at the end
  // Where the layer is and its calls run: null for the CPU, or a CudaDevice (runtime/cuda/layers.h). Needed
  // while the layer is made, no longer.
  const LayerDevice *device = nullptr;
};

// What load_positions has to know of a layer.
PositionContext position_context(const LayerWeights &weights, const LayerOptions &options);

// Immutable: calls may run at the same time, each with a scratch of its own; copies share the weights.
//
// When query, key and value are one tensor, one product makes all three projections (two when positions are
// added to the streams), and they stay where it wrote them: attend reads strided views.
class AttentionLayer : public PositionalAttentionBase {
 public:
  // The weights are copied (packed, or to a GPU); a file may be closed afterwards.
  AttentionLayer(const LayerWeights &weights, const LayerOptions &options, PositionSet positions);

  void forward_into(const ForwardArgs &args, const ForwardOutputs &outputs) const override;
  void forward_from_host(const ForwardArgs &args, const ForwardOutputs &outputs) const override;
  size_t workspace_size(const ForwardArgs &args) const override;
  std::unique_ptr<KvCacheBase> make_cache(int64_t batch, int64_t capacity,
                                          CacheFormat format = CacheFormat::exact) const override;

  int64_t embed_dim() const override;
  int64_t key_dim() const override;
  int64_t value_dim() const override;
  int64_t num_heads() const override;
  int64_t num_kv_heads() const override;
  DType dtype() const override;
  int64_t extra_keys() const override;
  std::string branches() const override;
  const PositionSet &positions() const;

 private:
  std::shared_ptr<const PlacedLayer> placed_;
};

}  // namespace posattn
