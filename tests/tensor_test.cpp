#include "runtime/tensor.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "runtime/error.h"

namespace posattn {
namespace {

constexpr int64_t kHuge = int64_t{1} << 40;

std::vector<float> iota(int64_t count) {
  std::vector<float> values(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) values[static_cast<size_t>(i)] = static_cast<float>(i);
  return values;
}

TEST(TensorView, EmptyIsNotZeroElements) {
  EXPECT_TRUE(TensorView().empty());
  EXPECT_EQ(TensorView().shape_text(), "(none)");
  const TensorView zero(nullptr, DType::f32, {3, 0, 5});
  EXPECT_FALSE(zero.empty());
  EXPECT_EQ(zero.num_elements(), 0);
  EXPECT_TRUE(zero.contiguous());
  const TensorView scalar(nullptr, DType::f32, {});
  EXPECT_EQ(scalar.num_elements(), 1);
  EXPECT_EQ(scalar.shape_text(), "()");
}

TEST(TensorView, ContiguousStrides) {
  const TensorView view(nullptr, DType::bf16, {2, 3, 4});
  EXPECT_EQ(view.stride(0), 12);
  EXPECT_EQ(view.stride(-2), 4);
  EXPECT_EQ(view.stride(2), 1);
  EXPECT_EQ(view.shape_text(), "(2, 3, 4)");
  EXPECT_TRUE(view.contiguous());
  EXPECT_FALSE(view.transposed(0, 1).contiguous());
  // The step of a dimension of one element says nothing.
  const int64_t shape[] = {1, 4}, strides[] = {99, 1};
  EXPECT_TRUE(TensorView(nullptr, DType::f32, 2, shape, strides).contiguous());
}

TEST(TensorView, SizesThatOverflowAreErrors) {
  EXPECT_THROW(TensorView(nullptr, DType::f32, {kHuge, kHuge}), Error);
  EXPECT_THROW(TensorView(nullptr, DType::f64, {int64_t{1} << 60}), Error);  // bytes
  EXPECT_NO_THROW(TensorView(nullptr, DType::boolean, {int64_t{1} << 62}));
  EXPECT_THROW(TensorView(nullptr, DType::f32, {0, kHuge, kHuge}), Error);  // also of nothing
  EXPECT_THROW(TensorView(nullptr, DType::f32, {-1}), Error);
  EXPECT_THROW(TensorView(nullptr, DType::f32, {1, 1, 1, 1, 1, 1}), Error);
}

TEST(TensorView, StridesThatOverflowAreErrors) {
  const int64_t shape[] = {3, 3}, far[] = {int64_t{1} << 62, 1},
                both[] = {int64_t{1} << 61, int64_t{1} << 61};
  EXPECT_THROW(TensorView(nullptr, DType::boolean, 2, shape, far), Error);
  EXPECT_THROW(TensorView(nullptr, DType::boolean, 2, shape, both), Error);
  const int64_t lowest[] = {std::numeric_limits<int64_t>::min(), 1}, one[] = {1, 3};
  EXPECT_THROW(TensorView(nullptr, DType::f32, 2, shape, lowest), Error);
  EXPECT_NO_THROW(TensorView(nullptr, DType::f32, 2, one, lowest));
}

TEST(TensorView, ViewsOfTheSameMemory) {
  const std::vector<float> data = iota(24);
  const TensorView view(data.data(), DType::f32, {2, 3, 4});
  EXPECT_EQ(*view.slice(1, 1, 3).select(0, 1).as<float>(), 16);
  EXPECT_EQ(view.slice(1, 1, 3).shape_text(), "(2, 2, 4)");
  EXPECT_EQ(view.select(-1, 3).shape_text(), "(2, 3)");
  EXPECT_EQ(*view.select(-1, 3).as<float>(), 3);
  EXPECT_EQ(view.select(-1, 3).stride(1), 4);
  const TensorView heads = view.heads(2);  // (B, T, H * d) -> (B, H, T, d)
  EXPECT_EQ(heads.shape_text(), "(2, 2, 3, 2)");
  EXPECT_EQ(heads.select(0, 1).select(0, 1).select(0, 2).as<float>()[1], 1 * 12 + 2 * 4 + 1 * 2 + 1);
  EXPECT_EQ(view.split(2, 2, 2).shape_text(), "(2, 3, 2, 2)");
}

TEST(TensorView, BadViewsAreErrors) {
  const TensorView view(nullptr, DType::f32, {2, 3, 4});
  EXPECT_THROW(view.slice(0, 0, 3), Error);
  EXPECT_THROW(view.slice(0, 2, 1), Error);
  EXPECT_THROW(view.slice(3, 0, 1), Error);
  EXPECT_THROW(view.slice(0, -1, 1), Error);
  EXPECT_NO_THROW(view.slice(0, 2, 2));
  EXPECT_THROW(view.select(0, 2), Error);
  EXPECT_THROW(view.split(2, 3, 2), Error);
  EXPECT_THROW(view.heads(3), Error);
  EXPECT_THROW(view.heads(0), Error);
  EXPECT_THROW(view.split(2, 2, 2).heads(1), Error);
  EXPECT_THROW(TensorView(nullptr, DType::f32, {1, 1, 1, 1, 6}).split(4, 2, 3), Error);
}

TEST(Tensor, OwnsAlignedZeros) {
  Tensor tensor(DType::f16, {3, 5});
  EXPECT_EQ(reinterpret_cast<uintptr_t>(tensor.as<void>()) % 64, 0u);
  for (int i = 0; i < 15; ++i) EXPECT_EQ(tensor.as<uint16_t>()[i], 0);
  tensor.as<uint16_t>()[7] = 42;
  const Tensor copy = tensor.clone();
  EXPECT_NE(copy.as<void>(), tensor.as<void>());
  EXPECT_EQ(copy.as<uint16_t>()[7], 42);
  const Tensor moved = std::move(tensor);
  EXPECT_EQ(moved.as<uint16_t>()[7], 42);
  EXPECT_TRUE(Tensor().empty());
  EXPECT_TRUE(Tensor().clone().empty());
  EXPECT_THROW(Tensor(DType::f32, {kHuge, kHuge}), Error);
}

TEST(Copy, AnyStrides) {
  const std::vector<float> data = iota(24);
  const TensorView view(data.data(), DType::f32, {2, 3, 4});
  const Tensor copied = copy_of(view.transposed(0, 2), DType::f64);
  EXPECT_EQ(copied.view().shape_text(), "(4, 3, 2)");
  for (int a = 0; a < 4; ++a) {
    for (int b = 0; b < 3; ++b) {
      for (int c = 0; c < 2; ++c) EXPECT_EQ(copied.as<double>()[(a * 3 + b) * 2 + c], c * 12 + b * 4 + a);
    }
  }
  // Backward, and broadcast.
  const int64_t shape[] = {2, 3}, strides[] = {0, -1};
  const Tensor reversed = copy_of(TensorView(data.data() + 5, DType::f32, 2, shape, strides), DType::i32);
  const int32_t expected[] = {5, 4, 3, 5, 4, 3};
  EXPECT_EQ(std::memcmp(reversed.as<void>(), expected, sizeof(expected)), 0);
  // Into a view with gaps, which stay as they were.
  Tensor wide(DType::i64, {3, 4});
  copy(TensorView(data.data() + 1, DType::f32, {3, 2}), wide.view().slice(1, 1, 3));
  const int64_t gaps[] = {0, 1, 2, 0, 0, 3, 4, 0, 0, 5, 6, 0};
  EXPECT_EQ(std::memcmp(wide.as<void>(), gaps, sizeof(gaps)), 0);
  EXPECT_THROW(copy(view, wide), Error);
  EXPECT_THROW(copy_of(TensorView(), DType::f32), Error);
}

TEST(Copy, ConvertsBetweenAllTypes) {
  const double values[] = {0, 1, -2, 3.75};
  const TensorView doubles(values, DType::f64, {4});
  for (DType type : {DType::f32, DType::bf16, DType::f16, DType::f64}) {
    const Tensor back = copy_of(copy_of(doubles, type), DType::f64);
    for (int i = 0; i < 4; ++i) EXPECT_EQ(back.as<double>()[i], values[i]) << name_of(type);
  }
  const Tensor integers = copy_of(doubles, DType::i32), truth = copy_of(doubles, DType::boolean);
  EXPECT_EQ(integers.as<int32_t>()[2], -2);
  EXPECT_EQ(integers.as<int32_t>()[3], 3);  // toward zero
  EXPECT_EQ(truth.as<uint8_t>()[0], 0);
  EXPECT_EQ(truth.as<uint8_t>()[3], 1);
  const float odd[] = {std::numeric_limits<float>::quiet_NaN(), 1e30f, -1e30f, -0.5f};
  const Tensor clamped = copy_of(TensorView(odd, DType::f32, {4}), DType::i64);
  EXPECT_EQ(clamped.as<int64_t>()[0], 0);
  EXPECT_EQ(clamped.as<int64_t>()[1], std::numeric_limits<int64_t>::max());
  EXPECT_EQ(clamped.as<int64_t>()[2], std::numeric_limits<int64_t>::min());
  EXPECT_EQ(clamped.as<int64_t>()[3], 0);
  const int64_t exact[] = {(int64_t{1} << 62) + 1};
  EXPECT_EQ(copy_of(TensorView(exact, DType::i64, {1}), DType::i64).as<int64_t>()[0], exact[0]);
}

// The nearest of all 2^16 values to `value`, the even one of two, by search.
uint16_t nearest(double value, float (*to_float)(uint16_t), uint16_t infinity) {
  uint16_t low = 0, high = infinity;  // magnitudes are ordered as their bits are
  const double magnitude = std::fabs(value);
  while (high - low > 1) {
    const uint16_t middle = static_cast<uint16_t>((low + high) / 2);
    (static_cast<double>(to_float(middle)) <= magnitude ? low : high) = middle;
  }
  // Beyond the largest finite value, infinity counts as the next step.
  const double below = to_float(low);
  const double above = high == infinity
                           ? 2 * below - static_cast<double>(to_float(static_cast<uint16_t>(low - 1)))
                           : to_float(high);
  const double middle = (below + above) / 2;
  const bool up = magnitude > middle || (magnitude == middle && low % 2 == 1);
  return static_cast<uint16_t>((up ? high : low) | (std::signbit(value) ? 0x8000 : 0));
}

TEST(Convert, EverySixteenBitValueSurvives) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const uint16_t word = static_cast<uint16_t>(bits);
    const float b = bf16_to_float(word), h = f16_to_float(word);
    if (std::isnan(b)) {
      EXPECT_TRUE(std::isnan(bf16_to_float(float_to_bf16(b))));
    } else {
      ASSERT_EQ(float_to_bf16(b), word);
    }
    if (std::isnan(h)) {
      EXPECT_TRUE(std::isnan(f16_to_float(float_to_f16(h))));
    } else {
      ASSERT_EQ(float_to_f16(h), word);
    }
  }
}

