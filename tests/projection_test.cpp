// Linear layers' kernel against double, at sizes around its tiles; rows that do not depend on other rows; and
// nothing outside of the tensors is touched.
#include <gtest/gtest.h>

#include <cmath>
#include <memory>

#include "tests/kernel_harness.h"

namespace posattn::testing {
namespace {

struct Case {
  int tokens, batch, n, k;
  int addend;  // 0: none, 1: one for each token of each batch, 2: one row for all
};

const Case kCases[] = {{1, 1, 1, 1, 0},     {1, 1, 64, 64, 1},   {3, 1, 33, 17, 2},   {1, 5, 100, 31, 1},
                       {8, 1, 96, 48, 0},   {4, 3, 32, 16, 2},   {13, 2, 49, 130, 1}, {200, 1, 70, 257, 0},
                       {1, 97, 161, 40, 1}, {7, 29, 320, 15, 2}, {2, 3, 800, 300, 0}};

bool takes_words(const KernelInfo &kernel) {
  const halide_filter_metadata_t &metadata = *kernel.metadata();
  for (int i = 0; i < metadata.num_arguments; i++) {
    if (metadata.arguments[i].name == std::string("weights")) {
      return metadata.arguments[i].type.code == halide_type_int;
    }
  }
  return false;
}

class Problem {
 public:
  Problem(const KernelInfo &kernel, const Case &c, GuardedTensor::Guard guard)
      : kernel_(kernel),
        c_(c),
        type(type_named(kernel.type)),
        pairs(takes_words(kernel) ? 2 : 1),
        width(fixed_extent(kernel, "weights", 0)),
        unit(fixed_extent(kernel, "weights", 1)),
        panels((c.n + width - 1) / width),
        // x: tokens of a batch apart by more than a row, and batches of more than its tokens.
        x(type, {c.k, c.tokens, c.batch}, {1, c.k + 3, (c.k + 3) * c.tokens + 8}, guard),
        addend(DType::f32, {c.k, c.tokens, c.batch},
               c.addend == 2 ? std::vector<int>{1, 0, 0} : std::vector<int>{1, c.k, c.k * c.tokens}, guard),
        weights(pairs == 2 ? DType::i32 : type,
                {width, (c.k + unit * pairs - 1) / (unit * pairs) * unit, panels}, {}, guard),
        bias(DType::f32, {panels * width}, {}, guard),
        out(type, {c.n, c.tokens * c.batch}, {1, c.n + 5}, guard) {
    std::mt19937 random(5);
    x.fill_normal(random);
    addend.fill_normal(random);
    const double scale = 1 / std::sqrt(double(c.k));
    std::normal_distribution<double> normal(0, scale);
    weights.for_each([&](const std::vector<int> &i) {
      const auto value = [&](int k) { return k < c.k && i[2] * width + i[0] < c.n ? normal(random) : 0.0; };
      if (pairs == 1) {
        weights.set(i, value(i[1]));
      } else {
        const uint32_t low = float_to_bf16(float(value(2 * i[1])));
        weights.set_bits(i, low | uint32_t(float_to_bf16(float(value(2 * i[1] + 1)))) << 16);
      }
    });
    bias.fill([&](const std::vector<int> &i) { return i[0] < c.n ? normal(random) : 0.0; });
  }

  int run() {
    KernelCall call(kernel_);
    call.tensor("x", x).tensor("weights", weights).tensor("bias", bias).tensor("out", out);
    call.number("has_addend", c_.addend != 0);
    c_.addend ? call.tensor("addend", addend) : call.absent("addend");
    return call.run();
  }
  // out in double, and the sums of the absolute values of its terms.
  void reference(std::vector<double> &value, std::vector<double> &magnitude) const {
    const size_t depth = size_t(c_.k), features = size_t(c_.n), rows = size_t(c_.tokens) * c_.batch;
    std::vector<double> input(rows * depth), weight(features * depth);
    x.for_each([&](const std::vector<int> &i) {
      double sum = x.get(i) + (c_.addend ? addend.get(i) : 0.0);
      // AMX multiplies bfloat16.
      if (pairs == 2) sum = bf16_to_float(float_to_bf16(float(sum)));
      input[size_t(i[2] * c_.tokens + i[1]) * depth + i[0]] = sum;
    });
    weights.for_each([&](const std::vector<int> &i) {
      const size_t n = size_t(i[2] * width + i[0]);
      for (int half = 0; half < pairs; half++) {
        const int k = i[1] * pairs + half;
        if (n >= features || k >= c_.k) continue;
        weight[n * depth + size_t(k)] =
            pairs == 1 ? weights.get(i) : double{bf16_to_float(uint16_t(weights.bits(i) >> (16 * half)))};
      }
    });
    for (size_t row = 0; row < rows; row++) {
      for (size_t n = 0; n < features; n++) {
        double sum = bias.get({int(n)}), absolute = std::fabs(sum);
        for (size_t k = 0; k < depth; k++) {
          const double term = input[row * depth + k] * weight[n * depth + k];
          sum += term, absolute += std::fabs(term);
        }
        value.push_back(sum), magnitude.push_back(absolute);
      }
    }
  }

