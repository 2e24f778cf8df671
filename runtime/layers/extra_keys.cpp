#include "runtime/layers/extra_keys.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace posattn {
namespace {

float load(const TensorView &view, int64_t at) {
  switch (view.dtype()) {
    case DType::bf16:
      return bf16_to_float(view.as<uint16_t>()[at]);
    case DType::f16:
      return f16_to_float(view.as<uint16_t>()[at]);
    default:
      return view.as<float>()[at];
  }
}

void store(const MutableTensorView &view, int64_t at, float value) {
  switch (view.dtype()) {
    case DType::bf16:
      view.as<uint16_t>()[at] = float_to_bf16(value);
      return;
    case DType::f16:
      view.as<uint16_t>()[at] = float_to_f16(value);
      return;
    default:
      view.as<float>()[at] = value;
  }
}

int64_t row_of(const TensorView &view, int64_t b, int64_t h, int64_t i) {
  return b * view.stride(0) + h * view.stride(1) + i * view.stride(2);
}

}  // namespace

ExtraKeys::ExtraKeys(const TensorView &bias_k, const TensorView &bias_v, bool zero, int64_t kv_heads,
                     DType type)
    : count_((bias_k.empty() ? 0 : 1) + (zero ? 1 : 0)), biased_(!bias_k.empty()), kv_heads_(kv_heads) {
  if (!biased_) return;
  key_ = copy_of(bias_k, type).to(DType::f32);
  value_ = copy_of(bias_v, type).to(DType::f32);
}

void ExtraKeys::merge(const TensorView &query, float scale, float softcap, const MutableTensorView &out,
                      const MutableTensorView &lse, const MutableTensorView &weights) const {
  const int64_t batch = query.size(0), heads = query.size(1), queries = query.size(2), dim = query.size(3);
  const int64_t group = heads / kv_heads_;
  for (int64_t b = 0; b < batch; b++) {
    for (int64_t h = 0; h < heads; h++) {
      const float *key = biased_ ? key_.as<float>() + h / group * dim : nullptr;
      const float *value = biased_ ? value_.as<float>() + h / group * dim : nullptr;
      for (int64_t i = 0; i < queries; i++) {
        float score = 0;  // of bias_k; the zero key's is 0
        const int64_t q = row_of(query, b, h, i);
        for (int64_t d = 0; biased_ && d < dim; d++) score += load(query, q + d) * key[d];
        score *= scale;
        if (softcap > 0) score = softcap * std::tanh(score / softcap);

        float &row_lse = lse.as<float>()[row_of(lse, b, h, i)];
        const bool zero = count_ > (biased_ ? 1 : 0);
        float top = row_lse;
        if (biased_) top = std::max(top, score);
        if (zero) top = std::max(top, 0.0f);
        const float tokens = std::exp(row_lse - top);  // 0 where no token is visible
        const float bias = biased_ ? std::exp(score - top) : 0.0f;
        const float total = tokens + bias + (zero ? std::exp(-top) : 0.0f);
        row_lse = top + std::log(total);

        const int64_t o = row_of(out, b, h, i);
        for (int64_t d = 0; d < dim; d++) {
          const float sum = load(out, o + d) * tokens + (biased_ ? bias * value[d] : 0.0f);
          store(out, o + d, sum / total);
        }
        if (weights.empty()) continue;
        const int64_t w = row_of(weights, b, h, i), step = weights.stride(3);
        int64_t column = weights.size(3) - count_;
        for (int64_t j = 0; j < column; j++) {
          store(weights, w + j * step, load(weights, w + j * step) * tokens / total);
        }
        if (biased_) store(weights, w + column++ * step, bias / total);
        if (zero) store(weights, w + column * step, std::exp(-top) / total);
      }
    }
  }
}

void mean_over_heads(const TensorView &heads, const MutableTensorView &mean) {
  const int64_t count = heads.size(1), keys = heads.size(3);
  std::vector<float> sum(static_cast<size_t>(keys));
  for (int64_t b = 0; b < heads.size(0); b++) {
    for (int64_t i = 0; i < heads.size(2); i++) {
      std::fill(sum.begin(), sum.end(), 0.0f);
      for (int64_t h = 0; h < count; h++) {
        const int64_t row = row_of(heads, b, h, i);
        for (int64_t j = 0; j < keys; j++) {
          sum[static_cast<size_t>(j)] += load(heads, row + j * heads.stride(3));
        }
      }
      const int64_t row = b * mean.stride(0) + i * mean.stride(1);
      for (int64_t j = 0; j < keys; j++) {
        store(mean, row + j * mean.stride(2), sum[static_cast<size_t>(j)] / static_cast<float>(count));
      }
    }
  }
}

}  // namespace posattn
