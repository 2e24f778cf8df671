// A cache of keys and values in the memory of a GPU.
#pragma once

#include "runtime/cuda/memory.h"
#include "runtime/kv_cache_base.h"

namespace posattn {

// Changes are put onto a stream and not waited for; calls that read the cache belong on the same one, or
// after it. The length is the host's: a captured step is for the length that the cache had then. Rows lie as
// attend() reads them without a copy.
class CudaKvCache : public KvCacheBase {
 public:
  // On the stream's GPU; the stream is that of calls which do not name one.
  CudaKvCache(int64_t batch, int64_t kv_heads, int64_t head_dim, int64_t value_dim, int64_t capacity,
              DType type, const CudaStream &stream);

  // All tensors are on the GPU. source_rows is not read by the host: rows that there are not become the
  // nearest that there is.
  void append(const TensorView &key, const TensorView &value) override { append(key, value, stream_); }
  void append(const TensorView &key, const TensorView &value, const CudaStream &stream);
  void reorder(const TensorView &source_rows) override { reorder(source_rows, stream_); }
  void reorder(const TensorView &source_rows, const CudaStream &stream);
  void truncate(int64_t length) override;

  // What is held, of the first `length` tokens: (batch, kv_heads, length, dim).
  TensorView keys(int64_t length) const { return rows(keys_, head_dim_, key_row_, 0, length); }
  TensorView values(int64_t length) const { return rows(values_, value_dim_, value_row_, 0, length); }
  TensorView keys() const { return keys(length_); }
  TensorView values() const { return values(length_); }

  // For those who write rows themselves: where the next `tokens` go. An Error where append() has one.
  struct Rows {
    MutableTensorView key, value;
  };
  Rows next_rows(int64_t tokens) const;
  void advance(int64_t tokens) { length_ += tokens; }

 private:
  MutableTensorView rows(const CudaMemory &memory, int64_t dim, int64_t row, int64_t begin,
                         int64_t end) const;

  CudaStream stream_;
  int64_t key_row_, value_row_;  // elements from a token to the next, whole multiples of 16 bytes
  CudaMemory keys_, values_;
};

}  // namespace posattn