TEST(Convert, RoundsToNearestEven) {
  // Between every pair of neighbours: the middle, and its two float neighbours.
  for (uint32_t bits = 0; bits < 0x7c00; bits += 7) {
    const uint16_t word = static_cast<uint16_t>(bits);
    const float low = f16_to_float(word), high = f16_to_float(static_cast<uint16_t>(word + 1));
    if (!std::isfinite(high)) break;
    const float middle = low + (high - low) / 2;
    for (float value : {std::nextafter(middle, 0.0f), middle, std::nextafter(middle, 1e9f)}) {
      ASSERT_EQ(float_to_f16(value), nearest(static_cast<double>(value), f16_to_float, 0x7c00)) << value;
      ASSERT_EQ(float_to_f16(-value), nearest(static_cast<double>(-value), f16_to_float, 0x7c00)) << value;
    }
  }
  for (uint32_t bits = 0; bits < 0x7f7f; bits += 5) {
    const uint16_t word = static_cast<uint16_t>(bits);
    const float low = bf16_to_float(word), high = bf16_to_float(static_cast<uint16_t>(word + 1));
    const float middle = low + (high - low) / 2;
    for (float value : {std::nextafter(middle, 0.0f), middle, std::nextafter(middle, 3e38f)}) {
      ASSERT_EQ(float_to_bf16(value), nearest(static_cast<double>(value), bf16_to_float, 0x7f80)) << value;
    }
  }
  EXPECT_EQ(float_to_f16(65519.996f), 0x7bff);
  EXPECT_EQ(float_to_f16(65520.0f), 0x7c00);
  EXPECT_EQ(float_to_bf16(std::numeric_limits<float>::max()), 0x7f80);
}

