// Keys and values of the tokens seen so far, in the layout that the attention kernels read.
#pragma once

#include "runtime/kv_cache_base.h"
#include "runtime/packed_layout.h"
#include "runtime/tensor.h"

namespace posattn {

// In the host's memory.
class KvCache : public KvCacheBase {
 public:
  // The layout is that of the target in use now: attend() goes on with that target. CacheFormat::int8 takes
  // a program that links kernels of the kinds prefill_i8 and decode_i8 of the type (//kernels:int8_cache: f32
  // and bf16), which compute in float32 on AVX-512, AVX2 or SSE4.1; attention weights cannot be had from it.
  KvCache(int64_t batch, int64_t kv_heads, int64_t head_dim, int64_t value_dim, int64_t capacity, DType type,
          CacheFormat format = CacheFormat::exact);

  CacheFormat format() const { return format_; }

  void append(const TensorView &key, const TensorView &value) override;
  void reorder(const TensorView &source_rows) override;
  void truncate(int64_t length) override;

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
  // Rows up to a tile's end, and whole tiles.
  template <typename Word>
  void append_rows(const TensorView &key, const TensorView &value);
  void append_tiles(const TensorView &key, const TensorView &value);
  void append_int8(const TensorView &key, const TensorView &value);
  DType stored_type() const { return format_ == CacheFormat::int8 ? DType::boolean : type_; }
  template <typename Index>
  Tensor rows_of(const Tensor &packed, const Tensor &scales, int64_t dim, const Index &index) const;
  int64_t num_tiles() const { return (length_ + layout_.lanes - 1) / layout_.lanes; }

  CacheFormat format_;
  int target_ = 0;
  PackedLayout layout_;
  bool nonfinite_ = false;
  Tensor keys_, values_, key_scales_, value_scales_;
};

}  // namespace posattn
