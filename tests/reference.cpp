#include "tests/reference.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <limits>
#include <numeric>
#include <sstream>

#include "runtime/error.h"
#include "tests/random.h"

namespace posattn::oracle {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

double element(const TensorView &tensor, std::initializer_list<int64_t> index) {
  int64_t offset = 0;
  int dim = 0;
  for (int64_t i : index) offset += i * tensor.stride(dim++);
  switch (tensor.dtype()) {
    case DType::f32:
      return tensor.as<float>()[offset];
    case DType::bf16:
      return bf16_to_float(tensor.as<uint16_t>()[offset]);
    case DType::f16:
      return f16_to_float(tensor.as<uint16_t>()[offset]);
    case DType::f64:
      return tensor.as<double>()[offset];
    case DType::i64:
      return static_cast<double>(tensor.as<int64_t>()[offset]);
    case DType::i32:
      return tensor.as<int32_t>()[offset];
    case DType::boolean:
      return tensor.as<uint8_t>()[offset] != 0;
  }
  fail("element: unknown type");
}

double round_to(DType type, double value) {
  const float f = static_cast<float>(value);
  if (type == DType::bf16) return bf16_to_float(float_to_bf16(f));
  if (type == DType::f16) return f16_to_float(float_to_f16(f));
  return f;
}

// An element of something that broadcasts to (B, Hq, Tq, Tk).
double broadcast(const TensorView &tensor, int64_t b, int64_t h, int64_t i, int64_t j) {
  const int64_t full[4] = {b, h, i, j};
  const int rank = tensor.rank();
  int64_t at[4] = {};
  for (int d = 0; d < rank; ++d) at[d] = tensor.size(d) == 1 ? 0 : full[4 - rank + d];
  switch (rank) {
    case 0:
      return element(tensor, {});
    case 1:
      return element(tensor, {at[0]});
    case 2:
      return element(tensor, {at[0], at[1]});
    case 3:
      return element(tensor, {at[0], at[1], at[2]});
    default:
      return element(tensor, {at[0], at[1], at[2], at[3]});
  }
}

// An element of something of shape (T), (1, T) or (B, T).
double per_token(const TensorView &tensor, int64_t b, int64_t t) {
  return tensor.rank() == 1 ? element(tensor, {t}) : element(tensor, {tensor.size(0) == 1 ? 0 : b, t});
}

struct Position {
  double value;
  bool applies;  // false: the token gets no positional treatment
};

Position position_of(const TensorView &positions, const TensorView &mask, int64_t b, int64_t t) {
  return {positions.empty() ? static_cast<double>(t) : per_token(positions, b, t),
          mask.empty() || per_token(mask, b, t) != 0};
}

// One token's channels, rotated. Real is the arithmetic of what is rotated; angles are exact, as positions
// may be far from zero.
template <typename Real>
void rotate(Real *x, const Rope &rope, double position) {
  const int64_t pairs = rope.inv_freq.size(0);
  for (int64_t i = 0; i < pairs; ++i) {
    const bool interleaved = rope.layout == Rope::Layout::interleaved;
    Real &first = x[interleaved ? 2 * i : i];
    Real &second = x[interleaved ? 2 * i + 1 : i + pairs];
    const long double angle = static_cast<long double>(position) * element(rope.inv_freq, {i});
    const Real c = static_cast<Real>(std::cos(angle)), s = static_cast<Real>(std::sin(angle));
    const Real a = first, b = second;
    first = a * c - b * s;
    second = b * c + a * s;
  }
}

// The T5 model's bucket of a relative position p_k - p_q (Raffel et al. 2020).
int64_t t5_bucket(int64_t relative_position, int64_t buckets, int64_t max_distance, bool bidirectional) {
  int64_t bucket = 0, distance = 0;
  if (bidirectional) {
    buckets /= 2;
    if (relative_position > 0) bucket += buckets;
    distance = std::abs(relative_position);
  } else {
    distance = -std::min<int64_t>(relative_position, 0);
  }
  const int64_t max_exact = buckets / 2;
  if (distance < max_exact) return bucket + distance;
  const double ratio = std::log(static_cast<double>(distance) / static_cast<double>(max_exact)) /
                       std::log(static_cast<double>(max_distance) / static_cast<double>(max_exact));
  // The nudge keeps distances that lie exactly on a bucket's edge (16, 32, 64 of 128, say) in that bucket.
  const double large =
      static_cast<double>(max_exact) + ratio * static_cast<double>(buckets - max_exact) + 1e-9;
  return bucket + std::min(static_cast<int64_t>(large), buckets - 1);
}

std::vector<int64_t> shuffled(int64_t count, uint64_t order) {
  std::vector<int64_t> result(static_cast<size_t>(count));
  std::iota(result.begin(), result.end(), int64_t{0});
  if (order == 0) return result;
  Random random(order);
  for (int64_t i = count - 1; i > 0; --i) {
    std::swap(result[static_cast<size_t>(i)], result[static_cast<size_t>(random.integer(0, i))]);
  }
  return result;
}

// Keeps of two results the elements that are farther from the reference.
void keep_worse(std::vector<double> &result, const std::vector<double> &other,
                const std::vector<double> &reference) {
  for (size_t i = 0; i < result.size(); ++i) {
    if (std::abs(other[i] - reference[i]) > std::abs(result[i] - reference[i])) result[i] = other[i];
  }
}

// Sizes and the whole calculation. Real = double is the reference; float with rounding is the naive formula.
template <typename Real>
class Attention {
 public:
  // What the formula leaves open, float32 does not: `order` other than 0 shuffles the channels and keys of
  // sums; odd ones scale the query instead of the product, as PyTorch does; and of four two round the weights
  // to the storage type before they multiply the values, as the product of two tensors of that type does.
  Attention(const AttendArgs &args, const std::vector<BranchFormula> &own, bool rounded, uint64_t order = 0)
      : args_(args),
        own_(own),
        rounded_(rounded),
        scaled_query_(order % 2 == 1),
        rounded_weights_(rounded && order % 4 >= 2),
        batch_(args.query.size(0)),
        heads_(args.query.size(1)),
        kv_heads_(args.key.size(1)),
        queries_(args.query.size(2)),
        keys_(args.key.size(2)),
        dim_(args.query.size(3)),
        value_dim_(args.value.size(3)),
        q_(rotated(args.query, args.q_positions, args.q_position_mask)),
        k_(rotated(args.key, args.k_positions, args.k_position_mask)),
        v_(reals(args.value)),
        channel_order_(shuffled(dim_, order)),
        key_order_(shuffled(keys_, order)) {}

