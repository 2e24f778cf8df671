// What an encoder adds to a stream.
#pragma once

#include "runtime/layers/position_encoder.h"
#include "runtime/layers/scratch.h"

namespace posattn {

// phi(positions) as (batch, tokens, E) f32, zero where the mask is false; strides are 0 where batches share
// rows. Empty positions mean first, first + 1, ... Throws Error for a position that has no encoding, unless
// it is masked. Positions and mask have been checked; `what` names them in errors.
TensorView addend(const PositionEncoder &encoder, const TensorView &positions, const TensorView &mask,
                  int64_t first, int64_t batch, int64_t tokens, const char *what, Scratch &scratch);

}  // namespace posattn
