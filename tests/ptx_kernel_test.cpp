// The lowering pass of kernels with inline PTX, on statements as Halide makes them. No GPU is needed.
#include "lowering/ptx_kernel.h"

#include <gtest/gtest.h>

#include <sstream>
#include <stdexcept>
#include <string>

namespace posattn {
namespace {

using namespace Halide::Internal;
using Halide::Expr;
using Halide::Int;

Stmt store(const std::string &name) {
  return Store::make(name, 1, 0, Halide::Parameter(), const_true(), ModulusRemainder());
}

Stmt wait() { return Evaluate::make(Call::make(Int(32), "wait_for_copy", {}, Call::Extern)); }

Stmt loop_over(const std::string &name, const Stmt &body, ForType type = ForType::Serial) {
  return For::make(name, 0, 8, type, Halide::Partition::Auto, Halide::DeviceAPI::CUDA, body);
}

Expr step() { return Variable::make(Int(32), "loop.s1.steps$x"); }

Stmt lowered(const Stmt &steps) {
  const Stmt body = Block::make(steps, store("done"));
  return DropTokens("done", "loop", 1000)
      .mutate(loop_over("done.s0.block.block_id_x", body, ForType::GPUBlock));
}

std::string text_of(const Stmt &s) {
  std::ostringstream out;
  out << s;
  return out.str();
}

TEST(DropTokens, TokensAreNotStoredAndSharedMemoryIsAskedFor) {
  const std::string text = text_of(lowered(wait()));
  EXPECT_EQ(text.find("done["), std::string::npos) << text;
  EXPECT_NE(text.find("wait_for_copy"), std::string::npos);
  EXPECT_NE(text.find("[uint8 * 1000] in GPUShared"), std::string::npos) << text;
}

TEST(DropTokens, EveryConditionOfAStepIsAroundAllOfIt) {
  // As Halide leaves the stages of a step that it dares not skip: before the conditions of its RDom.
  const Stmt guarded = IfThenElse::make(2 <= step(), IfThenElse::make(step() < 5, store("loop.3")));
  const std::string text = text_of(lowered(loop_over("loop.s1.steps$x", Block::make(wait(), guarded))));
  const size_t first = text.find("if ("), waits = text.find("wait_for_copy");
  ASSERT_NE(first, std::string::npos) << text;
  ASSERT_LT(first, waits) << text;
  const std::string condition = text.substr(first, text.find('\n', first) - first);
  EXPECT_NE(condition.find("2 <= loop.s1.steps$x"), std::string::npos) << text;
  EXPECT_NE(condition.find("loop.s1.steps$x < 5"), std::string::npos) << text;
}

TEST(DropTokens, TrimmedLoopsAndOtherLoopsStayAsTheyAre) {
  const std::string text =
      text_of(lowered(loop_over("loop.s1.steps$x", Block::make(wait(), store("loop.3")))));
  EXPECT_EQ(text.find("if ("), std::string::npos) << text;
  const Stmt other = IfThenElse::make(Variable::make(Int(32), "other.s1.r$x") < 5, store("loop.3"));
  const std::string outer = text_of(lowered(loop_over("other.s1.r$x", Block::make(wait(), other))));
  EXPECT_GT(outer.find("if ("), outer.find("wait_for_copy")) << outer;
}

TEST(DropTokens, AConditionThatAStepComputesIsAnError) {
  const Expr inside = Variable::make(Int(32), "inside");
  const Stmt body = LetStmt::make("inside", step() * 2, IfThenElse::make(inside < 5, store("loop.3")));
  EXPECT_THROW(lowered(loop_over("loop.s1.steps$x", body)), std::logic_error);
}

}  // namespace
}  // namespace posattn
