#include "runtime/token_positions.h"

#include <cmath>
#include <limits>

namespace posattn {
namespace {

constexpr float kNoPosition = std::numeric_limits<float>::infinity();
constexpr double kExactIntegers = 16777216;  // 2^24: float32 holds every integer up to here

// Whole positions are anchor + rest with rest in [0, kAnchorStep): sines of anchors and rests are evaluated,
// all others follow by the addition theorem in double. What comes out depends on the position alone.
constexpr int64_t kAnchorStep = 64;
constexpr double kLargestAnchored = 1e15;

}  // namespace

TokenPositions::TokenPositions(const TensorView &positions, const TensorView &mask, int64_t tokens)
    : tokens_(tokens) {
  const auto per_batch = [&](const TensorView &view) {
    if (view.rank() != 2 || view.size(0) <= 1) return int64_t{0};
    per_batch_ = true;
    batches_ = view.size(0);
    return view.stride(0);
  };
  if (!positions.empty()) {
    data_ = positions.data();
    type_ = positions.dtype();
    stride_ = positions.stride(-1);
    batch_stride_ = per_batch(positions);
  }
  if (!mask.empty()) {
    mask_ = mask.as<uint8_t>();
    mask_stride_ = mask.stride(-1);
    mask_batch_stride_ = per_batch(mask);
  }
}

double TokenPositions::at(int64_t batch, int64_t token) const {
  if (!data_) return static_cast<double>(token);
  const int64_t i = batch * batch_stride_ + token * stride_;
  switch (type_) {
    case DType::f32:
      return static_cast<double>(static_cast<const float *>(data_)[i]);
    case DType::f64:
      return static_cast<const double *>(data_)[i];
    case DType::i32:
      return static_cast<double>(static_cast<const int32_t *>(data_)[i]);
    default:
      return static_cast<double>(static_cast<const int64_t *>(data_)[i]);
  }
}

bool TokenPositions::all_have() const {
  if (!mask_) return true;
  for (int64_t b = 0; b < batches(); ++b) {
    for (int64_t i = 0; i < tokens_; ++i) {
      if (!has(b, i)) return false;
    }
  }
  return true;
}

bool TokenPositions::consecutive() const {
  if (!data_) return true;
  for (int64_t b = 0; b < batches(); ++b) {
    for (int64_t i = 1; i < tokens_; ++i) {
      if (at(b, i) - at(b, i - 1) != 1) return false;
    }
  }
  return true;
}

std::optional<float> uniform_offset(const TokenPositions &queries, const TokenPositions &keys,
                                    int64_t batch) {
  if (!queries.all_have() || !keys.all_have() || !queries.consecutive() || !keys.consecutive()) {
    return std::nullopt;
  }
  const double first = keys.at(0, 0) - queries.at(0, 0);
  if (first != std::trunc(first)) return std::nullopt;
  if (std::fabs(first) + static_cast<double>(queries.tokens() + keys.tokens()) > kExactIntegers)
    return std::nullopt;
  const bool per_batch = queries.per_batch() || keys.per_batch();
  for (int64_t b = 1; per_batch && b < batch; ++b) {
    if (keys.at(b, 0) - queries.at(b, 0) != first) return std::nullopt;
  }
  return static_cast<float>(first);
}

void fill_positions(const TokenPositions &positions, int64_t batches, const PositionArrays &to) {
  for (int64_t b = 0; b < batches; ++b) {
    for (int64_t t = 0; t < positions.tokens(); ++t) {
      const int64_t i = b * positions.tokens() + t;
      const double position = positions.at(b, t);
      const bool has = positions.has(b, t);
      to.high[i] = has ? static_cast<float>(position) : kNoPosition;
      to.low[i] = has ? static_cast<float>(position - static_cast<double>(to.high[i])) : 0;
    }
  }
}

int64_t rotation_scratch(int64_t pairs) { return (2 * kAnchorStep + 2) * pairs; }

void fill_rotation(const TokenPositions &positions, const TensorView &inv_freq, int64_t batches,
                   double *scratch, float *cos_out, float *sin_out) {
  const int64_t pairs = inv_freq.size(0), tokens = positions.tokens();
  double *anchor_cos = scratch, *anchor_sin = scratch + pairs;
  double *rest_cos = scratch + 2 * pairs, *rest_sin = rest_cos + kAnchorStep * pairs;
  bool rest_is_there[kAnchorStep] = {};
  double anchor = std::numeric_limits<double>::quiet_NaN();
  const auto evaluate = [&](double position, double *c, double *s) {
    for (int64_t i = 0; i < pairs; ++i) {
      const double angle = position * static_cast<double>(inv_freq.as<float>()[i * inv_freq.stride(0)]);
      c[i] = std::cos(angle);
      s[i] = std::sin(angle);
    }
  };
  for (int64_t b = 0; b < batches; ++b) {
    for (int64_t t = 0; t < tokens; ++t) {
      float *c = cos_out + (b * tokens + t) * pairs, *s = sin_out + (b * tokens + t) * pairs;
      if (!positions.has(b, t)) {
        for (int64_t i = 0; i < pairs; ++i) {
          c[i] = kNoPosition;
          s[i] = 0;
        }
        continue;
      }
      const double p = positions.at(b, t);
      double begin = p;
      int64_t rest = 0;
      if (p == std::trunc(p) && std::fabs(p) < kLargestAnchored) {
        begin = std::floor(p / kAnchorStep) * kAnchorStep;
        rest = static_cast<int64_t>(p - begin);
      }
      if (begin != anchor) {
        evaluate(begin, anchor_cos, anchor_sin);
        anchor = begin;
      }
      double *rc = rest_cos + rest * pairs, *rs = rest_sin + rest * pairs;
      if (!rest_is_there[rest]) {
        evaluate(static_cast<double>(rest), rc, rs);
        rest_is_there[rest] = true;
      }
      for (int64_t i = 0; i < pairs; ++i) {
        c[i] = static_cast<float>(anchor_cos[i] * rc[i] - anchor_sin[i] * rs[i]);
        s[i] = static_cast<float>(anchor_sin[i] * rc[i] + anchor_cos[i] * rs[i]);
      }
    }
  }
}

}  // namespace posattn
