// Which kernels a call of attend() on a GPU uses, and where in the workspace everything lies.
#pragma once

#include "runtime/attend_kernels.h"
#include "runtime/attend_masks.h"
#include "runtime/attend_problem.h"
#include "runtime/cuda/rotary.h"
#include "runtime/workspace.h"

namespace posattn::cuda {

struct Kernels : CommonKernels {
  bool tensor = false;            // `attention` runs on tensor cores; with decode, too
  bool plain = false;             // of tensor and decode: nothing is added to the scores
  bool rotates_together = false;  // keys are heads behind the queries, of the same positions
  const Kernel *rotation = nullptr, *positions = nullptr;
  const Kernel *key_mask = nullptr, *float_mask = nullptr, *keep_mask = nullptr;
  const Kernel *clear_values = nullptr;  // where a kernel for tensor cores must not see hidden values
};

// A mask of (B, Hq, Tq, Tk) as the kernels read it: as it is, or converted some queries at a time.
struct Mask {
  TensorView view, block;  // block: of a keep mask, beside it or in place of it
  int64_t size[4] = {1, 1, 1, 1};
  bool given = false, convert = false;
  void *copy = nullptr;
  int64_t elements(int64_t queries) const {
    return size[0] * size[1] * (size[2] == 1 ? 1 : queries) * size[3];
  }
};

struct Rotated {
  void *data = nullptr;    // (d, token, head, batch), dense rows and heads
  int64_t batch_step = 0;  // more than that of its heads where keys lie behind the queries
};

struct Plan : ResultPlan {
  Kernels kernels;
  int64_t chunk = 0;  // queries at a time
  bool key_masks_per_batch = false;
  float *key_bias = nullptr;  // (key, batch), key_stride a row
  uint8_t *visible = nullptr;
  int64_t key_stride = 0;
  int64_t q_position_batches = 1, k_position_batches = 1;
  float *q_positions = nullptr, *k_positions = nullptr;  // (token, batch, high or low)
  float *zeros = nullptr;                                // cleared where needs_zeros
  int64_t num_zeros = 0;
  bool needs_zeros = false;
  float *offsets = nullptr, *other_offsets = nullptr, *no_offsets = nullptr;
  int64_t num_offsets = 0, offsets_stride = 0, offsets_front = 0;  // front: entries before the first
  void *own[BranchInputs::kCapacity] = {};  // branches' own memory, by their place among the inputs
  Mask keep, add, dense;
  Rotation q_rotation, k_rotation;
  Rotated q_rotated, k_rotated;
  // The weights' kernel sums over parts of the keys: two numbers a part and row, then two a row.
  int64_t key_parts = 0, part_blocks = 0;
  float *part_states = nullptr, *row_states = nullptr;
  void *cleared = nullptr;  // (d, key, head, batch), dense rows of cleared_row elements
  int64_t cleared_row = 0;
};

// How query, key and value are aligned.
struct Alignment {
  bool words = false;     // as the decode kernel needs it
  bool tiles = false;     // as kernels for tensor cores do: rows start at multiples of 16 bytes
  bool maps = false;      // and steps are positive, so that there can be tensor maps
  bool dense = false;     // the dense bias, of 16 bits as the query, can have a map
  bool adjacent = false;  // keys are heads behind the queries, of the same positions
};
bool find_kernels(const AttendArgs &args, const AttendProblem &problem, int capability,
                  const Alignment &alignment, Kernels &kernels, KernelQuery &missing);
Plan make_plan(const AttendArgs &args, const AttendProblem &problem, const Kernels &kernels,
               const BranchInputs &inputs, Workspace &workspace);

}  // namespace posattn::cuda