  AttentionResult run() {
    AttentionResult result;
    const bool mean = args_.need_weights == Weights::mean;
    result.out.reserve(static_cast<size_t>(batch_ * heads_ * queries_ * value_dim_));
    if (mean) result.weights.assign(static_cast<size_t>(batch_ * queries_ * keys_), 0.0);
    std::vector<Real> p(static_cast<size_t>(keys_)), out(static_cast<size_t>(value_dim_));
    for (int64_t b = 0; b < batch_; ++b) {
      for (int64_t h = 0; h < heads_; ++h) {
        for (int64_t i = 0; i < queries_; ++i) {
          const Real lse = softmax(b, h, i, p);
          weighted_values(b, h, p, out);
          for (Real x : out) result.out.push_back(stored(x));
          result.lse.push_back(static_cast<double>(lse));
          if (args_.need_weights == Weights::heads) {
            for (Real x : p) result.weights.push_back(stored(x));
          }
          for (int64_t j = 0; mean && j < keys_; ++j) {
            result.weights[static_cast<size_t>((b * queries_ + i) * keys_ + j)] +=
                static_cast<double>(p[static_cast<size_t>(j)]) / static_cast<double>(heads_);
          }
        }
      }
    }
    if (mean) {
      for (double &x : result.weights) x = stored(static_cast<Real>(x));
    }
    return result;
  }

 private:
  double stored(Real x) const {
    return rounded_ ? round_to(args_.query.dtype(), static_cast<double>(x)) : static_cast<double>(x);
  }

  std::vector<Real> reals(const TensorView &x) const {
    const std::vector<double> values = values_of(x);
    return std::vector<Real>(values.begin(), values.end());
  }

