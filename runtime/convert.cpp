// Conversions between storage types, and copies between strided views.
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "runtime/error.h"
#include "runtime/float_bits.h"
#include "runtime/tensor.h"

namespace posattn {
namespace {

// To the float next to `value` whose last bit is odd unless it is exact: a later rounding to fewer bits is
// then the same as if it had started from the double.
float round_to_odd(double value) {
  float rounded = static_cast<float>(value);
  if (static_cast<double>(rounded) == value || std::isnan(value)) return rounded;
  if (std::fabs(static_cast<double>(rounded)) > std::fabs(value)) rounded = std::nextafter(rounded, 0.0f);
  return float_of(bits_of(rounded) | 1);
}

struct Bf16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};
struct Bool {
  uint8_t byte;
};

template <typename T>
T widened(T value) {
  return value;
}
float widened(Bf16 value) { return bf16_to_float(value.bits); }
float widened(F16 value) { return f16_to_float(value.bits); }
int32_t widened(Bool value) { return value.byte != 0; }

template <typename To, typename From>
To narrowed(From value) {
  if constexpr (std::is_same_v<To, Bool>) {
    return {static_cast<uint8_t>(value != 0)};
  } else if constexpr (std::is_same_v<To, Bf16> || std::is_same_v<To, F16>) {
    const float f =
        std::is_same_v<From, float> ? static_cast<float>(value) : round_to_odd(static_cast<double>(value));
    if constexpr (std::is_same_v<To, Bf16>) {
      return {float_to_bf16(f)};
    } else {
      return {float_to_f16(f)};
    }
  } else if constexpr (std::is_integral_v<To> && std::is_floating_point_v<From>) {
    // Truncates; what does not fit goes to the nearest end, NaN to 0.
    constexpr To low = std::numeric_limits<To>::min(), high = std::numeric_limits<To>::max();
    if (std::isnan(value)) return 0;
    if (value <= static_cast<From>(low)) return low;
    return value >= static_cast<From>(high) ? high : static_cast<To>(value);
  } else {
    return static_cast<To>(value);
  }
}

template <typename From, typename To>
void copy_row(const void *from, int64_t from_stride, void *to, int64_t to_stride, int64_t count) {
  const From *f = static_cast<const From *>(from);
  To *t = static_cast<To *>(to);
  for (int64_t i = 0; i < count; ++i) t[i * to_stride] = narrowed<To>(widened(f[i * from_stride]));
}

template <typename T>
void copy_same(const void *from, int64_t from_stride, void *to, int64_t to_stride, int64_t count) {
  if (from_stride == 1 && to_stride == 1) {
    std::memcpy(to, from, static_cast<size_t>(count) * sizeof(T));
    return;
  }
  const T *f = static_cast<const T *>(from);
  T *t = static_cast<T *>(to);
  for (int64_t i = 0; i < count; ++i) t[i * to_stride] = f[i * from_stride];
}

using RowCopy = void (*)(const void *, int64_t, void *, int64_t, int64_t);

template <typename From>
RowCopy row_copy_from(DType to) {
  switch (to) {
    case DType::f32:
      return copy_row<From, float>;
    case DType::bf16:
      return copy_row<From, Bf16>;
    case DType::f16:
      return copy_row<From, F16>;
    case DType::f64:
      return copy_row<From, double>;
    case DType::i64:
      return copy_row<From, int64_t>;
    case DType::i32:
      return copy_row<From, int32_t>;
    case DType::boolean:
      return copy_row<From, Bool>;
  }
  fail("copy: unknown type");
}

RowCopy row_copy(DType from, DType to) {
  if (from == to) {
    switch (size_of(from)) {
      case 1:
        return copy_same<uint8_t>;
      case 2:
        return copy_same<uint16_t>;
      case 4:
        return copy_same<uint32_t>;
      default:
        return copy_same<uint64_t>;
    }
  }
  switch (from) {
    case DType::f32:
      return row_copy_from<float>(to);
    case DType::bf16:
      return row_copy_from<Bf16>(to);
    case DType::f16:
      return row_copy_from<F16>(to);
    case DType::f64:
      return row_copy_from<double>(to);
    case DType::i64:
      return row_copy_from<int64_t>(to);
    case DType::i32:
      return row_copy_from<int32_t>(to);
    case DType::boolean:
      return row_copy_from<Bool>(to);
  }
  fail("copy: unknown type");
}

}  // namespace

float bf16_to_float(uint16_t bits) { return float_of(static_cast<uint32_t>(bits) << 16); }

uint16_t float_to_bf16(float value) {
  const uint32_t bits = bits_of(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u)
    return static_cast<uint16_t>((bits >> 16) | 0x40u);  // NaN stays one
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

float f16_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t exponent = (half >> 10) & 31u, mantissa = half & 1023u;
  if (exponent == 31) return float_of(sign | 0x7f800000u | (mantissa << 13));
  if (exponent > 0) return float_of(sign | ((exponent + 112) << 23) | (mantissa << 13));
  const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;  // zero and subnormals, exact
  return float_of(sign | bits_of(magnitude));
}

uint16_t float_to_f16(float value) {
  const uint32_t bits = bits_of(value);
  const uint32_t sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u | ((magnitude >> 13) & 0x1ffu));
  if (magnitude >= 0x477ff000u)
    return static_cast<uint16_t>(sign | 0x7c00u);  // 65520 and more round to infinity
  if (magnitude < 0x38800000u) {
    // Below the smallest normal half: adding 2^-1 makes the float adder round at the half's last bit.
    return static_cast<uint16_t>(sign | (bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f)));
  }
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return static_cast<uint16_t>(sign | ((rounded - (112u << 23)) >> 13));
}

Tensor copy_of(const TensorView &view, DType type) {
  if (view.empty()) fail("copy: expected a tensor, got none");
  int64_t shape[kMaxRank];
  for (int d = 0; d < view.rank(); ++d) shape[d] = view.size(d);
  Tensor result(type, view.rank(), shape);
  copy(view, result);
  return result;
}

void copy(const TensorView &from, const MutableTensorView &to) {
  if (from.rank() != to.rank()) fail("copy: expected shape ", to.shape_text(), ", got ", from.shape_text());
  for (int d = 0; d < from.rank(); ++d) {
    if (from.size(d) != to.size(d))
      fail("copy: expected shape ", to.shape_text(), ", got ", from.shape_text());
  }
  if (from.num_elements() == 0) return;
  const RowCopy row = row_copy(from.dtype(), to.dtype());
  const int64_t from_size = size_of(from.dtype()), to_size = size_of(to.dtype());
  const char *f = from.as<char>();
  char *t = to.as<char>();
  if (from.contiguous() && to.contiguous()) return row(f, 1, t, 1, from.num_elements());

  // An odometer over all dimensions but the last.
  const int last = from.rank() - 1;
  int64_t index[kMaxRank] = {};
  while (true) {
    int64_t from_offset = 0, to_offset = 0;
    for (int d = 0; d < last; ++d) {
      from_offset += index[d] * from.stride(d);
      to_offset += index[d] * to.stride(d);
    }
    row(f + from_offset * from_size, from.stride(last), t + to_offset * to_size, to.stride(last),
        from.size(last));
    int d = last - 1;
    while (d >= 0 && ++index[d] == from.size(d)) index[d--] = 0;
    if (d < 0) return;
  }
}

}  // namespace posattn
