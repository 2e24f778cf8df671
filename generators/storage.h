// Values as they are stored: float32, bfloat16 or float16. Arithmetic is float32.
#pragma once

#include "Halide.h"

namespace posattn {

// Whether it converts float16 itself.
inline bool has_float16(const Halide::Target &target) {
  using Halide::Target;
  return target.has_gpu_feature() ? target.has_feature(Target::CUDA) : target.has_feature(Target::F16C);
}

// The value's bits. Copies of bits keep every NaN, which conversions do not.
inline Halide::Expr word_of(const Halide::Expr &value) {
  return Halide::reinterpret(Halide::UInt(value.type().bits()), value);
}

// Bits of a bfloat16 or float16 in float32: exact.
inline Halide::Expr float_of_word(const Halide::Type &type, const Halide::Expr &bits,
                                  const Halide::Target &target) {
  using namespace Halide;
  const Expr word = cast<uint32_t>(bits);
  if (type.is_bfloat()) return reinterpret<float>(word << 16);
  if (has_float16(target)) return cast<float>(reinterpret(type, bits));
  const Expr magnitude = word & 0x7fff, sign = (word & 0x8000) << 16;
  const Expr rebiased = (magnitude << 13) + (112 << 23);
  const Expr denormal = reinterpret<uint32_t>(cast<float>(cast<int>(magnitude)) * 5.9604644775390625e-8f);
  const Expr finite = select(magnitude < 0x400, denormal, rebiased);
  return reinterpret<float>(sign | select(magnitude >= 0x7c00, rebiased + (112 << 23), finite));
}

// A stored value in float32: exact.
inline Halide::Expr load_float(const Halide::Expr &value, const Halide::Target &target) {
  using namespace Halide;
  const bool converts = value.type().bits() == 32 || (!value.type().is_bfloat() && has_float16(target));
  return converts ? cast<float>(value) : float_of_word(value.type(), word_of(value), target);
}

// A float32 as `type`, rounded to nearest even; a NaN stays a NaN.
inline Halide::Expr store_float(const Halide::Type &type, const Halide::Expr &value,
                                const Halide::Target &target) {
  using namespace Halide;
  if (type.bits() == 32 || (!type.is_bfloat() && has_float16(target))) return cast(type, value);
  const Expr bits = reinterpret<uint32_t>(value);
  const Expr magnitude = bits & 0x7fffffff;
  const Expr is_nan = magnitude > 0x7f800000;
  if (type.is_bfloat()) {
    // NaNs apart: rounding could carry them into an infinity, or lose all of their low bits.
    const Expr rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return reinterpret(type, cast<uint16_t>(select(is_nan, (bits >> 16) | 0x40, rounded)));
  }
  // Halide's own emulation of float16 loses NaNs.
  const Expr normal = (magnitude - (112 << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  // Denormals: the last bit of 0.5f is theirs, so that this addition rounds.
  const Expr shifted =
      Internal::Call::make(Float(32), Internal::Call::strict_add, {reinterpret<float>(magnitude), Expr(0.5f)},
                           Internal::Call::PureIntrinsic);
  const Expr denormal = reinterpret<uint32_t>(shifted) - 0x3f000000;
  Expr half = select(magnitude < 0x38800000, denormal, normal);
  half = select(magnitude >= 0x47800000, cast<uint32_t>(0x7c00), half);
  half = select(is_nan, (magnitude >> 13) | 0x7e00, half);
  return reinterpret(type, cast<uint16_t>(((bits >> 16) & 0x8000) | (half & 0x7fff)));
}

}  // namespace posattn
