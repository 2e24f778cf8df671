#include "schedules/pack_simd.h"

#include <algorithm>

namespace posattn::schedules {

using namespace Halide;

namespace {

// About 64 KB: enough work to be worth a task's start.
constexpr int kTaskBytes = 65536;

// The common case, a head dimension without padding, needs no guard along d at all.
void specialize(PackFuncs &f) {
  f.packed.specialize(f.whole_rows && !f.has_visible);
  f.packed.specialize(f.whole_rows && f.has_visible);
  f.packed.specialize(!f.has_visible);
}

}  // namespace

void schedule_pack_keys(PackFuncs &f, const Machine &machine, const PackShape &shape) {
  const auto &[lane, d, key, block, head, batch] = f.vars;
  Var lane_out("lane_out"), lane_in("lane_in"), d_out("d_out"), d_in("d_in"), task("task"), heads("heads");
  // A square tile is loaded by rows and stored by columns: shuffles in registers between. 16 x 16 was slower
  // on AVX-512, and twice the code.
  const int tile = std::min(machine.lanes, 8);
  const int blocks = std::max(1, kTaskBytes / (machine.key_lanes * shape.head_dim * shape.type.bytes()));

  f.packed.split(lane, lane_out, lane_in, tile)
      .split(d, d_out, d_in, tile)
      .split(block, task, block, blocks, TailStrategy::GuardWithIf)
      .reorder(lane_in, d_in, lane_out, d_out, block, task, head, batch)
      .vectorize(lane_in)
      .unroll(d_in)
      .fuse(head, batch, heads)
      .parallel(heads)
      .parallel(task);
  f.rows.compute_at(f.packed, lane_out)
      .store_in(MemoryType::Stack)
      .bound_extent(d, tile)
      .bound_extent(key, tile)
      .vectorize(d)
      .unroll(key);
  specialize(f);
}

void schedule_pack_values(PackFuncs &f, const Machine &machine, const PackShape &shape) {
  const auto &[lane, d, key, block, head, batch] = f.vars;
  Var d_in("d_in"), task("task"), heads("heads");
  const int keys = std::max(1, kTaskBytes / (shape.head_dim * shape.type.bytes()));
  const int whole = machine.lanes * 4 / shape.type.bytes();
  const int width = shape.head_dim % whole == 0 ? whole : machine.lanes;

  f.packed.split(key, task, key, keys, TailStrategy::GuardWithIf)
      .split(d, d, d_in, width)
      .vectorize(d_in)
      .reorder(d_in, d, key, task, head, batch)
      .fuse(head, batch, heads)
      .parallel(heads)
      .parallel(task);
  specialize(f);
}

}  // namespace posattn::schedules
