// Masks as the attention kernels read them.
#pragma once

#include <cstdint>

#include "runtime/attend_problem.h"
#include "runtime/kernel_call.h"

namespace posattn {

// The keys [begin, end) that causality, window and lengths leave to each query: (query, batch), `batches`
// rows.
void fill_row_ranges(const AttendArgs &args, const AttendShape &shape, int64_t batches, int32_t *begin,
                     int32_t *end);

// Key masks in one: `bias` is added to the scores of a key, -inf hides it; null if no mask is given. visible
// is 0 for every key that masks or lengths hide. `batches` rows of bias_stride and shape.keys elements.
bool has_key_bias(const AttendArgs &args);
void fill_key_masks(const AttendArgs &args, const AttendShape &shape, int64_t batches, int64_t bias_stride,
                    float *bias, uint8_t *visible);

// Rank 4, leading dimensions added; size 1 and step 0 wherever all elements are one.
TensorView mask_with_four_dims(const TensorView &mask);

// A mask of (B, Hq, Tq, Tk), with size 1 where it is broadcast.
class AttendMask {
 public:
  AttendMask() = default;
  // Null data pointers are fine: only shapes are looked at.
  AttendMask(const TensorView &mask, const AttendShape &shape);
  // Both a keep and a block mask: as one keep mask.
  static AttendMask combined(const TensorView &keep, const TensorView &block, const AttendShape &shape);

  bool given() const { return given_; }
  // Kernels read f32 or bytes whose keys are contiguous. Anything else is converted, a few queries at a time.
  bool needs_copy() const { return needs_copy_; }
  int64_t copy_elements(int64_t queries) const;  // of `queries` rows
  int64_t copy_elements_per_query() const { return size_[2] == 1 ? 0 : size_[0] * size_[1] * size_[3]; }
  DType copy_type() const { return view_.dtype() == DType::boolean ? DType::boolean : DType::f32; }

  // (key, query, head, batch) of the queries [begin, end), converted into `memory` if that is needed.
  KernelBuffer rows(int64_t begin, int64_t end, void *memory) const;

 private:
  TensorView view_, block_;
  int64_t size_[4] = {}, full_[4] = {};
  bool given_ = false, needs_copy_ = false;
};

}  // namespace posattn
