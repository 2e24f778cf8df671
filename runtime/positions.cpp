#include "runtime/positions.h"

#include <algorithm>
#include <cmath>

#include "runtime/error.h"

namespace posattn {
namespace {

void expect_f32(const char *argument, const TensorView &tensor) {
  if (tensor.empty()) fail(argument, ": expected a tensor, got none");
  if (tensor.dtype() != DType::f32) fail(argument, ": expected type f32, got ", name_of(tensor.dtype()));
  if (tensor.num_elements() > 0 && tensor.data() == nullptr) fail(argument, ": expected data, got null");
}

void expect_contiguous_rows(const char *argument, const TensorView &tensor) {
  if (tensor.size(-1) > 1 && tensor.stride(-1) != 1) {
    fail(argument, ": expected a contiguous last dimension, got stride ", tensor.stride(-1));
  }
}

}  // namespace

void BranchInputs::add(const char *name, const TensorView &tensor) {
  if (size_ == kCapacity) fail(name, ": expected at most ", kCapacity, " inputs of branches");
  if (tensor.empty()) fail(name, ": expected a tensor, got none");
  if (tensor.dtype() != DType::f32 && tensor.dtype() != DType::i32) {
    fail(name, ": expected type f32 or i32, got ", name_of(tensor.dtype()));
  }
  if (tensor.rank() < 1 || tensor.rank() > 4) {
    fail(name, ": expected 1 to 4 dimensions, got shape ", tensor.shape_text());
  }
  expect_contiguous_rows(name, tensor);
  items_[size_++] = {name, tensor, 0, 0, false, false};
}

void BranchInputs::add_own(const char *name, const TensorView &tensor) {
  add(name, tensor);
  items_[size_ - 1].own = true;
}

void BranchInputs::add(const char *name, float value) {
  if (size_ == kCapacity) fail(name, ": expected at most ", kCapacity, " inputs of branches");
  items_[size_++] = {name, TensorView(), value, 0, false, false};
}

void BranchInputs::add(const char *name, int32_t value) {
  if (size_ == kCapacity) fail(name, ": expected at most ", kCapacity, " inputs of branches");
  items_[size_++] = {name, TensorView(), 0, value, true, false};
}

Relative::Relative(TensorView table, Sign sign) : table_(table), sign_(sign) {
  expect_f32("relative_bias", table_);
  if (table_.rank() != 1 && table_.rank() != 2) {
    fail("relative_bias: expected shape (2M + 1) or (heads, 2M + 1), got ", table_.shape_text());
  }
  constexpr int64_t kLargest = int64_t{1} << 24;  // offsets are exact floats up to here
  if (table_.size(-1) % 2 != 1 || table_.size(-1) > kLargest) {
    fail("relative_bias: expected an odd length 2M + 1 of at most ", kLargest, ", got ", table_.size(-1));
  }
  expect_contiguous_rows("relative_bias", table_);
}

void Relative::check(const AttendShape &shape) const {
  if (table_.rank() == 2 && table_.size(0) != 1 && table_.size(0) != shape.query_heads) {
    fail("relative_bias: expected 1 or ", shape.query_heads, " rows, one per query head, got shape ",
         table_.shape_text());
  }
}

void Relative::bind(BranchInputs &inputs) const {
  const bool per_head = table_.rank() == 2 && table_.size(0) > 1;
  // (head, index); one row stands for every head.
  inputs.add("relative_table", table_.rank() == 2 ? table_ : table_.split(0, 1, table_.size(0)));
  inputs.add("relative_per_head", per_head ? 1 : 0);
  inputs.add("relative_max_distance", static_cast<int32_t>(table_.size(-1) / 2));
  inputs.add("relative_sign", sign_ == Sign::minus ? -1.0f : 1.0f);
}

Alibi::Alibi(TensorView slopes) : slopes_(slopes) {
  expect_f32("alibi_slopes", slopes_);
  if (slopes_.rank() != 1) fail("alibi_slopes: expected shape (heads), got ", slopes_.shape_text());
  expect_contiguous_rows("alibi_slopes", slopes_);
}

void Alibi::check(const AttendShape &shape) const {
  if (slopes_.size(0) != shape.query_heads) {
    fail("alibi_slopes: expected shape (", shape.query_heads, "), got ", slopes_.shape_text());
  }
}

void Alibi::bind(BranchInputs &inputs) const { inputs.add("alibi_slopes", slopes_); }

void Alibi::default_slopes(int64_t heads, float *slopes) {
  // For a power of two, 2^(-8 i / heads) for i = 1 .. heads. Otherwise those of the power of two below, then
  // every other one of twice that number.
  int64_t power = 1;
  while (power * 2 <= heads) power *= 2;
  for (int64_t h = 0; h < heads; ++h) {
    const double step = h < power ? 8.0 / static_cast<double>(power) : 4.0 / static_cast<double>(power);
    const int64_t exponent = h < power ? h + 1 : 2 * (h - power) + 1;
    slopes[h] = static_cast<float>(std::exp2(-step * static_cast<double>(exponent)));
  }
}

T5::T5(TensorView table, int64_t max_distance, bool bidirectional)
    : table_(table), max_distance_(max_distance), bidirectional_(bidirectional) {
  expect_f32("t5_bias", table_);
  if (table_.rank() != 2) fail("t5_bias: expected shape (buckets, heads), got ", table_.shape_text());
  expect_contiguous_rows("t5_bias", table_);
  const int64_t buckets = bidirectional ? table_.size(0) / 2 : table_.size(0);
  const int64_t max_exact = buckets / 2;
  constexpr int64_t kLargest = int64_t{1} << 24;
  if (max_exact < 1 || table_.size(0) > kLargest) {
    fail("t5_bias: expected ", bidirectional ? 4 : 2, " to ", kLargest, " buckets, got shape ",
         table_.shape_text());
  }
  if (max_distance <= max_exact || max_distance > kLargest) {
    fail("t5_max_distance: expected more than ", max_exact,
         ", the distances that have a bucket of their own, and at most ", kLargest, ", got ", max_distance);
  }
  // Transformers' T5Attention._relative_position_bucket, in the same precision: float32, but for the
  // constant.
  const float scale =
      static_cast<float>(std::log(static_cast<double>(max_distance) / static_cast<double>(max_exact)));
  bucket_.resize(static_cast<size_t>(max_distance) + 1);
  for (int64_t distance = 0; distance <= max_distance; ++distance) {
    int64_t bucket = distance;
    if (distance >= max_exact) {
      const float ratio = static_cast<float>(distance) / static_cast<float>(max_exact);
      bucket =
          max_exact + static_cast<int64_t>(std::log(ratio) / scale * static_cast<float>(buckets - max_exact));
      bucket = std::min(bucket, buckets - 1);
    }
    bucket_[static_cast<size_t>(distance)] = static_cast<int32_t>(bucket);
  }
}

void T5::check(const AttendShape &shape) const {
  if (table_.size(1) != shape.query_heads) {
    fail("t5_bias: expected shape (", table_.size(0), ", ", shape.query_heads, "), got ",
         table_.shape_text());
  }
}

void T5::bind(BranchInputs &inputs) const {
  inputs.add("t5_table", table_);
  inputs.add_own("t5_bucket", TensorView(bucket_.data(), DType::i32, {max_distance_ + 1}));
  inputs.add("t5_max_distance", static_cast<int32_t>(max_distance_));
  inputs.add("t5_future_offset", bidirectional_ ? static_cast<int32_t>(table_.size(0) / 2) : 0);
}

void Rope::default_inv_freq(int64_t rotary_dim, double base, float *inv_freq) {
  for (int64_t i = 0; i < rotary_dim / 2; ++i) {
    inv_freq[i] =
        static_cast<float>(std::pow(base, -2.0 * static_cast<double>(i) / static_cast<double>(rotary_dim)));
  }
}

}  // namespace posattn
