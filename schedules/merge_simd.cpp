#include "schedules/merge_simd.h"

namespace posattn::schedules {

using namespace Halide;

void schedule_merge(MergeFuncs &f, const Machine &machine, int head_dim) {
  const auto &[d, split, query, head, batch] = f.vars;
  Var heads("heads"), queries("queries"), d_in("d_in");
  const int lanes = machine.lanes;

  // Scalars: some tens of splits for each row, against the head dimension times as many below.
  f.lse.fuse(head, batch, heads).parallel(heads);
  f.maximum.compute_at(f.lse, query);
  f.sum.compute_at(f.lse, query);

  // A task has up to 16 queries: one head's splits are then read in rows of some KB.
  f.out.split(query, queries, query, 16, TailStrategy::GuardWithIf)
      .split(d, d, d_in, lanes, TailStrategy::GuardWithIf)
      .vectorize(d_in)
      .reorder(d_in, d, query, queries, head, batch)
      .fuse(head, batch, heads)
      .parallel(heads)
      .parallel(queries);
  f.weighted.compute_at(f.out, query)
      .store_in(MemoryType::Stack)
      .bound_extent(d, head_dim)
      .vectorize(d, lanes);
  f.weighted.update().reorder(d, f.splits).vectorize(d, lanes);
  f.weight.compute_at(f.weighted, f.splits);
  f.out.specialize(f.whole_rows);
}

}  // namespace posattn::schedules
