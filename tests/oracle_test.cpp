// What all other tests of attend() lean on: the reference against numbers known from elsewhere, the accuracy
// rule and the guards against the mistakes that they are there to find.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tests/case.h"
#include "tests/reference.h"

namespace posattn::oracle {
namespace {

const double kInfinity = std::numeric_limits<double>::infinity();

// One query of zeros against keys that do not matter: the logits are what is added to them.
struct Bare {
  explicit Bare(int64_t queries, int64_t keys)
      : query(DType::f32, {1, 1, queries, 2}),
        key(DType::f32, {1, 1, keys, 2}),
        value(DType::f32, {1, 1, keys, 1}) {
    args.query = query;
    args.key = key;
    args.value = value;
    args.need_weights = Weights::heads;
  }
  Tensor query, key, value;
  AttendArgs args;
};

TEST(Reference, TwoKeysByHand) {
  Bare bare(1, 2);
  bare.query.as<float>()[0] = 1;
  bare.key.as<float>()[0] = 3;
  bare.value.as<float>()[0] = 10;
  bare.value.as<float>()[1] = 20;
  bare.args.scale = 0.5f;
  const AttentionResult result = reference_attention(bare.args);
  const double p = std::exp(1.5) / (std::exp(1.5) + 1);
  EXPECT_NEAR(result.weights[0], p, 1e-15);
  EXPECT_NEAR(result.out[0], 10 * p + 20 * (1 - p), 1e-13);
  EXPECT_NEAR(result.lse[0], std::log(std::exp(1.5) + 1), 1e-15);
}

// From a table index to a logit: weights are a softmax of the logits, so their logarithms give the
// differences.
double logit_difference(const AttentionResult &result, size_t keys, size_t query, size_t a, size_t b) {
  return std::log(result.weights[query * keys + a]) - std::log(result.weights[query * keys + b]);
}

TEST(Reference, RelativeIsSubtractedAtQueryMinusKey) {
  Bare bare(3, 3);
  Tensor table(DType::f32, {5});
  for (int i = 0; i < 5; ++i) table.as<float>()[i] = static_cast<float>(i * i);  // offset -2 .. 2
  const Relative minus(table.view()), plus(table.view(), Relative::Sign::plus);
  bare.args.branches[0] = &minus;
  // Query 2: key 0 is at offset 2 (16), key 2 at offset 0 (4).
  EXPECT_NEAR(logit_difference(reference_attention(bare.args), 3, 2, 0, 2), -16.0 + 4, 1e-12);
  bare.args.branches[0] = &plus;
  EXPECT_NEAR(logit_difference(reference_attention(bare.args), 3, 2, 0, 2), 16.0 - 4, 1e-12);
}

TEST(Reference, AlibiSlopesOfThePaper) {
  float slopes[12];
  Alibi::default_slopes(8, slopes);
  for (int h = 0; h < 8; ++h) EXPECT_FLOAT_EQ(slopes[h], std::exp2f(-static_cast<float>(h + 1)));
  // 12 heads: those of 8, then every other one of 16.
  Alibi::default_slopes(12, slopes);
  EXPECT_FLOAT_EQ(slopes[7], 1.0f / 256);
  EXPECT_FLOAT_EQ(slopes[8], std::exp2f(-0.5f));
  EXPECT_FLOAT_EQ(slopes[11], std::exp2f(-3.5f));
}

// Distances at which T5's buckets change, as transformers computes them for 32 buckets and max_distance 128.
TEST(Reference, T5BucketsOfTransformers) {
  const int64_t keys = 200;
  const std::vector<int64_t> both = {1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91};
  const std::vector<int64_t> causal = {1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15, 16,
                                       19, 21, 24, 27, 31, 35, 40, 46, 52, 59, 67, 77, 87, 99, 113};
  for (bool bidirectional : {true, false}) {
    Bare bare(1, keys);
    Tensor table(DType::f32, {32, 1}), position(DType::i64, {1});
    for (int b = 0; b < 32; ++b) table.as<float>()[b] = static_cast<float>(b) / 4;
    position.as<int64_t>()[0] = keys - 1;  // all keys are at or before the query
    bare.args.q_positions = position;
    const T5 branch(table.view(), 128, bidirectional);
    bare.args.branches[0] = &branch;
    const AttentionResult result = reference_attention(bare.args);
    std::vector<int64_t> changes;
    for (int64_t distance = 1; distance < keys; ++distance) {
      const size_t key = static_cast<size_t>(keys - 1 - distance);
      if (std::abs(logit_difference(result, keys, 0, key, key + 1)) > 0.1) changes.push_back(distance);
    }
    EXPECT_EQ(changes, bidirectional ? both : causal);
    // Bidirectional: keys after the query have the upper half of the buckets.
    position.as<int64_t>()[0] = 0;
    const AttentionResult after = reference_attention(bare.args);
    const double one_after = logit_difference(after, keys, 0, 1, 0) * 4;
    EXPECT_NEAR(one_after, bidirectional ? 17 : 0, 1e-9);
  }
}

TEST(Reference, RopeTurnsPairs) {
  Tensor x(DType::f32, {1, 1, 2, 4}), inv_freq(DType::f32, {2}), position(DType::f64, {2}),
      mask(DType::boolean, {2});
  for (int i = 0; i < 8; ++i) x.as<float>()[i] = static_cast<float>(i % 4 + 1);
  const double quarter = 1.5707963267948966;
  inv_freq.as<float>()[0] = 1;
  position.as<double>()[0] = position.as<double>()[1] = quarter;
  mask.as<uint8_t>()[0] = 1;
  const auto rotated = [&](Rope::Layout layout) {
    return values_of(reference_rotated(x, {inv_freq, layout}, position, mask).view());
  };
  const std::vector<double> interleaved = rotated(Rope::Layout::interleaved),
                            half = rotated(Rope::Layout::half);
  const double expected_interleaved[] = {-2, 1, 3, 4, 1, 2, 3, 4},
               expected_half[] = {-3, 2, 1, 4, 1, 2, 3, 4};
  for (size_t i = 0; i < 8; ++i) {
    EXPECT_NEAR(interleaved[i], expected_interleaved[i], 1e-6) << i;
    EXPECT_NEAR(half[i], expected_half[i], 1e-6) << i;
  }
}

// A case with outputs that are right: the naive formula's.
class RightOutputs {
 public:
  RightOutputs() : case_(spec()), right_(naive_attention(case_.args())) {
    fill(case_.args().out, right_.out);
    fill(case_.args().lse, right_.lse);
    fill(case_.args().weights, right_.weights);
  }
  AttendArgs &args() { return case_.args(); }
  bool ok() { return compare_outputs(case_.args()).ok; }

