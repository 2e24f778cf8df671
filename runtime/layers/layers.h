// The layers by what they know of positions. Each one is AttentionLayer with one kind of branch.
//
//   const SafeTensors file = SafeTensors::open("layer.safetensors");
//   const RelativeAttention layer = RelativeAttention::load(file, "blocks.3.", {8});
//   ForwardArgs args;
//   args.query = args.key = args.value = x;  // (B, T, E)
//   const ForwardResult result = layer.forward(args);
#pragma once

#include "runtime/layers/attention_layer.h"

namespace posattn {

// No positions: torch.nn.MultiheadAttention.
class PlainAttention : public AttentionLayer {
 public:
  PlainAttention(const LayerWeights &weights, const LayerOptions &options);
  static PlainAttention load(const SafeTensors &file, const std::string &prefix, const LayerOptions &options);
};

// q + phi(p_q), k + phi(p_k) before the projections. symm-learning's AdditivePos and eAdditivePos (load reads
// their pos_emb and invariant_projector), or any other encoder.
class AdditivePosAttention : public AttentionLayer {
 public:
  using AttentionLayer::AttentionLayer;
  AdditivePosAttention(const LayerWeights &weights, const LayerOptions &options,
                       std::shared_ptr<const PositionEncoder> encoder);
  static AdditivePosAttention load(const SafeTensors &file, const std::string &prefix,
                                   const LayerOptions &options);
  static AdditivePosAttention load(const SafeTensors &file, const std::string &prefix,
                                   const LayerOptions &options,
                                   std::shared_ptr<const PositionEncoder> encoder);
};

// A learned number per clipped offset: symm-learning's AdditiveRel and eAdditiveRel (rel_bias).
class RelativeAttention : public AttentionLayer {
 public:
  using AttentionLayer::AttentionLayer;
  RelativeAttention(const LayerWeights &weights, const LayerOptions &options, const TensorView &table,
                    Relative::Sign sign = Relative::Sign::minus);
  static RelativeAttention load(const SafeTensors &file, const std::string &prefix,
                                const LayerOptions &options, Relative::Sign sign = Relative::Sign::minus);
};

class AlibiAttention : public AttentionLayer {
 public:
  using AttentionLayer::AttentionLayer;
  // slopes (H); empty: the paper's.
  AlibiAttention(const LayerWeights &weights, const LayerOptions &options, const TensorView &slopes = {});
  static AlibiAttention load(const SafeTensors &file, const std::string &prefix, const LayerOptions &options);
};

class T5Attention : public AttentionLayer {
 public:
  using AttentionLayer::AttentionLayer;
  T5Attention(const LayerWeights &weights, const LayerOptions &options, const TensorView &table,
              int64_t max_distance = 128, bool bidirectional = true);
  static T5Attention load(const SafeTensors &file, const std::string &prefix, const LayerOptions &options,
                          int64_t max_distance = 128, bool bidirectional = true);
};

// symm-learning's RoPE is the default: interleaved pairs over the whole head.
class RopeAttention : public AttentionLayer {
 public:
  using AttentionLayer::AttentionLayer;
  RopeAttention(const LayerWeights &weights, const LayerOptions &options, const TensorView &inv_freq,
                Rope::Layout layout = Rope::Layout::interleaved);
  static RopeAttention load(const SafeTensors &file, const std::string &prefix, const LayerOptions &options,
                            const PositionOptions &positions = {});
};

class DenseBiasAttention : public AttentionLayer {
 public:
  using AttentionLayer::AttentionLayer;
  DenseBiasAttention(const LayerWeights &weights, const LayerOptions &options, const TensorView &bias);
  static DenseBiasAttention load(const SafeTensors &file, const std::string &prefix,
                                 const LayerOptions &options);
};

// Any branches together.
class CombinedAttention : public AttentionLayer {
 public:
  using AttentionLayer::AttentionLayer;
  // names: as in load_positions.
  static CombinedAttention load(const SafeTensors &file, const std::string &prefix,
                                const LayerOptions &options, const std::vector<std::string> &names,
                                const PositionOptions &positions = {}, const SafeTensors *inputs = nullptr);
};

}  // namespace posattn
