#include "schedules/merge_cuda.h"

namespace posattn::schedules {

using namespace Halide;

void schedule_merge_cuda(MergeFuncs &f, int head_dim) {
  const auto &[d, split, query, head, batch, part] = f.vars;
  constexpr int kChannels = 4;
  const int parts = kMergeParts, across = head_dim / kChannels;
  Var dx("dx"), dv("dv"), si("si"), so("so"), py("py"), u("u");

  // A block of threads has one row: parts of it share out the splits, and of those, threads the channels. As
  // little as can be comes one after the other: this kernel takes as long as it waits for memory, twice.
  const auto one = [&, query = query, head = head, batch = batch](Func g) {
    return g.bound_extent(query, 1).bound_extent(head, 1).bound_extent(batch, 1);
  };
  f.out.split(d, dv, dx, across, TailStrategy::GuardWithIf)
      .reorder(dx, dv, query, head, batch)
      .gpu_threads(dx, dv)
      .gpu_blocks(query, head, batch);
  f.lse.gpu_blocks(query, head, batch).compute_with(f.out, query);

  const LoopLevel per_row(f.out, query);
  one(f.split_lse).compute_at(per_row).bound(split, 0, kMostSplitsCuda).bound_storage(split, kMostSplitsCuda);
  f.split_lse.split(split, so, si, across * parts, TailStrategy::GuardWithIf)
      .split(si, py, dx, across)
      .reorder(so, dx, py)
      .gpu_threads(dx, py);

  // The largest of each part's, and of those: by every thread that needs it.
  Func part_shared = f.part_maximum.in({f.maximum, f.maximum_for_lse});
  one(part_shared).compute_at(per_row).bound_extent(part, parts).gpu_threads(part);
  one(f.part_maximum).compute_at(part_shared, part).update().unroll(f.part_steps.x);

  Func by_part = f.weighted.update().rfactor(f.splits.x, u), shared = by_part.in(f.weighted);
  one(shared).compute_at(per_row).bound(d, 0, head_dim).bound_extent(u, parts);
  shared.split(d, dx, dv, kChannels).reorder(dv, dx, u).unroll(dv).gpu_threads(dx, u);
  one(f.maximum).compute_at(shared, dx);
  one(by_part).compute_at(shared, dx).bound_extent(d, kChannels).unroll(d);
  by_part.update().reorder(d, f.splits.y, f.splits.z).unroll(d).unroll(f.splits.y);
  one(f.value).compute_at(by_part, f.splits.z).align_bounds(d, kChannels).bound_extent(d, kChannels);
  f.value.vectorize(d).unroll(split);
  one(f.weight).compute_at(by_part, f.splits.z).unroll(split);
  one(f.weighted).compute_at(per_row).bound(d, 0, head_dim);
  f.weighted.split(d, dv, dx, across).gpu_threads(dx, dv);
  f.weighted.update()
      .split(d, dv, dx, across)
      .reorder(f.splits.x, dx, dv)
      .unroll(f.splits.x)
      .gpu_threads(dx, dv);
  one(f.row_lse).compute_at(per_row).gpu_threads(query);
  one(f.maximum_for_lse).compute_at(f.row_lse, query);
  for (Func g : {f.maximum, f.maximum_for_lse}) g.update().unroll(f.parts.x);
}

}  // namespace posattn::schedules
