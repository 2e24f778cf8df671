// The forms of packed keys and values. Where a machine multiplies pairs of 16-bit numbers, two of them that
// are summed lie in one 32-bit word: channels 2 i and 2 i + 1 of a key, and keys x and x + lanes / 2 of a
// tile, so that two vectors of weights become words without crossing lanes.
#pragma once

#include "Halide.h"
#include "generators/storage.h"
#include "schedules/machine.h"

namespace posattn {

class Packing {
 public:
  Packing(const Halide::Target &target, const Halide::Type &type)
      : lanes_(schedules::machine(target).key_lanes),
        pairs_(type.bits() == 16 ? schedules::machine(target).pairs : 1),
        target_(target),
        type_(type) {}

  bool pairs() const { return pairs_ == 2; }
  int numbers() const { return pairs_; }  // in an element of the packed tensors
  Halide::Type element() const { return pairs() ? Halide::Int(32) : type_; }

  // Channel d of a key in float32: `keys` is (lane, d / numbers(), key tile, ...).
  template <typename Keys, typename... Rest>
  Halide::Expr key(const Keys &keys, const Halide::Expr &lane, const Halide::Expr &d,
                   const Halide::Expr &tile, const Rest &...rest) const {
    if (!pairs()) return load_float(keys(lane, d, tile, rest...), target_);
    return half(keys(lane, d / 2, tile, rest...), d % 2);
  }
  // Channel d of the value at lane x of a tile in float32: `values` is (d, key / numbers(), ...).
  template <typename Values, typename... Rest>
  Halide::Expr value(const Values &values, const Halide::Expr &d, const Halide::Expr &x,
                     const Halide::Expr &tile, const Rest &...rest) const {
    if (!pairs()) return load_float(values(d, tile * lanes_ + x, rest...), target_);
    const int words = lanes_ / 2;
    return half(values(d, tile * words + x % words, rest...), x / words);
  }

  // sum + low * low + high * high of two words of bfloat16, in the order and with the rounding of the
  // machine's instruction, which takes denormal operands and results for zero. It is a function of Halide's
  // own runtime that only exists for whole vectors. An operand that is the same for all lanes comes last: the
  // instruction then broadcasts it from memory.
  static Halide::Expr dot(const Halide::Expr &sum, const Halide::Expr &word, const Halide::Expr &same) {
    using namespace Halide;
    return Internal::Call::make(Float(32), "dpbf16ps", {sum, word, same}, Internal::Call::PureExtern);
  }

  // A word's low (0) or high (1) half, a bfloat16, in float32.
  static Halide::Expr half(const Halide::Expr &word, const Halide::Expr &which) {
    using namespace Halide;
    const Expr bits = reinterpret<uint32_t>(word);
    return reinterpret<float>(select(which == 0, bits << 16, bits & Expr(0xffff0000u)));
  }
  // A word of two 16-bit numbers, given as bits.
  static Halide::Expr word(const Halide::Expr &low, const Halide::Expr &high) {
    using namespace Halide;
    return reinterpret<int32_t>(cast<uint32_t>(low) | (cast<uint32_t>(high) << 16));
  }
  // Two numbers, rounded to bfloat16. Halves go towards zero, which is an operation instead of
  // four (and where they went up, Halide would find a rounding shift that x86 does not have); a NaN stays
  // one.
  static Halide::Expr rounded_word(const Halide::Expr &low, const Halide::Expr &high) {
    using namespace Halide;
    const auto rounded = [](const Expr &x) { return reinterpret<uint32_t>(x) + 0x7fff; };
    return reinterpret<int32_t>((rounded(low) >> 16) | (rounded(high) & Expr(0xffff0000u)));
  }

 private:
  int lanes_, pairs_;
  Halide::Target target_;
  Halide::Type type_;
};

}  // namespace posattn