 private:
  static CaseSpec spec() {
    CaseSpec s;
    s.seed = 5;
    s.causal = Causal::bottom_right;
    s.keep.given = true;
    s.hidden_rows = true;
    s.weights = Weights::heads;
    return s;
  }
  static void fill(const MutableTensorView &tensor, const std::vector<double> &values) {
    size_t i = 0;
    for_each_index(tensor,
                   [&](const std::vector<int64_t> &index) { set_element(tensor, index, values[i++]); });
  }
  Case case_;
  AttentionResult right_;
};

TEST(AccuracyRule, TakesWhatIsRight) {
  RightOutputs outputs;
  EXPECT_TRUE(outputs.ok());
}

TEST(AccuracyRule, FindsOneWrongElement) {
  for (double wrong : {std::nan(""), kInfinity, 0.5, 1e-3}) {
    RightOutputs outputs;
    const MutableTensorView &out = outputs.args().out;
    const std::vector<int64_t> index = {1, 3, 20, 17};
    const double was = values_of(out.select(0, 1).select(0, 3).select(0, 20).slice(0, 17, 18))[0];
    set_element(out, index, wrong < 1 ? was + wrong : wrong);
    EXPECT_FALSE(outputs.ok()) << wrong;
  }
  RightOutputs lse;
  set_element(lse.args().lse, {0, 0, 32}, 0);
  EXPECT_FALSE(lse.ok());
  RightOutputs weights;
  set_element(weights.args().weights, {0, 1, 2, 3}, 0.4);
  EXPECT_FALSE(weights.ok());
}

// A hidden row is 0 and -inf, neither a large negative number nor NaN.
TEST(AccuracyRule, FindsAHiddenRowThatIsNotHidden) {
  for (double wrong : {std::nan(""), -1e30, 0.0}) {
    RightOutputs outputs;
    set_element(outputs.args().lse, {0, 0, 2}, wrong);
    EXPECT_FALSE(outputs.ok()) << wrong;
  }
}

TEST(Guards, FindWritesThatBelongToNoElement) {
  MemoryLayout layout;
  layout.front = {0, 2};
  layout.back = {1, 3};
  for (int64_t byte : {-4 * 2 - 1, -4, 4 * 7, 4 * 7 + 3, 4 * 12 * 5, -1000, 4 * 12 * 6 + 1000}) {
    GuardedTensor tensor("x", DType::f32, {5, 7}, layout);
    tensor.freeze();
    for_each_index(tensor.view(),
                   [&](const std::vector<int64_t> &index) { set_element(tensor.view(), index, 1); });
    EXPECT_EQ(tensor.damage(true), "");
    EXPECT_NE(tensor.damage(false), "");
    tensor.view().as<uint8_t>()[byte] ^= 1;
    EXPECT_NE(tensor.damage(true), "") << byte;
  }
}

TEST(Guards, ReadsOutsideAreNan) {
  for (DType type : {DType::f32, DType::bf16, DType::f16, DType::f64}) {
    GuardedTensor tensor("x", type, {2, 3});
    const int64_t shape[] = {10}, strides[] = {1};
    const char *before = tensor.view().as<char>() - 10 * size_of(type);
    for (double x : values_of(TensorView(before, type, 1, shape, strides)))
      EXPECT_TRUE(std::isnan(x)) << x << name_of(type);
  }
}

TEST(Cases, ASeedAlwaysGivesTheSame) {
  const CaseSpec spec = random_spec(12345, {{}, {"alibi"}});
  EXPECT_EQ(describe(spec), describe(random_spec(12345, {{}, {"alibi"}})));
  Case a(spec), b(spec);
  EXPECT_EQ(reference_attention(a.args()).out, reference_attention(b.args()).out);
}

}  // namespace
}  // namespace posattn::oracle
