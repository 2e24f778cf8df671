// What the branch computes, compiled into the kernels: KERPLE's logarithmic kernel (Chi et al. 2022,
// arXiv:2205.09921), - scale_h * log(1 + width_h * |p_q - p_k|).
#include "generators/branch.h"

static const posattn::RegisterBranch kerple({
    "kerple",
    {{"kerple_scale", Halide::Float(32), 1}, {"kerple_width", Halide::Float(32), 1}},
    [](const posattn::Score &s, const posattn::BranchTables &in) {
      const Halide::Expr distance = Halide::abs(s.q_position - s.k_position);
      return s.logit -
             in("kerple_scale", {s.head}) * Halide::log(1.0f + in("kerple_width", {s.head}) * distance);
    },
});
