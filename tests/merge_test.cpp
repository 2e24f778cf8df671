// Merged splits equal the double reference; splits that saw nothing bring nothing; nothing outside of the
// tensors is touched.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tests/kernel_harness.h"

namespace posattn::testing {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

struct Case {
  int d, queries, row_heads, row_groups, batch, splits;
  double lse_scale;
  int hidden;  // of 4 splits, how many are hidden; 4 hides all splits of every other row
};

const Case kCases[] = {
    {0, 1, 1, 1, 1, 1, 1, 0},   {0, 1, 4, 2, 1, 3, 3, 1},   {0, 17, 2, 3, 2, 5, 10, 2},
    {-1, 3, 1, 2, 2, 9, 30, 4}, {5, 4, 3, 1, 2, 33, 1, 1},  {0, 33, 1, 8, 1, 2, 80, 4},
    {0, 2, 8, 1, 1, 70, 5, 0},  {1, 1, 1, 1, 1, 4, 300, 3},
};

TEST(Merge, EqualsReference) {
  const auto kernels = runnable_kernels("merge");
  ASSERT_FALSE(kernels.empty());
  for (const KernelInfo *kernel : kernels) {
    for (const Case &c : kCases) {
      for (const auto guard : {GuardedTensor::Guard::after, GuardedTensor::Guard::before}) {
        SCOPED_TRACE(describe(*kernel) + " queries " + std::to_string(c.queries) + " splits " +
                     std::to_string(c.splits) + " d " + std::to_string(c.d));
        const DType type = type_named(kernel->type);
        const int d = c.d <= 0 ? kernel->head_dim + c.d : c.d, rows = c.queries * c.row_heads;
        const int heads = c.row_heads * c.row_groups;
        std::mt19937 random(11);
        GuardedTensor partial(DType::f32, {d, rows, c.splits, c.row_groups, c.batch}, {}, guard);
        GuardedTensor partial_lse(DType::f32, {rows, c.splits, c.row_groups, c.batch}, {}, guard);
        partial.fill_normal(random);
        partial_lse.fill_normal(random, c.lse_scale);
        partial_lse.for_each([&](const std::vector<int> &i) {
          const bool hide = c.hidden == 4 ? i[0] % 2 == 0 : int(random() % 4) < c.hidden;
          if (hide) partial_lse.set(i, -kInfinity);
        });
        // Heads inside of rows, as a layer's output has them.
        GuardedTensor out(type, {d, c.queries, heads, c.batch},
                          {1, d * heads + 3, d, (d * heads + 3) * c.queries}, guard);
        GuardedTensor lse(DType::f32, {c.queries, heads, c.batch}, {}, guard);
        ASSERT_EQ(KernelCall(*kernel)
                      .number("row_heads", c.row_heads)
                      .tensor("partial_out", partial)
                      .tensor("partial_lse", partial_lse)
                      .tensor("out", out)
                      .tensor("lse", lse)
                      .run(),
                  0);
        lse.for_each([&](const std::vector<int> &i) {
          const int row = i[0] * c.row_heads + i[1] % c.row_heads, group = i[1] / c.row_heads;
          double maximum = -kInfinity, sum = 0;
          for (int s = 0; s < c.splits; s++) {
            maximum = std::max(maximum, partial_lse.get({row, s, group, i[2]}));
          }
          std::vector<double> mean(size_t(d), 0.0);
          for (int s = 0; s < c.splits && maximum > -kInfinity; s++) {
            const double w = std::exp(partial_lse.get({row, s, group, i[2]}) - maximum);
            sum += w;
            for (int k = 0; k < d; k++) mean[size_t(k)] += w * partial.get({k, row, s, group, i[2]});
          }
          if (sum == 0) {
            ASSERT_EQ(lse.get(i), -kInfinity);
          } else {
            const double expected = maximum + std::log(sum);
            ASSERT_NEAR(lse.get(i), expected, 1e-6 + 1e-7 * std::fabs(expected));
          }
          for (int k = 0; k < d; k++) {
            const double expected = sum == 0 ? 0 : mean[size_t(k)] / sum;
            // Weights are as exact as the float32 logarithms allow.
            const double tolerance =
                2e-6 + 2e-7 * std::fabs(maximum) + rounding_of(type) * std::fabs(expected);
            ASSERT_NEAR(out.get({k, i[0], i[1], i[2]}), expected, sum == 0 ? 0 : tolerance);
          }
        });
        EXPECT_TRUE(out.untouched());
        EXPECT_TRUE(lse.untouched());
      }
    }
  }
}

// One split is passed through, exactly.
TEST(Merge, OneSplit) {
  for (const KernelInfo *kernel : runnable_kernels("merge")) {
    SCOPED_TRACE(describe(*kernel));
    const int d = kernel->head_dim;
    std::mt19937 random(3);
    GuardedTensor partial(DType::f32, {d, 6, 1, 2, 1}), partial_lse(DType::f32, {6, 1, 2, 1});
    partial.fill_normal(random);
    partial_lse.fill_normal(random, 20);
    GuardedTensor out(type_named(kernel->type), {d, 3, 4, 1}), lse(DType::f32, {3, 4, 1});
    ASSERT_EQ(KernelCall(*kernel)
                  .number("row_heads", 2)
                  .tensor("partial_out", partial)
                  .tensor("partial_lse", partial_lse)
                  .tensor("out", out)
                  .tensor("lse", lse)
                  .run(),
              0);
    GuardedTensor rounded(out.type(), {d, 6, 1, 2, 1});
    rounded.fill([&](const std::vector<int> &i) { return partial.get(i); });
    out.for_each([&](const std::vector<int> &i) {
      ASSERT_EQ(out.bits(i), rounded.bits({i[0], i[1] * 2 + i[2] % 2, 0, i[2] / 2, 0}));
    });
    lse.for_each([&](const std::vector<int> &i) {
      ASSERT_EQ(lse.get(i), partial_lse.get({i[0] * 2 + i[1] % 2, 0, i[1] / 2, 0}));
    });
  }
}

// A NaN among the values reaches the output.
TEST(Merge, NanStays) {
  for (const KernelInfo *kernel : runnable_kernels("merge")) {
    SCOPED_TRACE(describe(*kernel));
    const int d = kernel->head_dim;
    GuardedTensor partial(DType::f32, {d, 1, 3, 1, 1}), partial_lse(DType::f32, {1, 3, 1, 1});
    partial.fill([](const std::vector<int> &i) { return i[0] == 3 && i[2] == 1 ? std::nan("") : 1.0; });
    partial_lse.fill([](const std::vector<int> &i) { return i[1]; });
    GuardedTensor out(type_named(kernel->type), {d, 1, 1, 1}), lse(DType::f32, {1, 1, 1});
    ASSERT_EQ(KernelCall(*kernel)
                  .number("row_heads", 1)
                  .tensor("partial_out", partial)
                  .tensor("partial_lse", partial_lse)
                  .tensor("out", out)
                  .tensor("lse", lse)
                  .run(),
              0);
    out.for_each([&](const std::vector<int> &i) { ASSERT_EQ(std::isnan(out.get(i)), i[0] == 3) << i[0]; });
  }
}

}  // namespace
}  // namespace posattn::testing
