#include "runtime/tensor.h"

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include "runtime/error.h"

namespace posattn {

int64_t size_of(DType type) {
  switch (type) {
    case DType::f32:
    case DType::i32:
      return 4;
    case DType::bf16:
    case DType::f16:
      return 2;
    case DType::f64:
    case DType::i64:
      return 8;
    case DType::boolean:
      return 1;
  }
  fail("type: ", static_cast<int>(type), " is no DType");
}

const char *name_of(DType type) {
  switch (type) {
    case DType::f32:
      return "f32";
    case DType::bf16:
      return "bf16";
    case DType::f16:
      return "f16";
    case DType::f64:
      return "f64";
    case DType::i64:
      return "i64";
    case DType::i32:
      return "i32";
    case DType::boolean:
      return "bool";
  }
  fail("type: ", static_cast<int>(type), " is no DType");
}

int64_t checked_product(int64_t a, int64_t b, const char *what) {
  int64_t product;
  if (a < 0 || b < 0 || __builtin_mul_overflow(a, b, &product)) {
    fail(what, ": ", a, " * ", b, " does not fit 63 bits");
  }
  return product;
}

namespace {

// Rank and every size, the product of the sizes, and the bytes that strides reach: all fit int64_t. The
// product is over sizes of at least 1, so that (0, 2^62, 2^62) is refused like (1, 2^62, 2^62).
void check_shape(int rank, const int64_t *shape, DType type) {
  if (rank < 0 || rank > kMaxRank) fail("shape: expected at most ", kMaxRank, " dimensions, got ", rank);
  int64_t count = size_of(type);
  for (int d = 0; d < rank; ++d) {
    if (shape[d] < 0) fail("shape: expected sizes of at least 0, got ", shape[d], " in dimension ", d);
    count = checked_product(count, shape[d] > 0 ? shape[d] : 1, "shape: number of bytes");
  }
}

void check_reach(int rank, const int64_t *shape, const int64_t *strides, DType type) {
  int64_t forward = 0, backward = 0;
  for (int d = 0; d < rank; ++d) {
    if (shape[d] <= 1) continue;
    if (strides[d] == std::numeric_limits<int64_t>::min()) fail("strides: ", strides[d], " is out of range");
    int64_t &reach = strides[d] < 0 ? backward : forward;
    const int64_t step = checked_product(shape[d] - 1, std::abs(strides[d]), "strides: reach in elements");
    if (__builtin_add_overflow(reach, step, &reach)) fail("strides: the reach does not fit 63 bits");
  }
  checked_product(forward, size_of(type), "strides: reach in bytes");
  checked_product(backward, size_of(type), "strides: reach in bytes");
}

int checked_dim(int dim, int rank) {
  const int d = dim < 0 ? dim + rank : dim;
  if (d < 0 || d >= rank) fail("dimension: expected one of ", rank, ", got ", dim);
  return d;
}

}  // namespace

TensorView::TensorView(const void *data, DType type, std::initializer_list<int64_t> shape)
    : TensorView(data, type, static_cast<int>(shape.size()), shape.begin()) {}

TensorView::TensorView(const void *data, DType type, int rank, const int64_t *shape, const int64_t *strides)
    : data_(data), rank_(0), dtype_(type) {
  check_shape(rank, shape, type);
  rank_ = static_cast<int8_t>(rank);
  int64_t dense = 1;
  for (int d = rank - 1; d >= 0; --d) {
    shape_[d] = shape[d];
    stride_[d] = strides ? strides[d] : dense;
    dense *= shape[d] > 0 ? shape[d] : 1;
  }
  if (strides) check_reach(rank, shape, strides, type);
}

int64_t TensorView::num_elements() const {
  int64_t count = empty() ? 0 : 1;
  for (int d = 0; d < rank_; ++d) count *= shape_[d];
  return count;
}

bool TensorView::contiguous() const {
  if (num_elements() == 0) return true;
  int64_t dense = 1;
  for (int d = rank_ - 1; d >= 0; --d) {
    if (shape_[d] > 1 && stride_[d] != dense) return false;
    dense *= shape_[d];
  }
  return true;
}

std::string TensorView::shape_text() const {
  if (empty()) return "(none)";
  std::string text = "(";
  for (int d = 0; d < rank_; ++d) text += (d > 0 ? ", " : "") + std::to_string(shape_[d]);
  return text + ")";
}

TensorView TensorView::transposed(int dim_a, int dim_b) const {
  const int a = checked_dim(dim_a, rank_), b = checked_dim(dim_b, rank_);
  TensorView view = *this;
  std::swap(view.shape_[a], view.shape_[b]);
  std::swap(view.stride_[a], view.stride_[b]);
  return view;
}

TensorView TensorView::slice(int dim, int64_t begin, int64_t end) const {
  const int d = checked_dim(dim, rank_);
  if (begin < 0 || end < begin || end > shape_[d]) {
    fail("slice: expected 0 <= begin <= end <= ", shape_[d], ", got [", begin, ", ", end, ")");
  }
  TensorView view = *this;
  view.shape_[d] = end - begin;
  // An empty slice at the end of a dimension keeps its pointer inside the memory.
  if (end > begin) view.data_ = static_cast<const char *>(data_) + begin * stride_[d] * size_of(dtype_);
  return view;
}

TensorView TensorView::select(int dim, int64_t index) const {
  const int d = checked_dim(dim, rank_);
  if (index < 0 || index >= shape_[d]) fail("select: expected an index below ", shape_[d], ", got ", index);
  TensorView view = slice(d, index, index + 1);
  for (int i = d; i + 1 < rank_; ++i) {
    view.shape_[i] = shape_[i + 1];
    view.stride_[i] = stride_[i + 1];
  }
  --view.rank_;
  return view;
}

TensorView TensorView::split(int dim, int64_t outer, int64_t inner) const {
  const int d = checked_dim(dim, rank_);
  if (rank_ == kMaxRank) fail("split: expected at most ", kMaxRank - 1, " dimensions, got ", int{rank_});
  if (checked_product(outer, inner, "split") != shape_[d]) {
    fail("split: expected factors of ", shape_[d], ", got ", outer, " and ", inner);
  }
  TensorView view = *this;
  for (int i = rank_; i > d + 1; --i) {
    view.shape_[i] = shape_[i - 1];
    view.stride_[i] = stride_[i - 1];
  }
  view.shape_[d] = outer;
  // Unsigned: the step of an empty dimension may be any number.
  view.stride_[d] = static_cast<int64_t>(static_cast<uint64_t>(stride_[d]) * static_cast<uint64_t>(inner));
  view.shape_[d + 1] = inner;
  view.stride_[d + 1] = stride_[d];
  ++view.rank_;
  return view;
}

TensorView TensorView::heads(int64_t num_heads) const {
  if (rank_ != 3) fail("heads: expected a tensor (batch, tokens, channels), got ", shape_text());
  if (num_heads < 1 || shape_[2] % num_heads != 0) {
    fail("heads: expected a divisor of ", shape_[2], " channels, got ", num_heads);
  }
  return split(2, num_heads, shape_[2] / num_heads).transposed(1, 2);
}

void Tensor::Free::operator()(void *p) const { std::free(p); }

Tensor::Tensor(DType type, std::initializer_list<int64_t> shape)
    : Tensor(type, static_cast<int>(shape.size()), shape.begin()) {}

Tensor::Tensor(DType type, int rank, const int64_t *shape) {
  constexpr int64_t kCacheLine = 64, kHugePage = int64_t{2} << 20;
  const TensorView checked(nullptr, type, rank, shape);
  const int64_t bytes = checked.num_elements() * size_of(type);
  if (bytes > std::numeric_limits<int64_t>::max() - kHugePage)
    fail("shape: ", checked.shape_text(), " is too large");
  const int64_t alignment = bytes >= 2 * kHugePage ? kHugePage : kCacheLine;
  const size_t rounded = static_cast<size_t>((bytes + alignment) / alignment * alignment);
  memory_.reset(std::aligned_alloc(static_cast<size_t>(alignment), rounded));
  if (!memory_) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
  // A cache or weights that are streamed from memory: prefetchers stop at the end of a page. A wish, which
  // may fail.
  if (alignment == kHugePage) madvise(memory_.get(), rounded, MADV_HUGEPAGE);
#endif
  std::memset(memory_.get(), 0, rounded);
  view_ = MutableTensorView(memory_.get(), type, rank, shape);
}

Tensor Tensor::clone() const { return empty() ? Tensor() : copy_of(view_, dtype()); }

Tensor Tensor::to(DType type) const { return empty() ? Tensor() : copy_of(view_, type); }

}  // namespace posattn