  std::vector<Real> rotated(const TensorView &x, const TensorView &positions, const TensorView &mask) const {
    std::vector<Real> result = reals(x);
    if (!args_.rope) return result;
    Real *row = result.data();
    for (int64_t b = 0; b < x.size(0); ++b) {
      for (int64_t h = 0; h < x.size(1); ++h) {
        for (int64_t t = 0; t < x.size(2); ++t, row += x.size(3)) {
          const Position p = position_of(positions, mask, b, t);
          if (!p.applies) continue;
          rotate(row, *args_.rope, p.value);
          for (int64_t d = 0; d < x.size(3); ++d) row[d] = static_cast<Real>(stored(row[d]));
        }
      }
    }
    return result;
  }

  bool visible(int64_t b, int64_t h, int64_t i, int64_t j) const {
    const int64_t past = keys_ - queries_;  // keys before the first query, when the last ones are aligned
    if (args_.causal == Causal::bottom_right && j > i + past) return false;
    if (args_.causal == Causal::top_left && j > i) return false;
    // The window is aligned as causal is: from the end unless top-left was chosen.
    const int64_t distance = j - i - (args_.causal == Causal::top_left ? 0 : past);
    if (args_.window_left >= 0 && distance < -args_.window_left) return false;
    if (args_.window_right >= 0 && distance > args_.window_right) return false;
    if (!args_.keep_mask.empty() && broadcast(args_.keep_mask, b, h, i, j) == 0) return false;
    if (!args_.block_mask.empty() && broadcast(args_.block_mask, b, h, i, j) != 0) return false;
    if (!args_.key_keep_mask.empty() && per_token(args_.key_keep_mask, b, j) == 0) return false;
    if (!args_.key_block_mask.empty() && per_token(args_.key_block_mask, b, j) != 0) return false;
    if (!args_.key_lengths.empty() && static_cast<double>(j) >= element(args_.key_lengths, {b})) return false;
    // Minus infinity hides.
    if (!args_.add_mask.empty() && broadcast(args_.add_mask, b, h, i, j) == -kInfinity) return false;
    if (!args_.dense_bias.empty() && broadcast(args_.dense_bias, b, h, i, j) == -kInfinity) return false;
    return args_.key_add_mask.empty() || per_token(args_.key_add_mask, b, j) != -kInfinity;
  }

  Real logit(int64_t b, int64_t h, int64_t i, int64_t j) const {
    const int64_t kv_head = h / (heads_ / kv_heads_);
    const Real *q = &q_[static_cast<size_t>(((b * heads_ + h) * queries_ + i) * dim_)];
    const Real *k = &k_[static_cast<size_t>(((b * kv_heads_ + kv_head) * keys_ + j) * dim_)];
    const Real scale = args_.scale ? static_cast<Real>(*args_.scale)
                                   : static_cast<Real>(1 / std::sqrt(static_cast<double>(dim_)));
    const Real before = scaled_query_ ? scale : 1, after = scaled_query_ ? 1 : scale;
    Real dot = 0;
    for (int64_t d : channel_order_) dot += before * q[d] * k[d];
    Real s = after * dot;
    const Real softcap = static_cast<Real>(args_.softcap);
    if (softcap > 0) s = softcap * std::tanh(s / softcap);
    const Position p_q = position_of(args_.q_positions, args_.q_position_mask, b, i);
    const Position p_k = position_of(args_.k_positions, args_.k_position_mask, b, j);
    if (p_q.applies && p_k.applies) {
      for (const LogitBranch *branch : args_.branches) {
        if (branch) s = with_branch(*branch, s, b, h, i, j, p_q.value, p_k.value);
      }
    }
    if (!args_.dense_bias.empty()) s += static_cast<Real>(broadcast(args_.dense_bias, b, h, i, j));
    if (!args_.add_mask.empty()) s += static_cast<Real>(broadcast(args_.add_mask, b, h, i, j));
    if (!args_.key_add_mask.empty()) s += static_cast<Real>(per_token(args_.key_add_mask, b, j));
    return s;
  }