TEST(Convert, DoublesAreRoundedOnce) {
  // Just above the middle of two neighbours by less than float32 can tell: rounding twice would go down.
  const double values[] = {1 + 0x1p-11 + 0x1p-40, 1 + 0x1p-8 + 0x1p-40, 1e300, -1e-300};
  const TensorView view(values, DType::f64, {4});
  const Tensor half = copy_of(view, DType::f16), brain = copy_of(view, DType::bf16);
  EXPECT_EQ(f16_to_float(half.as<uint16_t>()[0]), 1 + 0x1p-10f);
  EXPECT_EQ(bf16_to_float(brain.as<uint16_t>()[1]), 1 + 0x1p-7f);
  EXPECT_EQ(half.as<uint16_t>()[2], 0x7c00);
  EXPECT_EQ(brain.as<uint16_t>()[3], 0x8000);
}

TEST(CheckedProduct, NamesWhatOverflows) {
  EXPECT_EQ(checked_product(kHuge, 1 << 22, "size"), kHuge << 22);
  try {
    checked_product(kHuge, kHuge, "size");
    FAIL();
  } catch (const Error &error) {
    EXPECT_NE(std::string(error.what()).find("size"), std::string::npos);
  }
  EXPECT_THROW(checked_product(-1, 1, "size"), Error);
}

}  // namespace
}  // namespace posattn
