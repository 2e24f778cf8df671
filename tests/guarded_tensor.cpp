#include "tests/guarded_tensor.h"

#include <cstdlib>
#include <cstring>
#include <new>

#include "runtime/error.h"

namespace posattn::oracle {
namespace {

int64_t offset_of(const TensorView &tensor, const std::vector<int64_t> &index) {
  int64_t offset = 0;
  for (int d = 0; d < tensor.rank(); ++d) offset += index[static_cast<size_t>(d)] * tensor.stride(d);
  return offset * size_of(tensor.dtype());
}

}  // namespace

void GuardedTensor::Free::operator()(void *p) const { std::free(p); }

GuardedTensor::GuardedTensor(std::string name, DType type, const std::vector<int64_t> &shape,
                             const MemoryLayout &layout)
    : name_(std::move(name)) {
  const int rank = static_cast<int>(shape.size());
  const auto at = [](const auto &values, int d) {
    using T = typename std::decay_t<decltype(values)>::value_type;
    return values.empty() ? T{} : static_cast<T>(values[static_cast<size_t>(d)]);
  };
  int64_t strides[kMaxRank] = {}, total = 1, first = 0;
  for (int place = rank - 1; place >= 0; --place) {
    const int d = layout.order.empty() ? place : layout.order[static_cast<size_t>(place)];
    if (at(layout.repeated, d)) continue;
    const int64_t size = shape[static_cast<size_t>(d)];
    strides[d] = total;
    first += at(layout.front, d) * total;
    if (at(layout.reversed, d) && size > 0) {
      first += (size - 1) * total;
      strides[d] = -total;
    }
    total *= at(layout.front, d) + size + at(layout.back, d);
  }
  const size_t body = static_cast<size_t>(total * size_of(type));
  bytes_ = (body + 2 * kGuard + 63) / 64 * 64;
  memory_.reset(static_cast<unsigned char *>(std::aligned_alloc(64, bytes_)));
  if (!memory_) throw std::bad_alloc();
  // 0xfff5 repeated is NaN as f16, bf16, f32 and f64.
  for (size_t i = 0; i < bytes_; ++i) memory_.get()[i] = i % 2 ? 0xff : 0xf5;
  view_ =
      MutableTensorView(memory_.get() + kGuard + first * size_of(type), type, rank, shape.data(), strides);
}

void GuardedTensor::freeze() { frozen_.assign(memory_.get(), memory_.get() + bytes_); }

std::string GuardedTensor::damage(bool written) const {
  std::vector<unsigned char> now(memory_.get(), memory_.get() + bytes_);
  if (written) {
    const int64_t base = view_.as<unsigned char>() - memory_.get();
    const size_t size = static_cast<size_t>(size_of(view_.dtype()));
    for_each_index(view_, [&](const std::vector<int64_t> &index) {
      const size_t at = static_cast<size_t>(base + offset_of(view_, index));
      std::memcpy(&now[at], &frozen_[at], size);
    });
  }
  for (size_t i = 0; i < bytes_; ++i) {
    if (now[i] == frozen_[i]) continue;
    const int64_t from_start = static_cast<int64_t>(i) - (view_.as<unsigned char>() - memory_.get());
    return name_ + ": byte " + std::to_string(from_start) + " from its first element was overwritten" +
           (written ? " although it belongs to no element" : "");
  }
  return "";
}

void set_element(const MutableTensorView &tensor, const std::vector<int64_t> &index, double value) {
  char *at = tensor.as<char>() + offset_of(tensor, index);
  const float f = static_cast<float>(value);
  switch (tensor.dtype()) {
    case DType::f32:
      std::memcpy(at, &f, 4);
      return;
    case DType::bf16:
    case DType::f16: {
      const uint16_t bits = tensor.dtype() == DType::bf16 ? float_to_bf16(f) : float_to_f16(f);
      std::memcpy(at, &bits, 2);
      return;
    }
    case DType::f64:
      std::memcpy(at, &value, 8);
      return;
    case DType::i64: {
      const int64_t i = static_cast<int64_t>(value);
      std::memcpy(at, &i, 8);
      return;
    }
    case DType::i32: {
      const int32_t i = static_cast<int32_t>(value);
      std::memcpy(at, &i, 4);
      return;
    }
    case DType::boolean:
      *at = value != 0;
      return;
  }
  fail("set_element: unknown type");
}

}  // namespace posattn::oracle
