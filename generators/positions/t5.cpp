// The T5 model's relative position buckets (Raffel et al. 2020): exact for short distances, logarithmic up to
// max_distance, the last bucket beyond. The runtime tabulates the bucket of each distance, so that the
// logarithm is evaluated once and in double.
#include "generators/branch.h"

namespace posattn {

using Halide::Expr;

static const RegisterBranch t5({
    "t5",
    {{"t5_table", Halide::Float(32), 2},  // (head, bucket)
     {"t5_bucket", Halide::Int(32), 1},   // of a distance in [0, max_distance]
     {"t5_max_distance", Halide::Int(32), 0},
     // Buckets of keys after the query start here; 0 in the causal form, where they all count as distance 0.
     {"t5_future_offset", Halide::Int(32), 0},
     {"t5_used", Halide::Int(32), 0}},
    [](const Score &s, const BranchTables &in) {
      const Expr limit = Halide::cast<float>(in("t5_max_distance"));
      const Expr offset = Halide::cast<int>(Halide::clamp(s.k_position - s.q_position, -limit, limit));
      const Expr future_offset = in("t5_future_offset");
      const Expr is_future = offset > 0;
      const Expr distance = Halide::select(is_future && future_offset == 0, 0, Halide::abs(offset));
      const Expr entry =
          in("t5_bucket", {Halide::cast<int>(distance)}) + Halide::select(is_future, future_offset, 0);
      // The runtime has checked the table; Halide cannot know what it holds.
      const Expr bucket = Halide::unsafe_promise_clamped(entry, 0, 1 << 20);
      return s.logit + in("t5_table", {s.head, bucket});
    },
    true,
});

}  // namespace posattn
