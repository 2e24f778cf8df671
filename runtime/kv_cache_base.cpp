#include "runtime/kv_cache_base.h"

#include "runtime/error.h"

namespace posattn {

KvCacheBase::KvCacheBase(int64_t batch, int64_t kv_heads, int64_t head_dim, int64_t value_dim,
                         int64_t capacity, DType type)
    : batch_(batch),
      kv_heads_(kv_heads),
      head_dim_(head_dim),
      value_dim_(value_dim),
      capacity_(capacity),
      type_(type) {
  if (type != DType::f32 && type != DType::bf16 && type != DType::f16) {
    fail("cache: expected type f32, bf16 or f16, got ", name_of(type));
  }
  if (batch < 0) fail("cache: expected a batch of at least 0, got ", batch);
  if (kv_heads < 1) fail("cache: expected at least 1 head, got ", kv_heads);
  if (head_dim < 1 || head_dim > kMaxHeadDim) {
    fail("cache: expected a head_dim of 1 to ", kMaxHeadDim, ", got ", head_dim);
  }
  if (value_dim < 1 || value_dim > kMaxHeadDim) {
    fail("cache: expected a value_dim of 1 to ", kMaxHeadDim, ", got ", value_dim);
  }
  constexpr int64_t kMostTokens = int64_t{1} << 30;
  if (capacity < 0 || capacity > kMostTokens) {
    fail("cache: expected a capacity of 0 to ", kMostTokens, ", got ", capacity);
  }
}

void KvCacheBase::check_append(const TensorView &key, const TensorView &value) const {
  const auto check = [&](const char *name, const TensorView &view, int64_t dim) {
    if (view.empty()) fail(name, ": expected a tensor, got none");
    const bool fits =
        view.rank() == 4 && view.size(0) == batch_ && view.size(1) == kv_heads_ && view.size(3) == dim;
    if (!fits) {
      fail(name, ": expected shape (", batch_, ", ", kv_heads_, ", tokens, ", dim, "), got ",
           view.shape_text());
    }
    if (view.dtype() != type_) {
      fail(name, ": expected type ", name_of(type_), ", got ", name_of(view.dtype()));
    }
    if (view.num_elements() == 0) return;
    if (view.size(3) > 1 && view.stride(3) != 1) {
      fail(name, ": expected a contiguous last dimension, got stride ", view.stride(3));
    }
    if (view.data() == nullptr) fail(name, ": expected data, got null");
  };
  check("key", key, head_dim_);
  check("value", value, value_dim_);
  if (key.size(2) != value.size(2)) {
    fail("value: expected ", key.size(2), " tokens as in key, got ", value.size(2));
  }
  if (key.size(2) > capacity_ - length_) {
    fail("cache: expected at most ", capacity_ - length_, " more tokens (", length_, " of ", capacity_,
         " are in use), got ", key.size(2));
  }
}

void KvCacheBase::check_source_rows(const TensorView &source_rows) const {
  if (source_rows.empty() || source_rows.rank() != 1 || source_rows.size(0) != batch_) {
    fail("source_rows: expected shape (", batch_, "), got ", source_rows.shape_text());
  }
  if (source_rows.dtype() != DType::i64 && source_rows.dtype() != DType::i32) {
    fail("source_rows: expected type i64 or i32, got ", name_of(source_rows.dtype()));
  }
}

void KvCacheBase::check_truncate(int64_t length) const {
  if (length < 0 || length > length_) {
    fail("cache: expected a length of 0 to ", length_, " to truncate to, got ", length);
  }
}

}  // namespace posattn
