#include "schedules/split_cuda.h"

namespace posattn::schedules {

using namespace Halide;

void schedule_split_cuda(SplitFuncs &f) {
  const auto &[pair, product, group, token, batch] = f.vars;
  // A thread splits two neighbours and writes all of their products: a warp's writes are whole lines of 128
  // bytes, whatever the rows' alignment, which is the caller's. Memory is what limits this.
  constexpr int kThreads = 128;
  Var features("features"), block("block"), thread("thread"), row("row");
  f.out.fuse(pair, group, features)
      .split(features, block, thread, kThreads, TailStrategy::GuardWithIf)
      .fuse(token, batch, row)
      .reorder(product, thread, row, block)
      .unroll(product)
      .gpu_blocks(row, block)
      .gpu_threads(thread);
}

}  // namespace posattn::schedules
