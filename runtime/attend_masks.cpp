#include "runtime/attend_masks.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace posattn {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

float float_at(const TensorView &view, int64_t offset) {
  if (view.dtype() == DType::f32) return view.as<float>()[offset];
  const uint16_t bits = view.as<uint16_t>()[offset];
  return view.dtype() == DType::bf16 ? bf16_to_float(bits) : f16_to_float(bits);
}

int64_t length_at(const TensorView &lengths, int64_t batch) {
  const int64_t at = batch * lengths.stride(0);
  return lengths.dtype() == DType::i32 ? lengths.as<int32_t>()[at] : lengths.as<int64_t>()[at];
}

// Offset of row b of a (B, Tk) or (1, Tk) mask.
int64_t row_of(const TensorView &mask, int64_t b) { return mask.size(0) > 1 ? b * mask.stride(0) : 0; }

}  // namespace

TensorView mask_with_four_dims(const TensorView &view) {
  int64_t shape[4], strides[4];
  for (int d = 0; d < 4; ++d) {
    const int from = d - (4 - view.rank());
    const bool varies = from >= 0 && view.size(from) != 1 && view.stride(from) != 0;
    shape[d] = varies ? view.size(from) : 1;
    strides[d] = varies ? view.stride(from) : 0;
  }
  return TensorView(view.data(), view.dtype(), 4, shape, strides);
}

void fill_row_ranges(const AttendArgs &args, const AttendShape &shape, int64_t batches, int32_t *begin,
                     int32_t *end) {
  const int64_t keys = shape.keys, shift = shape.keys - shape.queries;
  for (int64_t b = 0; b < batches; ++b) {
    const int64_t length = args.key_lengths.empty() ? keys : length_at(args.key_lengths, b);
    for (int64_t i = 0; i < shape.queries; ++i) {
      // The key that causality and window are counted from.
      const int64_t aligned = args.causal == Causal::top_left ? i : i + shift;
      int64_t first = 0, last = length;
      if (args.causal != Causal::none) last = std::min(last, aligned + 1);
      // Beyond keys + queries a window is as wide as it gets; without the bound the sums could overflow.
      if (args.window_left >= 0)
        first = std::max(first, aligned - std::min(args.window_left, keys + shape.queries));
      if (args.window_right >= 0) {
        last = std::min(last, aligned + std::min(args.window_right, keys + shape.queries) + 1);
      }
      // An empty range stays inside of the keys.
      last = std::max<int64_t>(last, 0);
      first = std::min(first, last);
      begin[b * shape.queries + i] = static_cast<int32_t>(first);
      end[b * shape.queries + i] = static_cast<int32_t>(last);
    }
  }
}

bool has_key_bias(const AttendArgs &args) {
  return !args.key_keep_mask.empty() || !args.key_block_mask.empty() || !args.key_add_mask.empty();
}

void fill_key_masks(const AttendArgs &args, const AttendShape &shape, int64_t batches, int64_t bias_stride,
                    float *bias, uint8_t *visible) {
  const TensorView &keep = args.key_keep_mask, &block = args.key_block_mask, &add = args.key_add_mask;
  for (int64_t b = 0; b < batches; ++b) {
    const int64_t length = args.key_lengths.empty() ? shape.keys : length_at(args.key_lengths, b);
    for (int64_t j = 0; j < shape.keys; ++j) {
      float value = add.empty() ? 0 : float_at(add, row_of(add, b) + j * add.stride(1));
      if (!keep.empty() && keep.as<uint8_t>()[row_of(keep, b) + j * keep.stride(1)] == 0)
        value = kMinusInfinity;
      if (!block.empty() && block.as<uint8_t>()[row_of(block, b) + j * block.stride(1)] != 0)
        value = kMinusInfinity;
      if (bias) bias[b * bias_stride + j] = value;
      visible[b * shape.keys + j] = j < length && value != kMinusInfinity;
    }
    for (int64_t j = shape.keys; bias && j < bias_stride; ++j) bias[b * bias_stride + j] = 0;
  }
}

AttendMask::AttendMask(const TensorView &mask, const AttendShape &shape)
    : full_{shape.batch, shape.query_heads, shape.queries, shape.keys} {
  if (mask.empty()) return;
  given_ = true;
  view_ = mask_with_four_dims(mask);
  for (int d = 0; d < 4; ++d) size_[d] = view_.size(d);
  const bool contiguous_keys = size_[3] == 1 || view_.stride(3) == 1;
  needs_copy_ = !contiguous_keys || (view_.dtype() != DType::boolean && view_.dtype() != DType::f32);
}

AttendMask AttendMask::combined(const TensorView &keep, const TensorView &block, const AttendShape &shape) {
  AttendMask mask(keep, shape);
  mask.block_ = mask_with_four_dims(block);
  for (int d = 0; d < 4; ++d) mask.size_[d] = std::max(mask.view_.size(d), mask.block_.size(d));
  mask.needs_copy_ = true;
  return mask;
}

int64_t AttendMask::copy_elements(int64_t queries) const {
  const int64_t rows = size_[2] == 1 ? 1 : queries;
  return checked_product(checked_product(size_[0], size_[1], "mask"), checked_product(rows, size_[3], "mask"),
                         "mask");
}

KernelBuffer AttendMask::rows(int64_t begin, int64_t end, void *memory) const {
  const bool per_query = size_[2] != 1;
  const auto rows_of = [&](const TensorView &view) {
    return view.size(2) == 1 ? view : view.slice(2, begin, end);
  };
  TensorView source = rows_of(view_);
  if (needs_copy_) {
    const int64_t shape[] = {size_[0], size_[1], per_query ? end - begin : 1, size_[3]};
    const MutableTensorView copied(memory, copy_type(), 4, shape);
    const auto expanded = [&](const TensorView &view) {
      int64_t strides[4];
      for (int d = 0; d < 4; ++d) strides[d] = view.size(d) == 1 ? 0 : view.stride(d);
      return TensorView(view.data(), view.dtype(), 4, shape, strides);
    };
    copy(expanded(source), copied);
    if (!block_.empty()) {
      const TensorView block = expanded(rows_of(block_));
      uint8_t *out = copied.as<uint8_t>();
      for (int64_t b = 0; b < shape[0]; ++b) {
        for (int64_t h = 0; h < shape[1]; ++h) {
          for (int64_t i = 0; i < shape[2]; ++i) {
            const uint8_t *row =
                block.as<uint8_t>() + b * block.stride(0) + h * block.stride(1) + i * block.stride(2);
            for (int64_t j = 0; j < shape[3]; ++j, ++out) *out = *out != 0 && row[j * block.stride(3)] == 0;
          }
        }
      }
    }
    source = copied;
  }
  const auto stride = [&](int d) { return source.size(d) == 1 ? 0 : source.stride(d); };
  KernelBuffer buffer(source.data(), source.dtype());
  buffer.dim(source.size(3), 1);
  buffer.dim(end - begin, stride(2)).dim(full_[1], stride(1)).dim(full_[0], stride(0));
  return buffer;
}

}  // namespace posattn
