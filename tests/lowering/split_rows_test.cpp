// Rows of float32 as three numbers of bfloat16: the kernel's arithmetic, compiled for the host, and that of
// weights.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include "Halide.h"
#include "runtime/cuda/split_float.h"
#include "runtime/float_bits.h"

namespace posattn::cuda {
namespace {

using Halide::Runtime::Buffer;

// (batch, token, form.width()) of the generator.
std::vector<uint16_t> split_by_kernel(Buffer<float> &x, const SplitForm &form) {
  static const Halide::Callable kernel = Halide::create_callable_from_generator(
      Halide::GeneratorContext(Halide::get_jit_target_from_environment()), "split_rows");
  const int tokens = x.dim(1).extent(), batches = x.dim(2).extent(), group = static_cast<int>(form.group) / 2;
  Buffer<uint32_t> out(group, SplitForm::kProducts, form.groups, tokens, batches);
  out.fill(0xffffffffu);
  EXPECT_EQ(kernel(x, out), 0);
  std::vector<uint16_t> words(out.number_of_elements() * 2);
  std::memcpy(words.data(), out.data(), words.size() * sizeof(uint16_t));
  return words;
}

TEST(SplitForm, GroupsAreEvenAndPadded) {
  for (const int64_t features : {1, 15, 16, 17, 383, 384, 385, 512, 768, 1023, 1025, 4096, 5000}) {
    const SplitForm form(features);
    EXPECT_LE(form.group, SplitForm::kMostSummed) << features;
    EXPECT_GE(form.group * form.groups, features);
    EXPECT_LT(form.group * form.groups - features, 16 * form.groups) << features;
    EXPECT_EQ(form.width() * 2 % SplitForm::kAlignment, 0) << features;
    EXPECT_EQ(form.summed() * 2 % SplitForm::kAlignment, 0) << features;
  }
}

// Of both the kernel and split_weight(): what is where, and that nothing is lost.
TEST(SplitRows, AreExactAndWhereTheirPartnersAre) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::uniform_int_distribution<int> exponent(-60, 60);
  for (const int features : {1, 7, 32, 100, 385, 768, 1030}) {
    SCOPED_TRACE(features);
    const SplitForm form(features);
    constexpr int kTokens = 3, kBatches = 2;
    // Tokens are further apart than their features, by an odd step.
    Buffer<float> padded(features + 3, kTokens, kBatches);
    padded.for_each_value([&](float &value) { value = std::ldexp(normal(random), exponent(random)); });
    Buffer<float> x = padded.cropped(0, 1, features);
    x.set_min(0, 0, 0);
    const std::vector<uint16_t> words = split_by_kernel(x, form);
    Tensor weight(DType::f32, {kBatches * kTokens, features});
    for (int row = 0; row < kBatches * kTokens; row++) {
      for (int i = 0; i < features; i++)
        weight.as<float>()[row * features + i] = x(i, row % kTokens, row / kTokens);
    }
    const Tensor split = split_weight(weight.view(), form);
    for (int64_t row = 0; row < kBatches * kTokens; row++) {
      const uint16_t *const a = words.data() + row * form.width(), *const b = split.as<uint16_t>() +
                                                                              row * form.width();
      for (int64_t i = 0; i < form.groups * form.group; i++) {
        const int64_t at = i / form.group * form.summed() + i % form.group;
        const auto product = [&](const uint16_t *of, int p) { return of[at + p * form.group]; };
        if (i >= features) {
          for (int p = 0; p < 6; p++) ASSERT_EQ(product(a, p) | product(b, p), 0) << i << " product " << p;
          continue;
        }
        const double exact = weight.as<float>()[row * features + i];
        // All pairs of parts but the smallest, the large ones last.
        const uint16_t parts[] = {product(a, 5), product(a, 2), product(a, 0)};
        ASSERT_EQ(double{bf16_to_float(parts[0])} + bf16_to_float(parts[1]) + bf16_to_float(parts[2]), exact)
            << i;
        const int of_x[] = {2, 0, 1, 1, 0, 0}, of_weight[] = {0, 2, 1, 0, 1, 0};
        for (int p = 0; p < 6; p++) {
          ASSERT_EQ(product(a, p), parts[of_x[p]]) << i << " product " << p;
          ASSERT_EQ(product(b, p), parts[of_weight[p]]) << i << " product " << p;
        }
        // Parts are small beside those before them.
        ASSERT_LE(std::abs(bf16_to_float(parts[1])), std::ldexp(std::abs(exact), -8));
        ASSERT_LE(std::abs(bf16_to_float(parts[2])), std::ldexp(std::abs(exact), -16));
      }
    }
  }
}

TEST(SplitRows, KeepWhatIsNotFiniteAndTheLargest) {
  const uint32_t words[] = {0x7f800000u, 0xff800000u, 0x7fc00000u, 0x7f800001u, 0xff801234u, 0x7fffffffu,
                            0x7f7fffffu, 0xff7fffffu, 0x7f7f8000u, 0x7f7f7fffu, 0x00000000u, 0x80000000u,
                            0x00000001u, 0x807fffffu, 0x00800000u, 0x0c123457u, 0x3f800000u, 0x3fffffffu};
  const int count = static_cast<int>(std::size(words));
  const SplitForm form(count);
  Buffer<float> x(count, 1, 1);
  for (int i = 0; i < count; i++) x(i, 0, 0) = float_of(words[i]);
  const std::vector<uint16_t> split = split_by_kernel(x, form);
  for (int i = 0; i < count; i++) {
    SCOPED_TRACE(testing::Message() << std::hex << words[i]);
    const auto part = [&](int product) { return bf16_to_float(split[product * form.group + i]); };
    const float value = float_of(words[i]), first = part(5), second = part(2), third = part(0);
    if (std::isfinite(value)) {
      ASSERT_TRUE(std::isfinite(first) && std::isfinite(second) && std::isfinite(third));
      const double sum = double{first} + second + third;
      // bfloat16's last bit of its smallest numbers.
      EXPECT_LE(std::abs(sum - value), std::abs(value) < 0x1p-109f ? 0x1p-133 : 0);
    } else {
      EXPECT_EQ(bits_of(first) | bits_of(second), 0u);
      EXPECT_EQ(std::isnan(third), std::isnan(value));
      if (!std::isnan(value)) {
        EXPECT_EQ(third, value);
      }
    }
  }
}

TEST(SplitKeeps, WeightsOfAnyOrdinarySize) {
  Tensor weight(DType::f32, {3, 5});
  EXPECT_TRUE(split_keeps(weight.view())) << "zeros";
  float *const numbers = weight.as<float>();
  // What is tiny beside others of its row does not matter.
  numbers[5] = 1, numbers[6] = 1e-40f, numbers[7] = -1e19f;
  EXPECT_TRUE(split_keeps(weight.view()));
  for (const float bad :
       {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN(), -1e20f, 3e38f}) {
    numbers[8] = bad;
    EXPECT_FALSE(split_keeps(weight.view())) << bad;
  }
  numbers[8] = 0;
  for (const float tiny : {1e-20f, 1e-30f, -1e-38f, 1e-42f}) {
    numbers[12] = tiny;
    EXPECT_FALSE(split_keeps(weight.view())) << tiny;
  }
  numbers[12] = 1e-19f;
  EXPECT_TRUE(split_keeps(weight.view()));
}

TEST(SplitPays, OnlyWhereTensorCoresAreFarAhead) {
  for (const int capability : {80, 90, 100, 103}) EXPECT_TRUE(split_pays(capability, 4096, 512, 512));
  for (const int capability : {75, 86, 89, 120}) EXPECT_FALSE(split_pays(capability, 4096, 512, 512));
  EXPECT_FALSE(split_pays(90, 1, 4096, 4096)) << "decoding waits for weights";
  EXPECT_FALSE(split_pays(90, 4096, 1, 4096));
  EXPECT_FALSE(split_pays(90, 4096, 4096, 64));
}

// The products of tensor cores as NVIDIA's are known to sum: 16 at a time, with the sum so far, cut off two
// bits beyond the largest one's last and the result at its own.
float tensor_core_sum(const uint16_t *a, const uint16_t *b, int64_t count) {
  double sum = 0;
  for (int64_t first = 0; first < count; first += 16) {
    double terms[17] = {sum}, largest = std::abs(sum);
    for (int i = 0; i < 16; i++) {
      terms[i + 1] = double{bf16_to_float(a[first + i])} * bf16_to_float(b[first + i]);
      largest = std::max(largest, std::abs(terms[i + 1]));
    }
    if (largest == 0) continue;
    const double last = std::ldexp(1.0, std::ilogb(largest) - 25);
    sum = 0;
    for (const double term : terms) sum += std::trunc(term / last) * last;
    if (sum != 0) {
      const double own = std::ldexp(1.0, std::ilogb(sum) - 23);
      sum = std::trunc(sum / own) * own;
    }
  }
  return static_cast<float>(sum);
}

// The table in split_float.h: no larger errors than plain float32's.
TEST(SplitProducts, AreAsAccurateAsFloat32) {
  for (const int64_t features : {33, 512, 768, 1030, 4096}) {
    for (const double scale : {1.0, 1e-12, 1e12}) {
      SCOPED_TRACE(testing::Message() << features << " features times " << scale);
      const SplitForm form(features);
      constexpr int64_t kRows = 24;
      std::mt19937 random(2);
      std::normal_distribution<double> normal;
      Tensor x(DType::f32, {kRows, features}), w(DType::f32, {kRows, features});
      const double unit = 1 / std::sqrt(static_cast<double>(features));
      for (int64_t i = 0; i < kRows * features; i++) {
        x.as<float>()[i] = static_cast<float>(normal(random) / scale);
        w.as<float>()[i] = static_cast<float>(normal(random) * unit * scale);
      }
      Buffer<float> rows(x.as<float>(), static_cast<int>(features), static_cast<int>(kRows), 1);
      const std::vector<uint16_t> a = split_by_kernel(rows, form);
      const Tensor b = split_weight(w.view(), form);
      double plain_error = 0, split_error = 0;
      for (int64_t i = 0; i < kRows; i++) {
        for (int64_t j = 0; j < kRows; j++) {
          double exact = 0;
          float plain = 0, split = 0;
          for (int64_t k = 0; k < features; k++) {
            const float p = x.as<float>()[i * features + k], q = w.as<float>()[j * features + k];
            exact += double{p} * q;
            plain = std::fma(p, q, plain);
          }
          for (int64_t group = 0; group < form.groups; group++) {
            const int64_t first = group * form.summed();
            split += tensor_core_sum(a.data() + i * form.width() + first,
                                     b.as<uint16_t>() + j * form.width() + first, form.summed());
          }
          plain_error = std::max(plain_error, std::abs(plain - exact));
          split_error = std::max(split_error, std::abs(split - exact));
        }
      }
      EXPECT_LE(split_error, plain_error);
      EXPECT_GT(split_error, 0);
    }
  }
}

}  // namespace
}  // namespace posattn::cuda
