// A learned number for each offset, clipped to a maximum distance (symm-learning's
// AdditiveRelMultiheadAttention; Shaw et al. 2018 with a scalar per offset): sign * table[clamp(trunc(p_q -
// p_k))].
#include "generators/branch.h"

namespace posattn {

using Halide::Expr;

static const RegisterBranch relative({
    "relative",
    {{"relative_table", Halide::Float(32), 2},   // (offset + max_distance, head)
     {"relative_per_head", Halide::Int(32), 0},  // 0: all heads read row 0
     {"relative_max_distance", Halide::Int(32), 0},
     {"relative_sign", Halide::Float(32), 0},
     {"relative_used", Halide::Int(32), 0}},
    [](const Score &s, const BranchTables &in) {
      const Expr max_distance = in("relative_max_distance");
      // Clamped as a float first: an offset beyond the integers would be undefined when converted.
      const Expr limit = Halide::cast<float>(max_distance);
      const Expr offset = Halide::cast<int>(Halide::clamp(s.q_position - s.k_position, -limit, limit));
      const Expr row = s.head * in("relative_per_head");
      return s.logit + in("relative_sign") * in("relative_table", {offset + max_distance, row});
    },
    true,
});

}  // namespace posattn
