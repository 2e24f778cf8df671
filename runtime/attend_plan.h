// Which kernels a call of attend() uses, and where in the workspace everything lies.
#pragma once

#include "runtime/attend_kernels.h"
#include "runtime/attend_masks.h"
#include "runtime/attend_problem.h"
#include "runtime/kv_cache.h"
#include "runtime/packed_layout.h"
#include "runtime/rotary_call.h"
#include "runtime/token_positions.h"
#include "runtime/workspace.h"

namespace posattn {

struct AttendKernels : CommonKernels {
  int target = 0;
  const Kernel *pack_keys = nullptr, *pack_values = nullptr;
};

// False if some kernel is not linked; `missing` is then the first that was looked for in vain.
bool find_attend_kernels(const AttendArgs &args, const AttendProblem &problem, bool tabulated,
                         AttendKernels &kernels, KernelQuery &missing);

struct AttendPlan : ResultPlan {
  AttendKernels kernels;
  PackedLayout layout;
  int64_t blocks, padded_keys;  // of layout.lanes keys
  int64_t batch_group;          // batches that are packed, then attended to, at a time
  int64_t chunk;                // queries at a time: masks that are converted are so many rows

  bool rows_per_batch, key_masks_per_batch, positions_per_batch;
  int32_t *row_begin, *row_end;  // (query, batch)
  float *key_bias;               // (key, batch), padded_keys a row
  uint8_t *visible;              // (key, batch)
  PositionArrays q_positions, k_positions;
  float *zeros;  // for the inputs of branches that were not asked for
  int64_t num_zeros;
  float *offsets, *other_offsets, *no_offsets;  // (t, head), (t, head), (t)
  int64_t num_offsets, offsets_stride;
  AttendMask keep, add, dense;
  void *keep_copy, *add_copy, *dense_copy;
  RotationTables q_rotation, k_rotation;
  void *q_rotated, *k_rotated;       // (d, token, head, batch), dense
  void *keys, *values;               // packed; with a cache, only if hidden rows must be cleared
  float *key_scales, *value_scales;  // of a cache of 8-bit integers, if hidden rows must be cleared
  bool pack, clear_hidden;
  bool values_in_place;  // they lie as packed ones would
};

// The one place that lays out the workspace.
AttendPlan make_attend_plan(const AttendArgs &args, const AttendProblem &problem,
                            const AttendKernels &kernels, Workspace &workspace);

}  // namespace posattn
