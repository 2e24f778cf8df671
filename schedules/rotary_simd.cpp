#include "schedules/rotary_simd.h"

namespace posattn::schedules {

using namespace Halide;

void schedule_rotary(RotaryFuncs &f, const Machine &machine) {
  const auto &[d, token, head, batch] = f.vars;
  Var row("row"), rows("rows"), task("task");
  RVar out("out"), in("in");
  // A task's start costs about as much as 64 tokens of a head, or one token of 64 heads.
  const auto tasks = [&, &token = token, &head = head, &batch = batch](Stage stage) {
    // Each element is written once, which Halide cannot see where pairs come from a reduction domain.
    stage.allow_race_conditions()
        .fuse(token, head, row)
        .split(row, rows, row, 64, TailStrategy::GuardWithIf)
        .fuse(rows, batch, task)
        .parallel(task);
  };
  Stage rest = f.y.update(2);
  tasks(rest);
  // Both of a pair together: they are read once, and neighbours are stored side by side.
  for (int i = 0; i < 2; i++) {
    Stage pairs = f.y.update(i);
    const RDom &r = i == 0 ? f.adjacent : f.apart;
    tasks(pairs);
    pairs.split(r.y, out, in, machine.lanes, TailStrategy::GuardWithIf)
        .reorder(r.x, in, out, row, task)
        .unroll(r.x)
        .vectorize(in);
  }
  rest.split(f.rest, out, in, machine.lanes, TailStrategy::GuardWithIf)
      .reorder(in, out, row, task)
      .vectorize(in);
}

}  // namespace posattn::schedules
