// PTX instructions inside Halide's CUDA kernels, in the manner of CUDA's asm().
//
// In a Halide expression an instruction is a call of an extern function; in the PTX text that Halide writes,
// splice() puts the instruction's template in place of the call. Stock Halide has no tensor cores, barriers
// or bulk copies: with this it needs none.
//
// In a template, $r is the result's register, $0, $1, ... are the arguments' registers or literals, and $u is
// a number of its own for each place, for labels. $@0 is the address of argument 0, a uint64 number of the
// pipeline whose place among the kernel's parameters 128 bytes of constant memory take, passed by value: a
// tensor map. Named registers live in the PTX text only, so that Halide
// and LLVM never see the accumulators of a matrix product.
#pragma once

#include <map>
#include <set>
#include <string>
#include <vector>

#include "Halide.h"

namespace posattn {

class InlinePtx {
 public:
  using Expr = Halide::Expr;

  // A function of its arguments and nothing else: it may be moved, merged with its equals, or dropped.
  Expr pure(Halide::Type result, const std::string &text, const std::vector<Expr> &arguments);
  // A value that depends on what ran before: it stays in order with the other calls that are not pure. Equal
  // calls in one expression are still merged, so reads at different moments take different tokens.
  Expr read(Halide::Type result, const std::string &text, const std::vector<Expr> &arguments);
  // Instructions without a result. The call's value is an int, the token, which those that must come after
  // take as an argument.
  Expr effect(const std::string &text, const std::vector<Expr> &arguments);
  void declare_register(const std::string &declaration) { registers_ += "\t.reg " + declaration + ";\n"; }
  void at_entry(const std::string &text) { entry_ += text; }           // of every kernel
  void in_module(const std::string &text) { module_ += text + "\n"; }  // outside kernels

  // What a kernel's PTX says at its head.
  struct Head {
    std::string version, target, directives;
    // The kernel may be launched while the one before it in its stream still runs (programmatic dependent
    // launch, from sm_90 on): it waits for that where it first looks at memory, which it does not take for
    // constant; the one behind it may come from then on. Templates that access memory do so themselves.
    bool starts_early = false;
  };
  // The text of a module with the templates in place. Throws std::runtime_error where the text is not what
  // the templates expect.
  std::string splice(const std::string &ptx, const Head &head) const;

 private:
  struct Op {
    std::string text;
    bool is_token;
  };
  std::string name_of(const Op &op);
  const Op *find_op(const std::string &text, size_t begin, size_t end) const;

  friend class Splicer;
  std::map<std::string, Op> ops_;             // by the extern function's name
  std::map<std::string, std::string> names_;  // by kind and template
  std::string registers_, entry_, module_;
};

}  // namespace posattn
