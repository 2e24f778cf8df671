// What tests of attend() share: run, hold against float64, look for damage; on every target of this machine.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "tests/case.h"
#include "tests/reference.h"

namespace posattn::oracle {

// The accuracy rule for all outputs that `args` hold, which attend() has filled.
::testing::AssertionResult accurate(const AttendArgs &args, const std::vector<BranchFormula> &own = {});

// Runs the case on every target that this program and machine have: no error, accurate, and nothing written
// outside of the outputs.
::testing::AssertionResult passes(Case &c);
::testing::AssertionResult passes(const CaseSpec &spec);

// What attend() gives for `args`, whose own outputs are ignored.
struct Outputs {
  Tensor out, lse, weights;
};
Outputs outputs_of(AttendArgs args);
::testing::AssertionResult same_bits(const Outputs &a, const Outputs &b);

// Two calls that mean the same: equal bits on a CPU. On a GPU, calls that are given a table or positions run
// other kernels than those without, which add in another order, so that `b` only has to be accurate for its
// `args`.
::testing::AssertionResult same_answer(const AttendArgs &args, const Outputs &a, const Outputs &b);

// Whether outputs are accurate for `args`, which need not be those that gave them: another path to the same
// answer.
::testing::AssertionResult accurate(AttendArgs args, const Outputs &outputs);

// Equal bit for bit. Both contiguous or not; NaN equals the same NaN.
::testing::AssertionResult same_bits(const TensorView &a, const TensorView &b);

// Calls body with each of these targets forced in turn, inside a SCOPED_TRACE.
void on_every_target(const std::function<void()> &body);

// Sets of built-in logit branches that the linked attention kernels serve, none included.
std::vector<std::vector<std::string>> linked_branch_sets();

}  // namespace posattn::oracle
