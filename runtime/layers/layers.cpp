#include "runtime/layers/layers.h"

namespace posattn {
namespace {

PositionSet named(const char *name, const SafeTensors &file, const std::string &prefix,
                  const LayerWeights &weights, const LayerOptions &options,
                  const PositionOptions &positions = {}) {
  return load_positions({name}, file, prefix, position_context(weights, options), positions);
}

}  // namespace

PlainAttention::PlainAttention(const LayerWeights &weights, const LayerOptions &options)
    : AttentionLayer(weights, options, {}) {}

PlainAttention PlainAttention::load(const SafeTensors &file, const std::string &prefix,
                                    const LayerOptions &options) {
  return PlainAttention(find_layer_weights(file, prefix), options);
}

AdditivePosAttention::AdditivePosAttention(const LayerWeights &weights, const LayerOptions &options,
                                           std::shared_ptr<const PositionEncoder> encoder)
    : AttentionLayer(weights, options, PositionSet().add_encoder(std::move(encoder))) {}

AdditivePosAttention AdditivePosAttention::load(const SafeTensors &file, const std::string &prefix,
                                                const LayerOptions &options) {
  const LayerWeights weights = find_layer_weights(file, prefix);
  return AdditivePosAttention(weights, options, named("additive", file, prefix, weights, options));
}

AdditivePosAttention AdditivePosAttention::load(const SafeTensors &file, const std::string &prefix,
                                                const LayerOptions &options,
                                                std::shared_ptr<const PositionEncoder> encoder) {
  return AdditivePosAttention(find_layer_weights(file, prefix), options, std::move(encoder));
}

RelativeAttention::RelativeAttention(const LayerWeights &weights, const LayerOptions &options,
                                     const TensorView &table, Relative::Sign sign)
    : AttentionLayer(weights, options, PositionSet().add_relative(table, sign)) {}

RelativeAttention RelativeAttention::load(const SafeTensors &file, const std::string &prefix,
                                          const LayerOptions &options, Relative::Sign sign) {
  const LayerWeights weights = find_layer_weights(file, prefix);
  PositionOptions positions;
  positions.relative_sign = sign;
  return RelativeAttention(weights, options, named("relative", file, prefix, weights, options, positions));
}

AlibiAttention::AlibiAttention(const LayerWeights &weights, const LayerOptions &options,
                               const TensorView &slopes)
    : AttentionLayer(
          weights, options,
          slopes.empty() ? PositionSet().add_alibi(options.num_heads) : PositionSet().add_alibi(slopes)) {}

AlibiAttention AlibiAttention::load(const SafeTensors &file, const std::string &prefix,
                                    const LayerOptions &options) {
  const LayerWeights weights = find_layer_weights(file, prefix);
  return AlibiAttention(weights, options, named("alibi", file, prefix, weights, options));
}

T5Attention::T5Attention(const LayerWeights &weights, const LayerOptions &options, const TensorView &table,
                         int64_t max_distance, bool bidirectional)
    : AttentionLayer(weights, options, PositionSet().add_t5(table, max_distance, bidirectional)) {}

T5Attention T5Attention::load(const SafeTensors &file, const std::string &prefix, const LayerOptions &options,
                              int64_t max_distance, bool bidirectional) {
  const LayerWeights weights = find_layer_weights(file, prefix);
  PositionOptions positions;
  positions.t5_max_distance = max_distance;
  positions.t5_bidirectional = bidirectional;
  return T5Attention(weights, options, named("t5", file, prefix, weights, options, positions));
}

RopeAttention::RopeAttention(const LayerWeights &weights, const LayerOptions &options,
                             const TensorView &inv_freq, Rope::Layout layout)
    : AttentionLayer(weights, options, PositionSet().add_rope(inv_freq, layout)) {}

RopeAttention RopeAttention::load(const SafeTensors &file, const std::string &prefix,
                                  const LayerOptions &options, const PositionOptions &positions) {
  const LayerWeights weights = find_layer_weights(file, prefix);
  return RopeAttention(weights, options, named("rope", file, prefix, weights, options, positions));
}

DenseBiasAttention::DenseBiasAttention(const LayerWeights &weights, const LayerOptions &options,
                                       const TensorView &bias)
    : AttentionLayer(weights, options, PositionSet().add_dense(bias)) {}

DenseBiasAttention DenseBiasAttention::load(const SafeTensors &file, const std::string &prefix,
                                            const LayerOptions &options) {
  const LayerWeights weights = find_layer_weights(file, prefix);
  return DenseBiasAttention(weights, options, named("dense", file, prefix, weights, options));
}

CombinedAttention CombinedAttention::load(const SafeTensors &file, const std::string &prefix,
                                          const LayerOptions &options, const std::vector<std::string> &names,
                                          const PositionOptions &positions, const SafeTensors *inputs) {
  const LayerWeights weights = find_layer_weights(file, prefix);
  const PositionContext context = position_context(weights, options);
  return CombinedAttention(weights, options, load_positions(names, file, prefix, context, positions, inputs));
}

}  // namespace posattn
