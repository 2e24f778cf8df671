#include "schedules/rotary_cuda.h"

namespace posattn::schedules {

using namespace Halide;

void schedule_rotary_cuda(RotaryFuncs &f) {
  const auto &[d, token, head, batch] = f.vars;
  Var heads("heads"), rows("rows"), row("row"), head_out("head_out"), head_in("head_in");
  RVar outer("outer"), lane("lane");
  // A warp rotates neighbouring pairs of one token in several heads, which share their angles. Pairs are
  // blocks, too: the layout that is not asked for has none, and neither has the rest of a head that is
  // rotated whole, so that nothing is launched for them.
  constexpr int kHeads = 4, kRows = 4, kWarp = 32;
  const auto into_blocks = [&, &token = token, &head = head, &batch = batch](Stage stage,
                                                                             const RVar &channel) {
    stage.allow_race_conditions()
        .split(head, head_out, head_in, kHeads, TailStrategy::GuardWithIf)
        .fuse(head_out, batch, heads)
        .split(token, rows, row, kRows, TailStrategy::GuardWithIf)
        .split(channel, outer, lane, kWarp, TailStrategy::GuardWithIf);
  };
  for (int i = 0; i < 2; i++) {
    const RDom &r = i == 0 ? f.adjacent : f.apart;
    Stage pairs = f.y.update(i);
    into_blocks(pairs, r.y);
    pairs.reorder(r.x, head_in, lane, row, heads, rows, outer)
        .unroll(r.x)
        .unroll(head_in)
        .gpu_blocks(heads, rows, outer)
        .gpu_threads(lane, row);
  }
  Stage rest = f.y.update(2);
  into_blocks(rest, f.rest);
  rest.reorder(head_in, lane, row, heads, rows, outer)
      .unroll(head_in)
      .gpu_blocks(heads, rows, outer)
      .gpu_threads(lane, row);
}

}  // namespace posattn::schedules
