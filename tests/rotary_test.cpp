// The rotation kernel against double, in both layouts, with partial rotary dimensions, tokens that are passed
// through, and strides of every kind; nothing outside of the tensors is touched.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tests/kernel_harness.h"

namespace posattn::testing {
namespace {

struct Case {
  int d, pairs, tokens, heads, batch;
  bool shared;  // one table for all batches
};

const Case kCases[] = {{2, 1, 1, 1, 1, false},  {64, 32, 1, 5, 2, false},  {64, 32, 33, 3, 2, true},
                       {80, 20, 7, 2, 3, true}, {31, 9, 130, 1, 1, false}, {256, 128, 3, 2, 1, true},
                       {17, 8, 5, 71, 2, true}, {128, 64, 65, 2, 1, false}};

class Rotary : public ::testing::TestWithParam<std::tuple<bool, GuardedTensor::Guard>> {};

TEST_P(Rotary, EqualsReference) {
  const auto [interleaved, guard] = GetParam();
  const auto kernels = runnable_kernels("rotary");
  ASSERT_FALSE(kernels.empty());
  for (const KernelInfo *kernel : kernels) {
    for (const Case &c : kCases) {
      SCOPED_TRACE(describe(*kernel) + " d " + std::to_string(c.d) + " pairs " + std::to_string(c.pairs) +
                   " tokens " + std::to_string(c.tokens));
      const DType type = type_named(kernel->type);
      std::mt19937 random(9);
      // In: (batch, token, head, d) with gaps, as a stacked projection has it. Out: (batch, head, token, d).
      const int row = c.d + 6, in_token = row * c.heads;
      GuardedTensor x(type, {c.d, c.tokens, c.heads, c.batch}, {1, in_token, row, in_token * c.tokens},
                      guard);
      GuardedTensor y(type, {c.d, c.tokens, c.heads, c.batch},
                      {1, c.d, c.d * c.tokens + 3, (c.d * c.tokens + 3) * c.heads}, guard);
      const int batches = c.shared ? 0 : c.pairs * c.tokens;
      GuardedTensor cos(DType::f32, {c.pairs, c.tokens, c.batch}, {1, c.pairs, batches}, guard);
      GuardedTensor sin(DType::f32, {c.pairs, c.tokens, c.batch}, {1, c.pairs, batches}, guard);
      x.fill_normal(random);
      // Every fifth token has no position; its bits include NaNs.
      const auto passed = [](int token) { return token % 5 == 3; };
      x.for_each([&](const std::vector<int> &i) {
        if (passed(i[1])) x.set_bits(i, uint32_t(random()));
      });
      const auto angle = [](const std::vector<int> &i) { return 0.37 * i[0] + 1.1 * i[1]; };
      cos.fill([&](const std::vector<int> &i) {
        return passed(i[1]) ? std::numeric_limits<double>::infinity() : std::cos(angle(i));
      });
      sin.fill([&](const std::vector<int> &i) { return passed(i[1]) ? 0.0 : std::sin(angle(i)); });
      ASSERT_EQ(KernelCall(*kernel)
                    .tensor("x", x)
                    .tensor("cos", cos)
                    .tensor("sin", sin)
                    .number("interleaved", interleaved)
                    .tensor("y", y)
                    .run(),
                0);
      y.for_each([&, interleaved = interleaved](const std::vector<int> &i) {
        if (i[0] >= 2 * c.pairs || passed(i[1])) {
          ASSERT_EQ(y.bits(i), x.bits(i));
          return;
        }
        const int pair = interleaved ? i[0] / 2 : i[0] % c.pairs,
                  second = interleaved ? i[0] % 2 : i[0] / c.pairs;
        const int first_at = interleaved ? 2 * pair : pair;
        const int second_at = interleaved ? 2 * pair + 1 : pair + c.pairs;
        const double a = x.get({first_at, i[1], i[2], i[3]}), b = x.get({second_at, i[1], i[2], i[3]});
        const double co = cos.get({pair, i[1], i[3]}), si = sin.get({pair, i[1], i[3]});
        const double expected = second ? b * co + a * si : a * co - b * si;
        const double tolerance =
            1.3e-7 * (std::fabs(a) + std::fabs(b)) + rounding_of(type) * std::fabs(expected);
        ASSERT_NEAR(y.get(i), expected, tolerance) << i[0] << " " << i[1];
      });
      EXPECT_TRUE(y.untouched());
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Layouts, Rotary,
                         ::testing::Combine(::testing::Bool(),
                                            ::testing::Values(GuardedTensor::Guard::after,
                                                              GuardedTensor::Guard::before)));

}  // namespace
}  // namespace posattn::testing
