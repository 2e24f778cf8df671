// Positions and position masks as the layers read them: doubles, one row for each batch or one for all.
#pragma once

#include "runtime/layers/scratch.h"
#include "runtime/tensor.h"

namespace posattn {

// Throws Error unless `view` is (P), (1, P) or (B, P) with P = tokens, of an allowed type, and, if `values`
// may be read, finite.
void check_positions(const TensorView &view, const char *what, int64_t batch, int64_t tokens,
                     bool values = true);
void check_position_mask(const TensorView &view, const char *what, int64_t batch, int64_t tokens);

// The last `count` of `tokens` columns.
TensorView last_columns(const TensorView &view, int64_t count);

// True if both views are the same memory seen the same way, or both are empty.
bool same_view(const TensorView &a, const TensorView &b);

// first, first + 1, ... as an i64 view (count).
TensorView counting(int64_t first, int64_t count, Scratch &scratch);

int64_t rows_of(const TensorView &view);  // 1 or B; 1 for an empty view
double position_at(const TensorView &view, int64_t row, int64_t column);
bool mask_at(const TensorView &view, int64_t row, int64_t column);  // true for an empty view

}  // namespace posattn