  Real with_branch(const LogitBranch &branch, Real s, int64_t b, int64_t h, int64_t i, int64_t j, double p_q,
                   double p_k) const {
    if (const auto *relative = dynamic_cast<const Relative *>(&branch)) {
      const TensorView &table = relative->table();
      const int64_t m = (table.size(-1) - 1) / 2;
      const double limit = static_cast<double>(m);
      const int64_t index = static_cast<int64_t>(std::clamp(p_q - p_k, -limit, limit)) + m;
      const Real value = static_cast<Real>(
          table.rank() == 1 ? element(table, {index}) : element(table, {table.size(0) == 1 ? 0 : h, index}));
      return relative->sign() == Relative::Sign::minus ? s - value : s + value;
    }
    if (const auto *alibi = dynamic_cast<const Alibi *>(&branch)) {
      return s - static_cast<Real>(element(alibi->slopes(), {h})) * static_cast<Real>(std::abs(p_q - p_k));
    }
    if (const auto *t5 = dynamic_cast<const T5 *>(&branch)) {
      // Beyond 2^40 everything is in the last bucket; the clamp keeps the conversion defined.
      const double relative_position = std::clamp(p_k - p_q, -0x1p40, 0x1p40);
      const int64_t bucket = t5_bucket(static_cast<int64_t>(relative_position), t5->table().size(0),
                                       t5->max_distance(), t5->bidirectional());
      return s + static_cast<Real>(element(t5->table(), {bucket, h}));
    }
    for (const BranchFormula &formula : own_) {
      if (formula.name == branch.name())
        return static_cast<Real>(formula.logit(static_cast<double>(s), b, h, i, j, p_q, p_k));
    }
    fail("branches: the reference has no formula of '", branch.name(), "'");
  }

  // Fills p and returns the log of the sum of exponentials. Nothing of a hidden key is looked at.
  Real softmax(int64_t b, int64_t h, int64_t i, std::vector<Real> &p) const {
    Real maximum = static_cast<Real>(-kInfinity), sum = 0;
    std::vector<bool> seen(p.size());
    for (int64_t j = 0; j < keys_; ++j) {
      const size_t at = static_cast<size_t>(j);
      p[at] = 0;
      seen[at] = visible(b, h, i, j);
      if (!seen[at]) continue;
      p[at] = logit(b, h, i, j);
      maximum = std::max(maximum, p[at]);
    }
    if (std::find(seen.begin(), seen.end(), true) == seen.end()) return static_cast<Real>(-kInfinity);
    for (int64_t key : key_order_) {
      const size_t j = static_cast<size_t>(key);
      if (seen[j]) sum += p[j] = std::exp(p[j] - maximum);
    }
    for (Real &x : p) x /= sum;
    return maximum + std::log(sum);
  }

  void weighted_values(int64_t b, int64_t h, const std::vector<Real> &p, std::vector<Real> &out) const {
    const int64_t kv_head = h / (heads_ / kv_heads_);
    const Real *values = v_.data() + (b * kv_heads_ + kv_head) * keys_ * value_dim_;
    std::fill(out.begin(), out.end(), Real(0));
    for (int64_t j : key_order_) {
      const Real *v = values + j * value_dim_;
      // Also skips values of hidden keys, which may hold anything.
      if (p[static_cast<size_t>(j)] == 0) continue;
      Real weight = p[static_cast<size_t>(j)];
      if (rounded_weights_) weight = static_cast<Real>(stored(weight));
      for (int64_t d = 0; d < value_dim_; ++d) out[static_cast<size_t>(d)] += weight * v[d];
    }
  }

  const AttendArgs &args_;
  const std::vector<BranchFormula> &own_;
  const bool rounded_, scaled_query_, rounded_weights_;
  const int64_t batch_, heads_, kv_heads_, queries_, keys_, dim_, value_dim_;
  const std::vector<Real> q_, k_, v_;  // contiguous, rotated
  const std::vector<int64_t> channel_order_, key_order_;
};

double largest_error(const std::vector<double> &a, const std::vector<double> &b, size_t *where = nullptr) {
  double largest = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const bool same = a[i] == b[i] || (std::isnan(a[i]) && std::isnan(b[i]));
    double error = same ? 0 : std::abs(a[i] - b[i]);
    if (std::isnan(error)) error = kInfinity;
    if (error > largest) {
      largest = error;
      if (where) *where = i;
    }
  }
  return largest;
}

std::string index_text(const TensorView &tensor, size_t flat) {
  std::string text;
  int64_t rest = static_cast<int64_t>(flat);
  for (int d = tensor.rank() - 1; d >= 0; --d) {
    text = std::to_string(rest % tensor.size(d)) + (text.empty() ? "" : ", ") + text;
    rest /= tensor.size(d);
  }
  return "(" + text + ")";
}

}  // namespace

