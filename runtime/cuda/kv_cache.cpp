#include "runtime/cuda/kv_cache.h"

#include "runtime/cuda/copy_rows.h"
#include "runtime/error.h"

namespace posattn {
namespace {

constexpr int64_t kRowBytes = 16;  // tensor cores' kernels and those of decoding read so much at a time

int64_t row_elements(int64_t dim, DType type) {
  const int64_t unit = kRowBytes / size_of(type);
  return (dim + unit - 1) / unit * unit;
}

CudaMemory zeros(const KvCacheBase &cache, int64_t row, const CudaStream &stream) {
  int64_t bytes = size_of(cache.dtype());
  for (int64_t factor : {cache.batch(), cache.kv_heads(), cache.capacity(), row}) {
    bytes = checked_product(bytes, factor, "cache");
  }
  CudaMemory memory(static_cast<size_t>(bytes), stream);
  // What kernels load beside what they were asked for is then finite.
  const cuda::Scope scope(stream);
  if (bytes == 0) return memory;
  cuda::check(cuda::driver().MemsetD8Async(reinterpret_cast<cuda::Address>(memory.data()), 0,
                                           static_cast<size_t>(bytes), scope.stream()),
              "clearing a cache");
  synchronize(stream);
  return memory;
}

}  // namespace

CudaKvCache::CudaKvCache(int64_t batch, int64_t kv_heads, int64_t head_dim, int64_t value_dim,
                         int64_t capacity, DType type, const CudaStream &stream)
    : KvCacheBase(batch, kv_heads, head_dim, value_dim, capacity, type),
      stream_(stream),
      key_row_(row_elements(head_dim, type)),
      value_row_(row_elements(value_dim, type)),
      keys_(zeros(*this, key_row_, stream)),
      values_(zeros(*this, value_row_, stream)) {}

MutableTensorView CudaKvCache::rows(const CudaMemory &memory, int64_t dim, int64_t row, int64_t begin,
                                    int64_t end) const {
  const int64_t shape[] = {batch_, kv_heads_, end - begin, dim};
  const int64_t head = capacity_ * row, strides[] = {kv_heads_ * head, head, row, 1};
  char *const data = static_cast<char *>(memory.data()) + begin * row * size_of(type_);
  return MutableTensorView(data, type_, 4, shape, strides);
}

CudaKvCache::Rows CudaKvCache::next_rows(int64_t tokens) const {
  if (tokens > capacity_ - length_) {
    fail("cache: expected at most ", capacity_ - length_, " more tokens (", length_, " of ", capacity_,
         " are in use), got ", tokens);
  }
  return {rows(keys_, head_dim_, key_row_, length_, length_ + tokens),
          rows(values_, value_dim_, value_row_, length_, length_ + tokens)};
}

void CudaKvCache::append(const TensorView &key, const TensorView &value, const CudaStream &stream) {
  check_append(key, value);
  const cuda::Scope scope(stream);
  if (key.num_elements() > 0) {
    cuda::check_address("key", key.data(), scope);
    cuda::check_address("value", value.data(), scope);
    const Rows next = next_rows(key.size(2));
    cuda::copy_rows(key, {}, next.key, scope);
    cuda::copy_rows(value, {}, next.value, scope);
  }
  advance(key.size(2));
}

void CudaKvCache::reorder(const TensorView &source_rows, const CudaStream &stream) {
  check_source_rows(source_rows);
  if (length_ == 0 || batch_ == 0) return;
  const cuda::Scope scope(stream);
  cuda::check_address("source_rows", source_rows.data(), scope);
  // Gathered into other memory, then copied back, so that the cache stays where it is.
  const cuda::Driver &d = cuda::driver();
  const int64_t size = size_of(type_), tokens = batch_ * kv_heads_ * length_;
  cuda::Address memory = 0;
  cuda::check(
      d.MemAllocAsync(&memory, static_cast<size_t>(tokens * (key_row_ + value_row_) * size), scope.stream()),
      "moving a cache's rows");
  try {
    const auto move = [&](const MutableTensorView &held, int64_t row, int64_t offset) {
      const int64_t shape[] = {batch_, kv_heads_, length_, held.size(3)};
      const int64_t strides[] = {kv_heads_ * length_ * row, length_ * row, row, 1};
      const MutableTensorView moved(reinterpret_cast<char *>(memory) + offset * size, type_, 4, shape,
                                    strides);
      cuda::copy_rows(held, source_rows, moved, scope);
      cuda::copy_rows(moved, {}, held, scope);
    };
    move(rows(keys_, head_dim_, key_row_, 0, length_), key_row_, 0);
    move(rows(values_, value_dim_, value_row_, 0, length_), value_row_, tokens * key_row_);
  } catch (...) {
    d.MemFreeAsync(memory, scope.stream());
    throw;
  }
  cuda::check(d.MemFreeAsync(memory, scope.stream()), "moving a cache's rows");
}

void CudaKvCache::truncate(int64_t length) {
  check_truncate(length);
  length_ = length;
}

}  // namespace posattn
