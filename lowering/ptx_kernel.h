// A generator whose CUDA kernel holds inline PTX and stores its results by it.
#pragma once

#include <set>
#include <string>

#include "Halide.h"
#include "lowering/inline_ptx.h"

namespace posattn {

// What such a generator derives from besides Halide::Generator. Its one Halide output is a Func of tokens,
// which is never stored: the pass below takes it out of the kernel, and compile_ptx() (ptx_compile.h) out of
// the arguments. What the instructions store to is declared as inputs, of which compile_ptx() makes outputs.
// Or else it stores_outputs, as generators do, and there is more in its PTX than Halide writes.
class PtxKernel {
 public:
  virtual ~PtxKernel() = default;
  InlinePtx ptx;

  // The head of the PTX text.
  InlinePtx::Head ptx_head;
  // Which card ptxas, where there is one, assembles for, such as sm_90a. Its machine code is embedded, or the
  // text nevertheless: then the driver assembles it for whatever card there is.
  std::string assemble_for;
  bool embeds_text = false;
  // Inputs that the instructions store to.
  std::set<std::string> stored_to;
  bool stores_outputs = false;
};

// Drops the stores to the Func of tokens, keeping the instructions that make them, and asks for dynamic
// shared memory, which the instructions address by themselves: Halide passes its size on to the launch.
//
// Loops over steps that `loop` makes must not run a stage of a step that its RDom's condition excludes, as
// the stages wait for copies. Halide skips such stages by itself, but not where some condition depends on
// their values (a branch that compares logits): so the condition is put around all of a step.
class DropTokens : public Halide::Internal::IRMutator {
 public:
  DropTokens(std::string func, std::string loop, int shared_bytes)
      : func_(std::move(func)), loop_(std::move(loop)), shared_bytes_(shared_bytes) {}

 protected:
  using Halide::Internal::IRMutator::visit;
  Halide::Internal::Stmt visit(const Halide::Internal::Store *op) override;
  Halide::Internal::Stmt visit(const Halide::Internal::LetStmt *op) override;
  Halide::Internal::Stmt visit(const Halide::Internal::Evaluate *op) override;
  Halide::Internal::Stmt visit(const Halide::Internal::For *op) override;

 private:
  bool is_of_buffer(const Halide::Expr &e) const;
  std::string func_, loop_;
  int shared_bytes_;
  bool in_kernel_ = false;
};

// The address of a buffer's first element on the device. Pure, so Halide computes it on the host.
inline Halide::Expr device_address(const Halide::Parameter &parameter) {
  using namespace Halide::Internal;
  return Call::make(
      Halide::UInt(64), "_halide_buffer_get_device",
      {Variable::make(Halide::type_of<struct halide_buffer_t *>(), parameter.name() + ".buffer", parameter)},
      Call::PureExtern);
}
template <typename Input>
Halide::Expr device_address(const Input &buffer) {
  const Halide::Expr extent = buffer.dim(0).extent();
  return device_address(extent.as<Halide::Internal::Variable>()->param);
}

}  // namespace posattn
