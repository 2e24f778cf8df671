#include "runtime/layers/position_rows.h"

#include <cmath>

#include "runtime/error.h"

namespace posattn {
namespace {

void check_shape(const TensorView &view, const char *what, int64_t batch, int64_t tokens) {
  const bool fits =
      (view.rank() == 1 || (view.rank() == 2 && (view.size(0) == 1 || view.size(0) == batch))) &&
      view.size(-1) == tokens;
  if (!fits) {
    fail(what, ": expected (", tokens, "), (1, ", tokens, ") or (", batch, ", ", tokens, "), got ",
         view.shape_text());
  }
}

int64_t offset_of(const TensorView &view, int64_t row, int64_t column) {
  return (view.rank() == 2 && view.size(0) > 1 ? row * view.stride(0) : 0) + column * view.stride(-1);
}

}  // namespace

int64_t rows_of(const TensorView &view) { return view.empty() || view.rank() == 1 ? 1 : view.size(0); }

double position_at(const TensorView &view, int64_t row, int64_t column) {
  const int64_t at = offset_of(view, row, column);
  switch (view.dtype()) {
    case DType::f32:
      return view.as<float>()[at];
    case DType::f64:
      return view.as<double>()[at];
    case DType::i32:
      return view.as<int32_t>()[at];
    case DType::i64:
      return static_cast<double>(view.as<int64_t>()[at]);
    default:
      fail("positions: ", name_of(view.dtype()), " is no type for positions");
  }
}

bool mask_at(const TensorView &view, int64_t row, int64_t column) {
  return view.empty() || view.as<uint8_t>()[offset_of(view, row, column)] != 0;
}

void check_positions(const TensorView &view, const char *what, int64_t batch, int64_t tokens, bool values) {
  if (view.empty()) return;
  const DType type = view.dtype();
  if (type != DType::f32 && type != DType::f64 && type != DType::i32 && type != DType::i64) {
    fail(what, ": expected f32, f64, i32 or i64, got ", name_of(type));
  }
  check_shape(view, what, batch, tokens);
  for (int64_t row = 0; values && row < rows_of(view); row++) {
    for (int64_t i = 0; i < tokens; i++) {
      const double position = position_at(view, row, i);
      if (!std::isfinite(position)) fail(what, ": expected finite numbers, got ", position, " at ", i);
    }
  }
}

void check_position_mask(const TensorView &view, const char *what, int64_t batch, int64_t tokens) {
  if (view.empty()) return;
  if (view.dtype() != DType::boolean) fail(what, ": expected bool, got ", name_of(view.dtype()));
  check_shape(view, what, batch, tokens);
}

TensorView last_columns(const TensorView &view, int64_t count) {
  return view.empty() ? view : view.slice(-1, view.size(-1) - count, view.size(-1));
}

bool same_view(const TensorView &a, const TensorView &b) {
  if (a.empty() || b.empty()) return a.empty() && b.empty();
  if (a.data() != b.data() || a.dtype() != b.dtype() || a.rank() != b.rank()) return false;
  for (int dim = 0; dim < a.rank(); dim++) {
    if (a.size(dim) != b.size(dim) || (a.size(dim) > 1 && a.stride(dim) != b.stride(dim))) return false;
  }
  return true;
}

TensorView counting(int64_t first, int64_t count, Scratch &scratch) {
  const MutableTensorView view = scratch.take(DType::i64, {count});
  for (int64_t i = 0; i < count; i++) view.as<int64_t>()[i] = first + i;
  return view;
}

}  // namespace posattn