AttentionResult reference_attention(const AttendArgs &args, const std::vector<BranchFormula> &own) {
  return Attention<double>(args, own, false).run();
}

AttentionResult naive_attention(const AttendArgs &args, const std::vector<BranchFormula> &own) {
  return Attention<float>(args, own, true).run();
}

std::vector<double> values_of(const TensorView &tensor) {
  const Tensor copied = copy_of(tensor, DType::f64);
  return std::vector<double>(copied.as<double>(), copied.as<double>() + copied.view().num_elements());
}

Tensor reference_rotated(const TensorView &x, const Rope &rope, const TensorView &positions,
                         const TensorView &position_mask) {
  Tensor wide = copy_of(x, DType::f64);
  double *row = wide.as<double>();
  for (int64_t b = 0; b < x.size(0); ++b) {
    for (int64_t h = 0; h < x.size(1); ++h) {
      for (int64_t t = 0; t < x.size(2); ++t, row += x.size(3)) {
        const Position p = position_of(positions, position_mask, b, t);
        if (p.applies) rotate(row, rope, p.value);
      }
    }
  }
  return wide.to(x.dtype());
}

Comparison compare(const std::string &what, const TensorView &actual, const std::vector<double> &reference,
                   const std::vector<double> &naive) {
  Comparison result;
  std::ostringstream text;
  const std::vector<double> values = values_of(actual);
  if (values.size() != reference.size()) {
    text << what << ": expected " << reference.size() << " elements, got " << actual.shape_text();
    result.ok = false;
    result.text = text.str();
    return result;
  }
  size_t worst = 0;
  result.error = largest_error(values, reference, &worst);
  double largest = 0;
  for (double x : reference) largest = std::max(largest, std::isfinite(x) ? std::abs(x) : 0);
  result.naive_error = std::max(largest_error(naive, reference), largest * FLT_EPSILON);
  result.bound = 2 * result.naive_error + 1e-6;
  result.ok = result.error <= result.bound && std::isfinite(result.error);
  text.precision(9);
  text << what << " " << actual.shape_text() << " " << name_of(actual.dtype()) << ": ";
  if (values.empty()) {
    text << "no elements";
  } else {
    text << "largest error " << result.error << " at " << index_text(actual, worst) << ": got "
         << values[worst] << ", reference " << reference[worst] << ", naive " << naive[worst] << "; allowed "
         << result.bound << " (naive error " << result.naive_error << ")";
  }
  result.text = text.str();
  return result;
}

AccuracyRule::AccuracyRule(const AttendArgs &args, const std::vector<BranchFormula> &own)
    : args_(args),
      own_(own),
      reference_(reference_attention(args, own_)),
      naive_(naive_attention(args, own_)) {}

Comparison AccuracyRule::compare(const AttendArgs &outputs) {
  constexpr int kMostVariants = 16;
  Comparison result = compare_once(outputs);
  while (!result.ok && std::isfinite(result.error) && variants_ < kMostVariants) {
    const uint64_t order = static_cast<uint64_t>(variants_++);
    const AttentionResult other = Attention<float>(args_, own_, true, order).run();
    keep_worse(naive_.out, other.out, reference_.out);
    keep_worse(naive_.lse, other.lse, reference_.lse);
    keep_worse(naive_.weights, other.weights, reference_.weights);
    result = compare_once(outputs);
  }
  return result;
}

Comparison AccuracyRule::compare_once(const AttendArgs &outputs) const {
  Comparison result = oracle::compare("out", outputs.out, reference_.out, naive_.out);
  const auto also = [&](const Comparison &other) {
    if (!other.ok && result.ok) result = other;
  };
  if (!outputs.lse.empty()) also(oracle::compare("lse", outputs.lse, reference_.lse, naive_.lse));
  if (outputs.need_weights != Weights::none) {
    also(oracle::compare("weights", outputs.weights, reference_.weights, naive_.weights));
  }
  return result;
}

Comparison compare_outputs(const AttendArgs &args, const std::vector<BranchFormula> &own) {
  return AccuracyRule(args, own).compare(args);
}

}  // namespace posattn::oracle
