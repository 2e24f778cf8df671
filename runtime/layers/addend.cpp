#include "runtime/layers/addend.h"

#include <algorithm>

#include "runtime/layers/position_rows.h"

namespace posattn {
namespace {

// (rows, T, E) or (T, E) -> (batch, T, E)
TensorView for_batches(const TensorView &view, int64_t batch) {
  const int64_t shape[] = {batch, view.size(-2), view.size(-1)};
  const bool shared = view.rank() == 2 || view.size(0) == 1;
  const int64_t strides[] = {shared ? 0 : view.stride(0), view.stride(-2), view.stride(-1)};
  return TensorView(view.data(), view.dtype(), 3, shape, strides);
}

}  // namespace

TensorView addend(const PositionEncoder &encoder, const TensorView &positions, const TensorView &mask,
                  int64_t first, int64_t batch, int64_t tokens, const char *what, Scratch &scratch) {
  if (positions.empty() && mask.empty()) {
    if (tokens > 0) {
      encoder.check(static_cast<double>(first), what);
      encoder.check(static_cast<double>(first + tokens - 1), what);
    }
    const TensorView rows = encoder.rows(first, tokens);
    if (!rows.empty()) return for_batches(rows, batch);
  }
  const int64_t rows = std::max(rows_of(positions), rows_of(mask)), dim = encoder.dim();
  const MutableTensorView encoded = scratch.take(DType::f32, {rows, tokens, dim});
  for (int64_t row = 0; row < rows; row++) {
    for (int64_t i = 0; i < tokens; i++) {
      float *out = encoded.as<float>() + (row * tokens + i) * dim;
      if (!mask_at(mask, row, i)) {
        std::fill(out, out + dim, 0.0f);
        continue;
      }
      const double position =
          positions.empty() ? static_cast<double>(first + i) : position_at(positions, row, i);
      encoder.check(position, what);
      encoder.encode(&position, 1, out);
    }
  }
  return for_batches(encoded, batch);
}

}  // namespace posattn
