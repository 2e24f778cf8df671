#include "schedules/merge_cuda.h"

namespace posattn::schedules {

using namespace Halide;

void schedule_merge_cuda(MergeCudaFuncs &f, int head_dim) {
  const auto &[d, split, query, head, batch, part, piece] = f.vars;
  const int across = head_dim / kMergeChannels;
  Var dx("dx"), dv("dv"), channel("channel");

  // A block of threads has one row: parts of it share out the splits, and of those, threads the channels. As
  // little as can be comes one after the other: this kernel takes as long as it waits for memory, once.
  const auto one = [&, query = query, head = head, batch = batch](Func g) {
    return g.bound_extent(query, 1).bound_extent(head, 1).bound_extent(batch, 1);
  };
  f.out.split(d, dv, dx, across, TailStrategy::GuardWithIf)
      .reorder(dx, dv, query, head, batch)
      .gpu_threads(dx, dv)
      .gpu_blocks(query, head, batch);
  f.lse.gpu_blocks(query, head, batch).compute_with(f.out, query);

  const LoopLevel per_row(f.out, query);
  one(f.shared).compute_at(per_row).bound(d, 0, head_dim).bound(part, 0, kMergeParts);
  f.shared.split(d, dx, channel, kMergeChannels)
      .reorder(channel, dx, part)
      .unroll(channel)
      .gpu_threads(dx, part);
  one(f.part).compute_at(f.shared, dx).bound_extent(piece, 1).bound_extent(part, 1);
  const LoopLevel per_turn(f.part, f.turns.x);
  one(f.split_lse).compute_at(per_turn).bound_extent(split, kMergeSteps).unroll(split);
  one(f.value).compute_at(per_turn).align_bounds(d, kMergeChannels).bound_extent(d, kMergeChannels);
  f.value.bound_extent(split, kMergeSteps).vectorize(d).unroll(split);

  // In shared memory once more, or a single thread would do for lse what a thread of each channel does.
  one(f.joined).compute_at(per_row).bound(d, 0, head_dim);
  f.joined.split(d, dv, dx, across).gpu_threads(dx, dv);
  for (Func g : {f.maximum, f.sum}) {
    one(g).compute_at(f.joined, dx);
    g.update().unroll(f.parts.x);
  }
  one(f.row_lse).compute_at(per_row).gpu_threads(query);
}

}  // namespace posattn::schedules
