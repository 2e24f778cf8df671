// A float32 as a sum of three bfloat16 numbers, exactly: tensor cores multiply these.
// runtime/cuda/split_float.h splits weights alike.
#pragma once

#include "Halide.h"

namespace posattn {

// Bits of the three, largest first, in the upper halves of words; from the bits of a float32. Each is what is
// left, rounded to 8 significant bits, so that the last one is exact down to bfloat16's smallest numbers.
//
// What is not finite comes whole, as the last part: that one is multiplied once, by the largest part of the
// other factor, so that no infinity meets a zero or one of the other sign that plain float32 would not have.
struct SplitFloat {
  Halide::Expr parts[3];

  explicit SplitFloat(const Halide::Expr &bits) {
    using namespace Halide;
    using Internal::Call;
    const auto word = [](uint32_t value) { return Internal::make_const(UInt(32), value); };
    const auto rest = [](const Expr &from, const Expr &part) {
      return reinterpret<uint32_t>(Call::make(Float(32), Call::strict_sub,
                                              {reinterpret<float>(from), reinterpret<float>(part)},
                                              Call::PureIntrinsic));
    };
    const Expr upper = word(0xffff0000u), half = word(0x8000u), magnitude = bits & word(0x7fffffffu);
    // Rounding must not make an infinity of the largest numbers.
    const Expr rounded = (bits + select(magnitude >= word(0x7f7f8000u), word(0), half)) & upper;
    parts[0] = select(magnitude >= word(0x7f800000u), word(0), rounded);
    const Expr lower = rest(bits, parts[0]);
    parts[1] = select(magnitude >= word(0x7f800000u), word(0), (lower + half) & upper);
    // As bits: fast math knows no NaN, and one may have its mark in the lower half.
    const Expr nan = select(magnitude > word(0x7f800000u), word(0x00400000u), word(0));
    parts[2] = select(magnitude >= word(0x7f800000u), bits | nan, rest(lower, parts[1])) & upper;
  }
};

// Which parts of both factors are multiplied, the smallest products first: tensor cores cut sums off at the
// sum's own last bit, and small products lose nothing to a sum that is small yet. What is left out, the
// products of the second and third parts and of the third ones, is 2^-23 of the whole at most.
constexpr int kSplitProducts = 6;
constexpr int kSplitInputParts[kSplitProducts] = {2, 0, 1, 1, 0, 0};

}  // namespace posattn
