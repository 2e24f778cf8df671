// Linear: the projection kernels behind an interface that checks shapes, on views of every kind.
#include "runtime/linear.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>

#include "runtime/error.h"
#include "runtime/kernel_registry.h"
#include "runtime/threads.h"

namespace posattn {
namespace {

Tensor random_tensor(DType type, std::initializer_list<int64_t> shape, int seed) {
  Tensor values(DType::f32, shape);
  std::mt19937 random{std::mt19937::result_type(seed)};
  std::normal_distribution<float> normal;
  for (int64_t i = 0; i < values.view().num_elements(); i++) values.as<float>()[i] = normal(random);
  return values.to(type);
}

double at(const TensorView &view, std::initializer_list<int64_t> index) {
  TensorView one = view;
  for (int64_t i : index) one = one.select(0, i);
  return one.dtype() == DType::f32    ? *one.as<float>()
         : one.dtype() == DType::bf16 ? bf16_to_float(*one.as<uint16_t>())
                                      : f16_to_float(*one.as<uint16_t>());
}

void expect_linear(const TensorView &x, const TensorView &weight, const TensorView &bias,
                   const TensorView &addend, const TensorView &y, double rounding) {
  const std::string target = current_target();
  const bool multiplies_bf16 = x.dtype() == DType::bf16 && (target == "amx" || target == "avx512bf16");
  for (int64_t b = 0; b < x.size(0); b++) {
    for (int64_t t = 0; t < x.size(1); t++) {
      for (int64_t n = 0; n < weight.size(0); n++) {
        double sum = bias.empty() ? 0 : at(bias, {n}), magnitude = std::fabs(sum);
        for (int64_t k = 0; k < weight.size(1); k++) {
          double value = at(x, {b, t, k}) + (addend.empty() ? 0 : at(addend, {b, t, k}));
          if (multiplies_bf16) value = bf16_to_float(float_to_bf16(float(value)));
          sum += value * at(weight, {n, k}), magnitude += std::fabs(value * at(weight, {n, k}));
        }
        ASSERT_NEAR(at(y, {b, t, n}), sum, 4e-7 * magnitude + rounding * std::fabs(sum)) << b << t << n;
      }
    }
  }
}

class LinearOnTarget : public ::testing::TestWithParam<const char *> {
 protected:
  void SetUp() override {
    for (const TargetInfo &target : targets()) {
      if (target.name == std::string(GetParam()) && (!target.cpu_has_it || !target.linked)) {
        GTEST_SKIP() << target.reason;
      }
    }
    set_target(GetParam());
  }
  void TearDown() override { set_target(""); }
};

TEST_P(LinearOnTarget, EqualsReference) {
  for (const auto &[type, rounding] :
       {std::pair(DType::f32, 0.0), std::pair(DType::bf16, 3.91e-3), std::pair(DType::f16, 4.89e-4)}) {
    SCOPED_TRACE(name_of(type));
    const Tensor weight = random_tensor(type, {70, 40}, 1), bias = random_tensor(DType::f32, {70}, 2);
    const Tensor x = random_tensor(type, {3, 5, 40}, 3), addend = random_tensor(DType::f32, {3, 5, 40}, 4);
    const Tensor y(type, {3, 5, 70});
    const Linear linear(weight.view(), bias.view(), type);
    EXPECT_EQ(linear.in_features(), 40);
    EXPECT_EQ(linear.out_features(), 70);
    linear.forward(x.view(), y.view(), addend.view());
    expect_linear(x.view(), weight.view(), bias.view(), addend.view(), y.view(), rounding);

    // A slice of tokens as input and output: batches are apart by more than their tokens.
    const Tensor wide(type, {3, 9, 70});
    linear.forward(x.view().slice(1, 1, 4), wide.view().slice(1, 2, 5));
    expect_linear(x.view().slice(1, 1, 4), weight.view(), bias.view(), {}, wide.view().slice(1, 2, 5),
                  rounding);
    EXPECT_EQ(at(wide.view(), {0, 1, 0}), 0);
    EXPECT_EQ(at(wide.view(), {2, 5, 69}), 0);

    // Channels-slice output, transposed batch and token, no bias, an addend for all tokens.
    const Linear unbiased(weight.view(), {}, type);
    const Tensor channels(type, {5, 3, 80});
    const MutableTensorView sliced = channels.view().slice(2, 4, 74);
    const TensorView turned = x.view().transposed(0, 1);
    const TensorView one = addend.view().select(0, 0).slice(0, 2, 3);
    unbiased.forward(turned, sliced, one);
    Tensor repeated(DType::f32, {5, 3, 40});
    for (int64_t i = 0; i < 15; i++) {
      std::memcpy(repeated.as<float>() + i * 40, one.as<float>(), 40 * sizeof(float));
    }
    expect_linear(turned, weight.view(), {}, repeated.view(), sliced, rounding);
    EXPECT_EQ(at(channels.view(), {4, 2, 3}), 0);
    EXPECT_EQ(at(channels.view(), {4, 2, 74}), 0);
  }
}

TEST_P(LinearOnTarget, ColumnsShareTheWeights) {
  const Tensor weight = random_tensor(DType::f32, {300, 20}, 1), bias = random_tensor(DType::f32, {300}, 2);
  const Tensor x = random_tensor(DType::f32, {1, 6, 20}, 3);
  const Linear linear(weight.view(), bias.view(), DType::f32);
  const Tensor all(DType::f32, {1, 6, 300});
  linear.forward(x.view(), all.view());
  const auto part = linear.columns(192, 250);  // 192 is a multiple of every panel's width
  ASSERT_TRUE(part.has_value());
  EXPECT_EQ(part->out_features(), 58);
  const Tensor y(DType::f32, {1, 6, 58});
  part->forward(x.view(), y.view());
  for (int64_t t = 0; t < 6; t++) {
    for (int64_t n = 0; n < 58; n++) EXPECT_EQ(at(y.view(), {0, t, n}), at(all.view(), {0, t, n + 192}));
  }
  EXPECT_FALSE(linear.columns(1, 20).has_value());
  EXPECT_THROW(linear.columns(0, 301), Error);
}

// Bit for bit the same for any number of threads.
TEST_P(LinearOnTarget, Threads) {
  const Tensor weight = random_tensor(DType::f32, {500, 90}, 1);
  const Linear linear(weight.view(), {}, DType::f32);
  for (const int64_t tokens : {1, 7, 300}) {
    const Tensor x = random_tensor(DType::f32, {2, tokens, 90}, 3);
    const Tensor one(DType::f32, {2, tokens, 500}), four(DType::f32, {2, tokens, 500});
    set_num_threads(1);
    linear.forward(x.view(), one.view());
    set_num_threads(4);
    linear.forward(x.view(), four.view());
    set_num_threads(0);
    EXPECT_EQ(std::memcmp(one.as<float>(), four.as<float>(), size_t(2 * tokens * 500) * sizeof(float)), 0);
  }
}

INSTANTIATE_TEST_SUITE_P(Targets, LinearOnTarget,
                         ::testing::Values("sse41", "avx2", "avx512", "avx512bf16", "amx"),
                         [](const auto &info) { return std::string(info.param); });

template <typename Call>
void expect_error(const Call &call, const std::string &text) {
  try {
    call();
    FAIL() << "expected: " << text;
  } catch (const Error &error) {
    EXPECT_NE(std::string(error.what()).find(text), std::string::npos) << error.what();
  }
}

TEST(Linear, Errors) {
  const Tensor weight(DType::f32, {8, 4}), bias(DType::f32, {8}), x(DType::f32, {2, 3, 4}),
      y(DType::f32, {2, 3, 8}), integers(DType::i32, {8, 4});
  const auto make = [](const TensorView &w, const TensorView &b, DType type) { Linear(w, b, type); };
  expect_error([&] { make({}, {}, DType::f32); }, "weight: expected a matrix (out, in), got none");
  expect_error([&] { make(x.view(), {}, DType::f32); }, "weight: expected a matrix (out, in), got (2, 3, 4)");
  expect_error([&] { make(integers.view(), {}, DType::f32); },
               "weight: expected type f32, bf16 or f16, got i32");
  expect_error([&] { make(weight.view(), {}, DType::f64); },
               "linear: expected type f32, bf16 or f16, got f64");
  expect_error([&] { make(weight.view(), weight.view(), DType::f32); },
               "bias: expected shape (8), got (8, 4)");
  const Linear linear(weight.view(), bias.view(), DType::f32);
  const auto forward = [&](const TensorView &in, const MutableTensorView &out, const TensorView &addend) {
    return [&linear, in, out, addend] { linear.forward(in, out, addend); };
  };
  expect_error(forward({}, y.view(), {}), "x: expected shape (tokens, 4) or (batch, tokens, 4), got none");
  expect_error(forward(y.view(), y.view(), {}), "got (2, 3, 8)");
  expect_error(forward(x.view(), x.view(), {}),
               "y: expected x's shape (2, 3, 4) with 8 in place of 4, got (2, 3, 4)");
  expect_error(forward(x.view(), {}, {}), "got none");
  const Tensor half_x = x.to(DType::bf16), half_y = y.to(DType::f16);
  expect_error(forward(half_x.view(), y.view(), {}), "x: expected type f32, got bf16");
  expect_error(forward(x.view(), half_y.view(), {}), "y: expected type f32, got f16");
  expect_error(forward(x.view(), y.view(), y.view()),
               "addend: expected a shape that broadcasts to (2, 3, 4)");
  expect_error(forward(x.view(), y.view(), half_x.view()), "addend: expected type f32, got bf16");
  const Tensor square(DType::f32, {4, 4}), square_y(DType::f32, {4, 8});
  expect_error(forward(square.view().transposed(0, 1), square_y.view(), {}),
               "x: expected a contiguous last dimension");
  // Nothing to do is no error.
  linear.forward(x.view().slice(1, 0, 0), y.view().slice(1, 0, 0));
}

}  // namespace
}  // namespace posattn
