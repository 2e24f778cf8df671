// Rotation by positions on a GPU: tables of cosines and sines, then heads by the tables.
#pragma once

#include "runtime/cuda/launch.h"
#include "runtime/kernel_call.h"
#include "runtime/positions.h"

namespace posattn::cuda {

// Memory of the tables for one side's tokens.
struct Rotation {
  int64_t batches = 1;      // 1 if all share their positions
  float *tables = nullptr;  // rotation_table_size() floats: cosines, then sines, (pair, token, batch)
};
int64_t rotation_table_size(const Rope &rope, int64_t tokens, int64_t batches);

struct RotaryKernels {
  const Kernel *rotation = nullptr, *rotary = nullptr;
};

// y = x rotated; both (d, token, head, batch). Positions as in set_positions().
void run_rotary(const RotaryKernels &kernels, const Rope &rope, const Rotation &rotation,
                const TensorView &positions, const TensorView &mask, int64_t first, const KernelBuffer &x,
                const KernelBuffer &y, const void *unused, Launch &launch);

}  // namespace posattn::cuda
