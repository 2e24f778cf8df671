#include "runtime/layers/layer_dims.h"

#include "runtime/error.h"

namespace posattn {
namespace {

void expect_rows(const char *name, const TensorView &weight, const TensorView &bias, int64_t rows) {
  if (weight.size(0) != rows) {
    fail("weights: ", name, ": expected ", rows, " rows, got ", weight.shape_text());
  }
  if (!bias.empty() && (bias.rank() != 1 || bias.size(0) != rows)) {
    fail("weights: ", name, " bias: expected (", rows, "), got ", bias.shape_text());
  }
}

}  // namespace

LayerDims layer_dims(const LayerWeights &weights, const LayerOptions &options) {
  for (const TensorView *weight : {&weights.query, &weights.key, &weights.value, &weights.out}) {
    if (weight->empty() || weight->rank() != 2) fail("weights: a layer needs query, key, value and out");
  }
  LayerDims dims;
  dims.embed = weights.query.size(1);
  dims.key = weights.key.size(1);
  dims.value = weights.value.size(1);
  dims.heads = options.num_heads;
  dims.kv_heads = options.num_kv_heads ? options.num_kv_heads : options.num_heads;
  if (dims.heads <= 0) fail("num_heads: expected a positive number, got ", dims.heads);
  if (dims.embed == 0 || dims.embed % dims.heads) {
    fail("num_heads: ", dims.embed, " channels do not divide into ", dims.heads, " heads");
  }
  if (dims.kv_heads <= 0 || dims.heads % dims.kv_heads) {
    fail("num_kv_heads: expected a divisor of ", dims.heads, " heads, got ", dims.kv_heads);
  }
  dims.head_dim = dims.embed / dims.heads;
  const int64_t kv = dims.kv_heads * dims.head_dim;
  expect_rows("query", weights.query, weights.query_bias, dims.embed);
  expect_rows("key", weights.key, weights.key_bias, kv);
  expect_rows("value", weights.value, weights.value_bias, kv);
  expect_rows("out", weights.out, weights.out_bias, dims.embed);
  if (weights.out.size(1) != dims.embed) {
    fail("weights: out: expected ", dims.embed, " columns, got ", weights.out.shape_text());
  }
  if (weights.bias_k.empty() != weights.bias_v.empty()) fail("weights: bias_k and bias_v come together");
  for (const TensorView *bias : {&weights.bias_k, &weights.bias_v}) {
    if (!bias->empty() && bias->num_elements() != kv) {
      fail("weights: bias_k, bias_v: expected (1, 1, ", kv, "), got ", bias->shape_text());
    }
  }
  dims.type =
      options.dtype.value_or(weights.query.dtype() == DType::f64 ? DType::f32 : weights.query.dtype());
  if (dims.type != DType::f32 && dims.type != DType::bf16 && dims.type != DType::f16) {
    fail("dtype: expected f32, bf16 or f16, got ", name_of(dims.type));
  }
  return dims;
}

void check_positions_fit(const LayerDims &dims, const PositionSet &positions) {
  const PositionEncoder *encoder = positions.encoder();
  if (encoder && encoder->dim() != dims.embed) {
    fail("position encoder: expected ", dims.embed, " channels, got ", encoder->dim());
  }
  if (encoder && dims.key != dims.embed) {
    fail("position encoder: the key stream has ", dims.key, " channels, the encoder ", encoder->dim());
  }
  const Rope *rope = positions.rope();
  if (rope && 2 * rope->inv_freq.size(0) > dims.head_dim) {
    fail("inv_freq: rotates ", 2 * rope->inv_freq.size(0), " channels, a head has ", dims.head_dim);
  }
}

PositionContext position_context(const LayerWeights &weights, const LayerOptions &options) {
  // A bad number of heads is reported by the layer's constructor; here it must only do no harm.
  const int64_t heads = options.num_heads > 0 ? options.num_heads : 1;
  return {weights.query.size(1), heads, weights.query.size(1) / heads};
}

}  // namespace posattn
