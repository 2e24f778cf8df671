// Strided tensors: views that own nothing, and a Tensor that owns its memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string>

namespace posattn {

enum class DType : uint8_t { f32, bf16, f16, f64, i64, i32, boolean };

int64_t size_of(DType type);      // bytes of one element
const char *name_of(DType type);  // "f32", "bf16", ...

constexpr int kMaxRank = 5;

// A read-only view. Strides are in elements and may be 0 (broadcast) or negative. The viewed memory belongs
// to the caller and must outlive the call. A default-constructed view is empty(): "this argument was not
// given", which is not the same as a tensor of zero elements.
class TensorView {
 public:
  TensorView() = default;
  // Contiguous, last dimension fastest. Throws Error if rank or element count is out of range.
  TensorView(const void *data, DType type, std::initializer_list<int64_t> shape);
  TensorView(const void *data, DType type, int rank, const int64_t *shape, const int64_t *strides = nullptr);

  bool empty() const { return rank_ < 0; }
  int rank() const { return rank_; }
  DType dtype() const { return dtype_; }
  int64_t size(int dim) const { return shape_[dim < 0 ? dim + rank_ : dim]; }
  int64_t stride(int dim) const { return stride_[dim < 0 ? dim + rank_ : dim]; }
  int64_t num_elements() const;
  const void *data() const { return data_; }
  template <typename T>
  const T *as() const {
    return static_cast<const T *>(data_);
  }
  bool contiguous() const;
  std::string shape_text() const;  // "(2, 8, 128, 64)"

  // Views of the same memory.
  TensorView transposed(int dim_a, int dim_b) const;
  TensorView slice(int dim, int64_t begin, int64_t end) const;
  TensorView select(int dim, int64_t index) const;  // drops the dimension
  TensorView split(int dim, int64_t outer,
                   int64_t inner) const;  // (.., outer * inner, ..) -> (.., outer, inner, ..)
  // (B, T, H * d) -> (B, H, T, d): how every layer here divides channels into heads.
  TensorView heads(int64_t num_heads) const;

 protected:
  const void *data_ = nullptr;
  int64_t shape_[kMaxRank] = {};
  int64_t stride_[kMaxRank] = {};
  int8_t rank_ = -1;
  DType dtype_ = DType::f32;
};

// A view through which results are written.
class MutableTensorView : public TensorView {
 public:
  MutableTensorView() = default;
  MutableTensorView(void *data, DType type, std::initializer_list<int64_t> shape)
      : TensorView(data, type, shape) {}
  MutableTensorView(void *data, DType type, int rank, const int64_t *shape, const int64_t *strides = nullptr)
      : TensorView(data, type, rank, shape, strides) {}

  void *data() const { return const_cast<void *>(data_); }
  template <typename T>
  T *as() const {
    return static_cast<T *>(data());
  }
  MutableTensorView transposed(int dim_a, int dim_b) const {
    return from(TensorView::transposed(dim_a, dim_b));
  }
  MutableTensorView slice(int dim, int64_t begin, int64_t end) const {
    return from(TensorView::slice(dim, begin, end));
  }
  MutableTensorView select(int dim, int64_t index) const { return from(TensorView::select(dim, index)); }
  MutableTensorView split(int dim, int64_t o, int64_t i) const { return from(TensorView::split(dim, o, i)); }
  MutableTensorView heads(int64_t num_heads) const { return from(TensorView::heads(num_heads)); }

 private:
  static MutableTensorView from(const TensorView &view) {
    MutableTensorView result;
    static_cast<TensorView &>(result) = view;
    return result;
  }
};

// Owns 64-byte aligned, contiguous memory, zero at first. Moves, does not copy implicitly (see clone).
class Tensor {
 public:
  Tensor() = default;
  Tensor(DType type, std::initializer_list<int64_t> shape);
  Tensor(DType type, int rank, const int64_t *shape);

  Tensor clone() const;
  Tensor to(DType type) const;  // converted copy; float types round to nearest even

  operator const MutableTensorView &() const {
    return view_;
  }  // NOLINT: a Tensor is used where a view is asked for
  const MutableTensorView &view() const { return view_; }
  bool empty() const { return view_.empty(); }
  int rank() const { return view_.rank(); }
  DType dtype() const { return view_.dtype(); }
  int64_t size(int dim) const { return view_.size(dim); }
  template <typename T>
  T *as() const {
    return view_.as<T>();
  }

 private:
  struct Free {
    void operator()(void *p) const;
  };
  std::unique_ptr<void, Free> memory_;
  MutableTensorView view_;
};

// A contiguous copy of any view, converted to `type`.
Tensor copy_of(const TensorView &view, DType type);
// Copies between views of equal shape, converting; strides are arbitrary.
void copy(const TensorView &from, const MutableTensorView &to);

// a * b, or an Error that names `what` when it overflows 63 bits or a factor is negative.
int64_t checked_product(int64_t a, int64_t b, const char *what);

// Scalar conversions between storage types and float (round to nearest even, NaN kept).
float bf16_to_float(uint16_t bits);
uint16_t float_to_bf16(float value);
float f16_to_float(uint16_t bits);
uint16_t float_to_f16(float value);

}  // namespace posattn
