#include "schedules/rotary_simd.h"

namespace posattn::schedules {

using namespace Halide;

TuningSpace rotary_tuning_space(const Machine &) {
  TuningSpace space;
  space.parameters = {{"task_rows", kRotaryTaskRows, 16, 512, 16}};
  space.shapes = {{"any", 0, 0, {{{"heads", 8}, {"queries", 512}}}}};
  return space;
}

void schedule_rotary(RotaryFuncs &f, const Machine &machine, int task_rows) {
  const auto &[d, token, head, batch] = f.vars;
  Var row("row"), rows("rows"), task("task");
  RVar out("out"), in("in");
  const auto tasks = [&, &token = token, &head = head, &batch = batch](Stage stage) {
    // Each element is written once, which Halide cannot see where pairs come from a reduction domain.
    stage.allow_race_conditions()
        .fuse(token, head, row)
        .split(row, rows, row, task_rows, TailStrategy::GuardWithIf)
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
