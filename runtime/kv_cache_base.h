// What every cache of keys and values is asked, wherever its memory lies.
#pragma once

#include "runtime/tensor.h"

namespace posattn {

// How a cache stores what is appended.
enum class CacheFormat {
  exact,  // bit by bit
  // Each row of a key or a value, of one token and head, as 8-bit integers and one float32 scale, its largest
  // magnitude / 127: a quarter of the memory of float32, and of what decoding reads. Elements are off by at
  // most half a scale, and attention is otherwise as exact as ever. A row that holds a NaN or an infinity
  // reads as NaN; one without any magnitude above 1e-30 as zeros.
  int8,
};

// For self-attention that grows step by step, and for cross-attention whose keys are projected once. Memory
// is taken at construction, for all of the capacity; nothing is moved when the cache grows. With rope, keys
// are appended that are rotated already. Reading from several threads is safe, changing is not.
class KvCacheBase {
 public:
  virtual ~KvCacheBase() = default;

  int64_t batch() const { return batch_; }
  int64_t kv_heads() const { return kv_heads_; }
  int64_t head_dim() const { return head_dim_; }
  int64_t value_dim() const { return value_dim_; }
  int64_t capacity() const { return capacity_; }
  int64_t length() const { return length_; }
  DType dtype() const { return type_; }

  // key (batch, kv_heads, T, head_dim), value (batch, kv_heads, T, value_dim), T >= 0, last dimension
  // contiguous. An Error, for a full cache say, leaves the cache as it was.
  virtual void append(const TensorView &key, const TensorView &value) = 0;
  // Row b becomes what row source_rows[b] was (beam search); (batch) i64 or i32, repetition allowed.
  virtual void reorder(const TensorView &source_rows) = 0;
  virtual void truncate(int64_t length) = 0;  // keeps the first `length` tokens
  void clear() { truncate(0); }

 protected:
  static constexpr int64_t kMaxHeadDim = 256;

  // Any type of float32, bfloat16 and float16; head_dim of the keys, value_dim of the values.
  KvCacheBase(int64_t batch, int64_t kv_heads, int64_t head_dim, int64_t value_dim, int64_t capacity,
              DType type);
  KvCacheBase(const KvCacheBase &) = delete;
  KvCacheBase(KvCacheBase &&) = default;
  KvCacheBase &operator=(const KvCacheBase &) = delete;
  KvCacheBase &operator=(KvCacheBase &&) = default;

  // All throw Error.
  void check_append(const TensorView &key, const TensorView &value) const;
  void check_source_rows(const TensorView &source_rows) const;
  void check_truncate(int64_t length) const;

  int64_t batch_, kv_heads_, head_dim_, value_dim_, capacity_, length_ = 0;
  DType type_;
};

}  // namespace posattn
