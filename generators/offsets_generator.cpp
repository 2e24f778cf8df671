// Tabulates a shift-invariant branch: what it makes of a logit, by offset and head. Attention then reads one
// contiguous vector for each vector of scores, whatever the branch computes.
#include "Halide.h"
#include "generators/branch.h"
#include "generators/branch_arguments.h"
#include "schedules/machine.h"

namespace posattn {

using namespace Halide;

class Offsets : public Generator<Offsets> {
 public:
  GeneratorParam<std::string> branches{"branches", "none"};  // exactly one

  Input<Buffer<float, 2>> in{"in"};  // (t, head): the logits so far, so that several branches chain
  // k_position - q_position at t = 0; it grows by 1 with t.
  Input<float> first_offset{"first_offset"};
  Output<Buffer<float, 2>> out{"out"};  // (t, head)

  void configure() {
    inputs_.declare(*this, branches);
    // Its presence tells the runtime that this branch cannot be tabulated.
    if (!find_branch(branches).shift_invariant) add_input<int>("unavailable");
  }

  void generate() {
    // The algorithm.
    const Expr offset = first_offset + cast<float>(t);
    const Score score{in(t, head), 0, head, 0, t, 0.f, offset};
    const Branch &branch = find_branch(branches);
    out(t, head) = branch.shift_invariant ? branch.logit(score, inputs_.tables()) : in(t, head);
  }

  void schedule() {
    if (get_target().has_gpu_feature()) {
      Var block("block"), thread("thread");
      out.gpu_tile(t, block, thread, 128, TailStrategy::GuardWithIf).gpu_blocks(head);
    } else {
      out.vectorize(t, schedules::machine(get_target()).lanes, TailStrategy::GuardWithIf);
    }
    for (int i = 0; i < 2; i++) {
      in.dim(i).set_min(0);
      out.dim(i).set_min(0);
    }
  }

 private:
  Var t{"t"}, head{"head"};
  BranchArguments inputs_;
};

}  // namespace posattn

HALIDE_REGISTER_GENERATOR(posattn::Offsets, offsets)
