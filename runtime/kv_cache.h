// Keys and values of the tokens seen so far, in the layout that the attention kernels read.
#pragma once

#include "runtime/packed_layout.h"
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
// is taken at construction, for all of the capacity; nothing is moved when the cache grows. With rope, append
// keys that are rotated already (see rotate() in rotary.h). Reading from several threads is safe, changing
// is not.
class KvCache {
 public:
  // Any type of float32, bfloat16 and float16; head_dim of the keys, value_dim of the values. The layout is
  // that of the target in use now: attend() goes on with that target. CacheFormat::int8 takes float32 only,
  // and a program that links kernels of the kinds prefill_i8 and decode_i8 (//kernels:int8_cache); attention
  // weights cannot be had from it.
  KvCache(int64_t batch, int64_t kv_heads, int64_t head_dim, int64_t value_dim, int64_t capacity, DType type,
          CacheFormat format = CacheFormat::exact);

  int64_t batch() const { return batch_; }
  int64_t kv_heads() const { return kv_heads_; }
  int64_t head_dim() const { return head_dim_; }
  int64_t value_dim() const { return value_dim_; }
  int64_t capacity() const { return capacity_; }
  int64_t length() const { return length_; }
  DType dtype() const { return type_; }  // of what is appended, and of queries and outputs
  CacheFormat format() const { return format_; }

  // key (batch, kv_heads, T, head_dim), value (batch, kv_heads, T, value_dim), T >= 0, last dimension
  // contiguous. An Error, for a full cache say, leaves the cache as it was.
  void append(const TensorView &key, const TensorView &value);
  // Row b becomes what row source_rows[b] was (beam search); (batch) i64 or i32, repetition allowed.
  void reorder(const TensorView &source_rows);
  void truncate(int64_t length);  // keeps the first `length` tokens
  void clear() { truncate(0); }

  // What is stored, as attention reads it: copies (batch, kv_heads, length, head_dim) and (.., value_dim) in
  // float32.
  Tensor key_rows() const;
  Tensor value_rows() const;

  // For the kernels, both (batch, kv_heads, tiles, tile size): what is packed, up to a whole tile, as
  // layout() says; zero beyond length(). In CacheFormat::int8 bytes, of which only the scales are zero there:
  // (batch, kv_heads, tokens of whole tiles).
  TensorView packed_keys() const;
  TensorView packed_values() const;
  TensorView key_scales() const;
  TensorView value_scales() const;
  const PackedLayout &layout() const { return layout_; }
  int target() const { return target_; }  // index in cpu.h
  // Whether a NaN or infinity may be stored: only then does hiding a key take more than a weight of zero.
  bool may_hold_nonfinite() const { return nonfinite_; }

 private:
  void check_append(const TensorView &key, const TensorView &value) const;
  // Rows up to a tile's end, and whole tiles.
  template <typename Word>
  void append_rows(const TensorView &key, const TensorView &value);
  void append_tiles(const TensorView &key, const TensorView &value);
  void append_int8(const TensorView &key, const TensorView &value);
  DType stored_type() const { return format_ == CacheFormat::int8 ? DType::boolean : type_; }
  template <typename Index>
  Tensor rows_of(const Tensor &packed, const Tensor &scales, int64_t dim, const Index &index) const;
  int64_t num_tiles() const { return (length_ + layout_.lanes - 1) / layout_.lanes; }

  int64_t batch_, kv_heads_, head_dim_, value_dim_, capacity_, length_ = 0;
  DType type_;
  CacheFormat format_;
  int target_ = 0;
  PackedLayout layout_;
  bool nonfinite_ = false;
  Tensor keys_, values_, key_scales_, value_scales_;
};

}  // namespace posattn
