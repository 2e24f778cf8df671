// Keys and values of the tokens seen so far, in the layout that the attention kernels read.
#pragma once

#include "runtime/kv_cache_base.h"
#include "runtime/packed_layout.h"
#include "runtime/tensor.h"

namespace posattn {

// In the host's memory.
class KvCache : public KvCacheBase {
 public:
  // The layout is that of the target in use now: attend() goes on with that target.
  KvCache(int64_t batch, int64_t kv_heads, int64_t head_dim, int64_t value_dim, int64_t capacity, DType type);

  void append(const TensorView &key, const TensorView &value) override;
  void reorder(const TensorView &source_rows) override;
  void truncate(int64_t length) override;

  // For the kernels, both (batch, kv_heads, tiles, tile size): what is packed, up to a whole tile, as
  // layout() says; zero beyond length().
  TensorView packed_keys() const;
  TensorView packed_values() const;
  const PackedLayout &layout() const { return layout_; }
  int target() const { return target_; }  // index in cpu.h
  // Whether a NaN or infinity may be stored: only then does hiding a key take more than a weight of zero.
  bool may_hold_nonfinite() const { return nonfinite_; }

 private:
  // Rows up to a tile's end, and whole tiles.
  template <typename Word>
  void append_rows(const TensorView &key, const TensorView &value);
  void append_tiles(const TensorView &key, const TensorView &value);
  int64_t num_tiles() const { return (length_ + layout_.lanes - 1) / layout_.lanes; }

  int target_ = 0;
  PackedLayout layout_;
  bool nonfinite_ = false;
  Tensor keys_, values_;
};

}  // namespace posattn
