#include "schedules/rotary_cuda.h"

namespace posattn::schedules {

using namespace Halide;

void schedule_rotary_cuda(RotaryFuncs &f) {
  const auto &[d, token, head, batch] = f.vars;
  Var heads("heads"), rows("rows"), row("row");
  RVar outer("outer"), lane("lane");
  // A warp rotates neighbouring pairs of one token; a launch for each layout, of which one is empty.
  const auto into_blocks = [&, &token = token, &head = head, &batch = batch](Stage stage) {
    stage.allow_race_conditions()
        .fuse(head, batch, heads)
        .split(token, rows, row, 4, TailStrategy::GuardWithIf);
    stage.gpu_blocks(heads, rows);
  };
  for (int i = 0; i < 2; i++) {
    const RDom &r = i == 0 ? f.adjacent : f.apart;
    Stage pairs = f.y.update(i);
    into_blocks(pairs);
    pairs.split(r.y, outer, lane, 32, TailStrategy::GuardWithIf)
        .reorder(r.x, lane, row, outer, heads, rows)
        .unroll(r.x)
        .gpu_threads(lane, row);
  }
  Stage rest = f.y.update(2);
  into_blocks(rest);
  rest.split(f.rest, outer, lane, 32, TailStrategy::GuardWithIf)
      .reorder(lane, row, outer, heads, rows)
      .gpu_threads(lane, row);
}

}  // namespace posattn::schedules
