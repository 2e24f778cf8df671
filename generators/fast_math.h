// Elementary functions on float32 vectors, for the inner loops. Tested alone against double.
#pragma once

#include <vector>

#include "Halide.h"

namespace posattn {

constexpr float kLog2E = 1.4426950408889634f;

// Stand-ins for -inf: Halide compiles with fast math, which takes infinities for impossible. A hidden score
// lies below the start of the running maximum, and that below every visible score, so that 2^(hidden -
// maximum) is an exact zero even where a whole row is hidden.
constexpr float kHidden = -2.3e38f;
constexpr float kMaximumStart = -2.2e38f;
constexpr float kLowestVisible = -2.1e38f;
constexpr uint32_t kMinusInfinityBits = 0xff800000u;
constexpr uint32_t kPlusInfinityBits = 0x7f800000u;

// An operation that fast math neither reorders nor fuses.
inline Halide::Expr strict_float_op(Halide::Internal::Call::IntrinsicOp op, const Halide::Expr &a,
                                    const Halide::Expr &b) {
  return Halide::Internal::Call::make(Halide::Float(32), op, {a, b}, Halide::Internal::Call::PureIntrinsic);
}

// False of a NaN, about which fast math says anything.
inline Halide::Expr is_below(const Halide::Expr &x, float bound) {
  using Halide::Internal::Call;
  return Call::make(Halide::Bool(), Call::strict_lt, {x, bound}, Call::PureIntrinsic);
}
// The same of numbers that are not negative, among bits.
inline Halide::Expr is_zero(const Halide::Expr &x) { return Halide::reinterpret<int>(x) == 0; }

// Unlike max(x, least), this keeps a NaN of either sign; selected as bits, as fast math knows no NaN.
inline Halide::Expr at_least(const Halide::Expr &x, float least) {
  using namespace Halide;
  return reinterpret<float>(
      select(is_below(x, least), reinterpret<uint32_t>(Expr(least)), reinterpret<uint32_t>(x)));
}

// 2^x for x <= 0, relative error below 2e-7; exactly 1 at 0 and exactly 0 from -127 down. A NaN stays one.
inline Halide::Expr exp2_nonpositive(const Halide::Expr &x) {
  using namespace Halide;
  using Internal::Call;
  // Adding 1.5 * 2^23 rounds to an integer and leaves it, and the exponent's bias, in the low bits. Fast math
  // would fold the pair of operations away, hence the strict ones; round() becomes two half-width
  // instructions on AVX-512.
  const float magic = 12582912.f + 127.f;
  const Expr clamped = at_least(x, -127.f);
  const Expr shifted = strict_float_op(Call::strict_add, clamped, magic);
  const Expr fraction =
      strict_float_op(Call::strict_sub, clamped, strict_float_op(Call::strict_sub, shifted, magic));
  // Minimax on [-0.5, 0.5] with the constant term fixed at 1, so that 2^-127 becomes 0.
  const float coefficients[] = {1.3264715e-3f, 9.6715130e-3f, 5.5507340e-2f, 0.24022242f, 0.69314700f, 1.f};
  Expr mantissa = coefficients[0];
  for (int i = 1; i < 6; i++) mantissa = mantissa * fraction + coefficients[i];
  // Added to the mantissa's bits, the exponent of a NaN with low bits, as GPUs compute it, would make it
  // finite.
  return mantissa * reinterpret<float>(reinterpret<int>(shifted) << 23);
}

// e^x for x <= 0, with the same exact ends.
inline Halide::Expr exp_nonpositive(const Halide::Expr &x) { return exp2_nonpositive(x * kLog2E); }

// The logarithm of a positive number. A NaN stays one: Halide's log takes its bits apart, or knows no NaN.
inline Halide::Expr log_positive(const Halide::Expr &x) {
  using namespace Halide;
  const Expr bits = reinterpret<uint32_t>(x), is_nan = (bits & 0x7fffffff) > 0x7f800000;
  return reinterpret<float>(select(is_nan, bits, reinterpret<uint32_t>(log(x))));
}

// tanh, absolute error below 1.2e-7, as that of the C library: what is far beyond a softcap differs by the
// rounding of this alone. A NaN stays one.
inline Halide::Expr tanh_accurate(const Halide::Expr &value) {
  using namespace Halide;
  const Expr x = abs(value), x2 = x * x;
  // Near zero an odd polynomial (Cephes' tanhf), else through e^-2x, which loses nothing against 1.
  const float coefficients[] = {-5.70498872745e-3f, 2.06390887954e-2f, -5.37397155531e-2f, 1.33314422036e-1f,
                                -3.33332819422e-1f};
  Expr near_zero = coefficients[0];
  for (int i = 1; i < 5; i++) near_zero = near_zero * x2 + coefficients[i];
  const Expr e = exp_nonpositive(-2.f * x);
  const Expr t = select(x < 0.625f, x + x * x2 * near_zero, 1.f - 2.f * e / (1.f + e));
  return select(value < 0.f, -t, t);
}

inline Halide::Expr is_minus_infinity(const Halide::Expr &x) {
  return Halide::reinterpret<uint32_t>(x) == Halide::Expr(kMinusInfinityBits);
}

}  // namespace posattn
