// A penalty proportional to the distance (Press et al. 2022): - slope_h * |p_q - p_k|.
#include "generators/branch.h"

namespace posattn {

static const RegisterBranch alibi({
    "alibi",
    {{"alibi_slopes", Halide::Float(32), 1}, {"alibi_used", Halide::Int(32), 0}},
    [](const Score &s, const BranchTables &in) {
      return s.logit - in("alibi_slopes", {s.head}) * Halide::abs(s.q_position - s.k_position);
    },
    true,
});

}  // namespace posattn
