// Instructions that kernels with tensor cores share: float arithmetic that Halide would make slower,
// shuffles, and named registers.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "lowering/inline_ptx.h"

namespace posattn {

inline std::string number(int64_t value) { return std::to_string(value); }

// "{r0,r1,...}"
inline std::string register_list(const std::string &name, int first, int count) {
  std::string out = "{";
  for (int i = 0; i < count; i++) out += (i > 0 ? "," : "") + name + number(first + i);
  return out + "}";
}

inline std::string float_literal(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  char text[16];
  std::snprintf(text, sizeof(text), "0f%08X", bits);
  return text;
}

class PtxOps {
 public:
  using Expr = Halide::Expr;
  explicit PtxOps(InlinePtx &ptx) : ptx(ptx) {}

  // Halide's float max compares and selects on CUDA.
  Expr max(const Expr &a, const Expr &b) const { return f32("max.ftz.f32 $r, $0, $1;", {a, b}); }
  // A NaN if either is one; so below.
  Expr min(const Expr &a, const Expr &b) const { return f32("min.ftz.NaN.f32 $r, $0, $1;", {a, b}); }
  Expr at_least(const Expr &x, float least) const {
    return f32("max.ftz.NaN.f32 $r, $0, " + float_literal(least) + ";", {x});
  }
  Expr multiply_down(const Expr &a, const Expr &b) const { return f32("mul.rm.ftz.f32 $r, $0, $1;", {a, b}); }
  Expr fma(const Expr &a, const Expr &b, const Expr &c) const {
    return f32("fma.rn.ftz.f32 $r, $0, $1, $2;", {a, b, c});
  }
  Expr exp2(const Expr &x) const { return f32("ex2.approx.ftz.f32 $r, $0;", {x}); }
  Expr log2(const Expr &x) const { return f32("lg2.approx.ftz.f32 $r, $0;", {x}); }
  Expr reciprocal(const Expr &x) const { return f32("rcp.approx.ftz.f32 $r, $0;", {x}); }
  // Absolute error of some 1e-7.
  Expr tanh(const Expr &x) const { return fma(reciprocal(exp2(x * 2.8853901f) + 1.f), -2.f, 1.f); }
  // value where low <= x <= high, else `otherwise`. A select of Halide's would let it skip what makes the
  // value, barriers and all.
  Expr keep_within(const Expr &x, const Expr &low, const Expr &high, const Expr &value,
                   float otherwise) const {
    return f32("{ .reg .pred p; setp.ge.s32 p, $0, $1; setp.le.and.s32 p, $0, $2, p; selp.b32 $r, $3, " +
                   float_literal(otherwise) + ", p; }",
               {x, low, high, value});
  }
  Expr shuffle_xor(const Expr &x, int mask) const {
    return ptx.pure(x.type(), "\tshfl.sync.bfly.b32 $r, $0, " + number(mask) + ", 0x1f, 0xffffffff;", {x});
  }

  // Named registers, once what made the token has run.
  Expr get(const std::string &name, const Expr &token) const {
    return ptx.read(Halide::Float(32), "\tmov.b32 $r, " + name + ";", {token});
  }
  Expr get(const std::string &name, const Expr &constant_index, const Expr &token) const {
    return ptx.read(Halide::Float(32), "\tmov.b32 $r, " + name + "$0;", {constant_index, token});
  }
  Expr set(const std::string &name, const Expr &value, const Expr &token) const {
    return ptx.effect("\tmov.b32 " + name + ", $0;", {value, token});
  }
  Expr fill(const std::string &name, int count, float value, const Expr &token) const {
    std::string text;
    for (int i = 0; i < count; i++)
      text += "\tmov.b32 " + name + number(i) + ", " + float_literal(value) + ";\n";
    return ptx.effect(text, {token});
  }
  // Hands an integer on, but not before what made the token.
  Expr after(const Expr &value, const Expr &token) const {
    return ptx.read(Halide::Int(32), "\tmov.b32 $r, $0;", {value, token});
  }

  InlinePtx &ptx;

 private:
  Expr f32(const std::string &text, const std::vector<Expr> &arguments) const {
    return ptx.pure(Halide::Float(32), "\t" + text, arguments);
  }
};

}  // namespace posattn