 private:
  const KernelInfo &kernel_;
  Case c_;

 public:
  DType type;
  int pairs;  // numbers in an element of the weights
  int width, unit, panels;
  GuardedTensor x, addend, weights, bias, out;
};

TEST(Projection, EqualsReference) {
  const auto kernels = runnable_kernels("projection");
  ASSERT_FALSE(kernels.empty());
  for (const KernelInfo *kernel : kernels) {
    for (const Case &c : kCases) {
      for (const auto guard : {GuardedTensor::Guard::after, GuardedTensor::Guard::before}) {
        SCOPED_TRACE(describe(*kernel) + " tokens " + std::to_string(c.tokens) + " batch " +
                     std::to_string(c.batch) + " n " + std::to_string(c.n) + " k " + std::to_string(c.k));
        Problem p(*kernel, c, guard);
        ASSERT_EQ(p.run(), 0);
        std::vector<double> value, magnitude;
        p.reference(value, magnitude);
        p.out.for_each([&](const std::vector<int> &i) {
          const size_t at = size_t(i[1]) * size_t(c.n) + size_t(i[0]);
          const double tolerance = 4e-7 * magnitude[at] + rounding_of(p.type) * std::fabs(value[at]);
          ASSERT_NEAR(p.out.get(i), value[at], tolerance) << i[0] << " " << i[1];
        });
        EXPECT_TRUE(p.out.untouched());
      }
    }
  }
}

// Bit for bit the same row alone, among few and among many: decoding step by step equals a whole prefill.
TEST(Projection, RowsAreIndependent) {
  for (const KernelInfo *kernel : runnable_kernels("projection")) {
    SCOPED_TRACE(describe(*kernel));
    const Case whole{150, 1, 200, 300, 1};
    Problem all(*kernel, whole, GuardedTensor::Guard::after);
    ASSERT_EQ(all.run(), 0);
    for (const auto &[first, count] : {std::pair(0, 1), std::pair(149, 1), std::pair(7, 3), std::pair(31, 8),
                                       std::pair(50, 9), std::pair(12, 40), std::pair(3, 97)}) {
      Case c = whole;
      c.tokens = count;
      Problem part(*kernel, c, GuardedTensor::Guard::after);
      const auto copy_rows = [first = first](const GuardedTensor &from, GuardedTensor &to) {
        to.for_each([&](const std::vector<int> &i) {
          to.set_bits(i, from.bits({i[0], i[1] + first, i[2]}));
        });
      };
      copy_rows(all.x, part.x);
      copy_rows(all.addend, part.addend);
      part.weights.for_each(
          [&](const std::vector<int> &i) { part.weights.set_bits(i, all.weights.bits(i)); });
      part.bias.for_each([&](const std::vector<int> &i) { part.bias.set_bits(i, all.bias.bits(i)); });
      ASSERT_EQ(part.run(), 0);
      int wrong = 0;
      part.out.for_each([&, first = first](const std::vector<int> &i) {
        wrong += part.out.bits(i) != all.out.bits({i[0], i[1] + first});
      });
      EXPECT_EQ(wrong, 0) << "rows from " << first << ", " << count;
    }
  }
}

// What is not a number comes out as none, and only in its own row.
TEST(Projection, NanStaysInItsRow) {
  for (const KernelInfo *kernel : runnable_kernels("projection")) {
    SCOPED_TRACE(describe(*kernel));
    for (const int rows : {3, 40}) {
      Problem p(*kernel, {rows, 1, 50, 70, 0}, GuardedTensor::Guard::after);
      p.x.set({69, 2, 0}, std::nan(""));
      ASSERT_EQ(p.run(), 0);
      p.out.for_each([&](const std::vector<int> &i) { ASSERT_EQ(std::isnan(p.out.get(i)), i[1] == 2); });
    }
  }
}

}  // namespace
}  // namespace posattn::testing
