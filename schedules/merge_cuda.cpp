#include "schedules/merge_cuda.h"

namespace posattn::schedules {

using namespace Halide;

void schedule_merge_cuda(MergeFuncs &f, int head_dim) {
  const auto &[d, split, query, head, batch] = f.vars;
  constexpr int kWarp = 32, kParts = 8;
  Var dx("dx"), dv("dv"), si("si"), so("so"), part("part");
  const int channels = head_dim / kWarp;

  // A block of threads has one row: warps share out the splits, lanes the channels.
  const auto one = [&, query = query, head = head, batch = batch](Func g) {
    return g.bound_extent(query, 1).bound_extent(head, 1).bound_extent(batch, 1);
  };
  f.out.split(d, dv, dx, kWarp, TailStrategy::GuardWithIf)
      .reorder(dv, dx, query, head, batch)
      .gpu_threads(dx)
      .gpu_blocks(query, head, batch);
  f.lse.gpu_blocks(query, head, batch).compute_with(f.out, query);

  const LoopLevel per_row(f.out, query);
  const auto by_threads = [&, &split = split](Func g) {
    one(g).compute_at(per_row).bound_storage(split, kMostSplitsCuda);
    g.split(split, so, si, kWarp * kParts, TailStrategy::GuardWithIf)
        .split(si, part, dx, kWarp)
        .reorder(so, dx, part)
        .gpu_threads(dx, part);
  };
  by_threads(f.split_lse);
  // Every thread for itself, from shared memory.
  for (const Func &g : {f.maximum, f.sum, f.row_lse}) one(g).compute_at(per_row);
  by_threads(f.weight);

  RVar outer("outer"), inner("inner");
  Var u("u");
  Func by_part = f.weighted.update()
                     .split(f.splits.x, outer, inner, kParts, TailStrategy::GuardWithIf)
                     .rfactor(inner, u);
  Func shared = by_part.in(f.weighted);
  one(shared).compute_at(per_row).bound_extent(d, head_dim).bound_extent(u, kParts);
  shared.split(d, dx, dv, channels).reorder(dv, dx, u).unroll(dv).gpu_threads(dx, u);
  one(by_part).compute_at(shared, dx).bound_extent(d, channels).unroll(d);
  by_part.update().reorder(d, outer).unroll(d);
  one(f.weighted).compute_at(f.out, dv);
}

}  // namespace posattn::schedules
