// Between rotate() and attend(): the rotary kernel on tables in a workspace.
#pragma once

#include "runtime/dispatch.h"
#include "runtime/positions.h"
#include "runtime/token_positions.h"
#include "runtime/workspace.h"

namespace posattn {

// Memory of the tables for one side's tokens.
struct RotationTables {
  float *cos, *sin;
  double *scratch;
  static RotationTables take(Workspace &workspace, int64_t pairs, int64_t tokens, int64_t batches);
};

// x, y: (d, token, head, batch). `batches`: 1 if all share their positions.
void run_rotary(const Kernel &kernel, const Rope &rope, const TokenPositions &positions, int64_t batches,
                const RotationTables &tables, const KernelBuffer &x, const KernelBuffer &y);

}  // namespace posattn
