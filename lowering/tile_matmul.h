// Matrix products on AMX tiles. Halide 21's own matcher of AMX keeps sums in memory between steps and takes a
// single tile only; its intrinsics are sound. This pass writes them for whole blocks of 2 x 2 tiles of sums,
// which with two tiles of each operand fill all eight registers.
#pragma once

#include <string>
#include <vector>

#include "Halide.h"

namespace posattn::lowering {

// The update of a Func that is c(n, m, ..) += a(k, m, ..) * b(n, k, ..) in float32, where a and b are
// bfloat16 or halves of 32-bit words that hold two of them. Its loops over n, m and k are serial, the
// innermost ones in any order, and of constant extents: n and m multiples of 16, k of 32. Memory is as the
// instructions want it: c contiguous along n, a along k (in any order within a step of 32), and b holds the
// same pairs of k side by side, then 16 n, one row of them for each pair. What else the Func has for
// dimensions stays a loop.
struct TileMatmul {
  std::string func, n, m, k;  // of the Func, and of its Vars and RVars
  // An RVar around the others, over as many steps as turn out at run time: 0 to most_steps.
  std::string steps;
  int most_steps = 1;
};

// For Pipeline::add_custom_lowering_pass. A Func that does not have the form above, or is not in the
// pipeline, is a Halide::CompileError that names it and says what is wrong. The initial value must be zero:
// it is dropped. The process must be allowed to use tiles before it runs the result (see runtime/cpu.h).
class LowerTileMatmuls : public Halide::Internal::IRMutator {
 public:
  explicit LowerTileMatmuls(std::vector<TileMatmul> matmuls) : matmuls_(std::move(matmuls)) {}

  using IRMutator::mutate;
  Halide::Internal::Stmt mutate(const Halide::Internal::Stmt &stmt) override;

 protected:
  using IRMutator::visit;
  Halide::Internal::Stmt visit(const Halide::Internal::ProducerConsumer *op) override;

 private:
  std::vector<TileMatmul> matmuls_;
  std::vector<bool> found_;
  bool inside_ = false;
};

}  // namespace posattn::lowering
