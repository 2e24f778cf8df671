// Calls single kernels of the registry on tensors that notice every access outside of them.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <functional>
#include <map>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "HalideRuntime.h"
#include "runtime/kernel_registry.h"
#include "runtime/tensor.h"

namespace posattn::testing {

inline DType type_named(const std::string &name) {
  return name == "f32" ? DType::f32 : name == "bf16" ? DType::bf16 : DType::f16;
}

// Half the distance between neighbours, relative: what one rounding to the type may cost.
inline double rounding_of(DType type) {
  return type == DType::f32 ? 6.0e-8 : type == DType::bf16 ? 3.91e-3 : 4.89e-4;
}

// A strided tensor whose memory ends at (or begins after) a page that nobody may touch. Bytes that are no
// element hold ones, a NaN in every float type, and untouched() tells whether they still do.
class GuardedTensor {
 public:
  enum class Guard { after, before };

  // extents[0] is the fastest dimension, as in Halide. An empty `strides` means dense; else strides in
  // elements
  // >= 0 (0 = broadcast).
  GuardedTensor(DType type, std::vector<int> extents, std::vector<int> strides = {},
                Guard guard = Guard::after)
      : type_(type), extents_(std::move(extents)), strides_(std::move(strides)) {
    if (strides_.empty()) {
      int stride = 1;
      for (int extent : extents_) strides_.push_back(stride), stride *= extent;
    }
    size_t last = 0;
    for (size_t i = 0; i < extents_.size(); i++) last += size_t(extents_[i] - 1) * strides_[i];
    bytes_ = (last + 1) * size_of(type_);
    const size_t page = size_t(sysconf(_SC_PAGESIZE)), body = (bytes_ + page - 1) / page * page;
    mapped_ = body + page;
    memory_ = static_cast<uint8_t *>(
        mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (memory_ == MAP_FAILED) throw std::runtime_error("mmap failed");
    std::memset(memory_, 0xff, mapped_);
    mprotect(guard == Guard::after ? memory_ + body : memory_, page, PROT_NONE);
    data_ = guard == Guard::after ? memory_ + body - bytes_ : memory_ + page;
    first_ = guard == Guard::after ? memory_ : memory_ + page;
    body_ = body;
  }
  GuardedTensor(const GuardedTensor &) = delete;
  GuardedTensor &operator=(const GuardedTensor &) = delete;
  ~GuardedTensor() { munmap(memory_, mapped_); }

  int extent(int dim) const { return extents_[size_t(dim)]; }
  DType type() const { return type_; }
  uint8_t *data() const { return data_; }

  double get(const std::vector<int> &index) const {
    const uint8_t *p = at(index);
    if (type_ == DType::boolean) return *p;
    if (type_ == DType::i32) return *reinterpret_cast<const int32_t *>(p);
    if (type_ == DType::f32) return *reinterpret_cast<const float *>(p);
    const uint16_t bits = *reinterpret_cast<const uint16_t *>(p);
    return type_ == DType::bf16 ? bf16_to_float(bits) : f16_to_float(bits);
  }
  // The element's bits.
  uint32_t bits(const std::vector<int> &index) const {
    uint32_t word = 0;
    std::memcpy(&word, at(index), size_t(size_of(type_)));
    return word;
  }
  void set(const std::vector<int> &index, double value) {
    uint8_t *p = at(index);
    const float f = float(value);
    if (type_ == DType::boolean) {
      *p = uint8_t(value);
    } else if (type_ == DType::i32) {
      *reinterpret_cast<int32_t *>(p) = int32_t(value);
    } else if (type_ == DType::f32) {
      *reinterpret_cast<float *>(p) = f;
    } else {
      *reinterpret_cast<uint16_t *>(p) = type_ == DType::bf16 ? float_to_bf16(f) : float_to_f16(f);
    }
  }
  void set_bits(const std::vector<int> &index, uint32_t word) {
    std::memcpy(at(index), &word, size_t(size_of(type_)));
  }

  void for_each(const std::function<void(const std::vector<int> &)> &body) const {
    std::vector<int> index(extents_.size(), 0);
    for (;;) {
      body(index);
      size_t i = 0;
      while (i < index.size() && ++index[i] == extents_[i]) index[i++] = 0;
      if (i == index.size()) return;
    }
  }
  void fill(const std::function<double(const std::vector<int> &)> &value) {
    for_each([&](const std::vector<int> &index) { set(index, value(index)); });
  }
  void fill_normal(std::mt19937 &random, double scale = 1) {
    std::normal_distribution<double> normal(0, scale);
    fill([&](const std::vector<int> &) { return normal(random); });
  }

  // Whether every byte that belongs to no element is as it was made.
  bool untouched() const {
    std::vector<bool> owned(body_, false);
    for_each([&](const std::vector<int> &index) {
      const size_t offset = size_t(at(index) - first_);
      for (size_t i = 0; i < size_t(size_of(type_)); i++) owned[offset + i] = true;
    });
    for (size_t i = 0; i < body_; i++) {
      if (!owned[i] && first_[i] != 0xff) return false;
    }
    return true;
  }

  // For the kernel's call; points into this object.
  halide_buffer_t *buffer() {
    dims_.clear();
    for (size_t i = 0; i < extents_.size(); i++) dims_.emplace_back(0, extents_[i], strides_[i]);
    buffer_ = {};
    buffer_.host = data_;
    buffer_.type = halide_type_t(type_ == DType::boolean ? halide_type_uint
                                 : type_ == DType::i32   ? halide_type_int
                                 : type_ == DType::bf16  ? halide_type_bfloat
                                                         : halide_type_float,
                                 uint8_t(8 * size_of(type_)));
    buffer_.dimensions = int32_t(dims_.size());
    buffer_.dim = dims_.data();
    return &buffer_;
  }

 private:
  uint8_t *at(const std::vector<int> &index) const {
    size_t offset = 0;
    for (size_t i = 0; i < index.size(); i++) offset += size_t(index[i]) * strides_[i];
    return data_ + offset * size_of(type_);
  }

  DType type_;
  std::vector<int> extents_, strides_;
  size_t bytes_, mapped_, body_;
  uint8_t *memory_, *data_, *first_;
  std::vector<halide_dimension_t> dims_;
  halide_buffer_t buffer_ = {};
};

// One call; every argument that the kernel has must be given, by its name.
class KernelCall {
 public:
  explicit KernelCall(const KernelInfo &kernel) : kernel_(kernel) {}
  KernelCall &number(const std::string &name, double value) {
    numbers_[name] = value;
    return *this;
  }
  KernelCall &tensor(const std::string &name, GuardedTensor &tensor) {
    buffers_[name] = tensor.buffer();
    return *this;
  }
  // A tensor that the kernel must not look at: it has no memory.
  KernelCall &absent(const std::string &name) {
    buffers_[name] = nullptr;
    return *this;
  }
  int run() {
    const halide_filter_metadata_t &metadata = *kernel_.metadata();
    const size_t count = size_t(metadata.num_arguments);
    std::vector<void *> arguments(count);
    std::vector<halide_scalar_value_t> scalars(count);
    std::vector<halide_buffer_t> nothing(count);
    std::vector<halide_dimension_t> no_extent(5);
    size_t used = 0;
    for (size_t i = 0; i < count; i++) {
      const halide_filter_argument_t &argument = metadata.arguments[i];
      if (argument.kind == halide_argument_kind_input_scalar) {
        const auto found = numbers_.find(argument.name);
        if (found == numbers_.end()) throw std::runtime_error(std::string("no number ") + argument.name);
        if (argument.type.code == halide_type_float) {
          scalars[i].u.f32 = float(found->second);
        } else if (argument.type.bits == 1) {
          scalars[i].u.b = found->second != 0;
        } else {
          scalars[i].u.i32 = int32_t(found->second);
        }
        arguments[i] = &scalars[i];
      } else {
        const auto found = buffers_.find(argument.name);
        if (found == buffers_.end()) throw std::runtime_error(std::string("no tensor ") + argument.name);
        nothing[i] = {};
        nothing[i].type = argument.type;
        nothing[i].dimensions = argument.dimensions;
        nothing[i].dim = no_extent.data();
        halide_buffer_t *buffer = found->second ? found->second : &nothing[i];
        if (buffer->dimensions != argument.dimensions || !(buffer->type == argument.type)) {
          throw std::runtime_error(std::string("wrong type or rank: ") + argument.name);
        }
        arguments[i] = buffer;
      }
      used++;
    }
    if (used != numbers_.size() + buffers_.size()) throw std::runtime_error("the kernel lacks an argument");
    return kernel_.call(arguments.data());
  }

 private:
  const KernelInfo &kernel_;
  std::map<std::string, double> numbers_;
  std::map<std::string, halide_buffer_t *> buffers_;
};

// The extent that the kernel fixes for a dimension of an argument, or -1.
inline int fixed_extent(const KernelInfo &kernel, const std::string &name, int dim) {
  const halide_filter_metadata_t &metadata = *kernel.metadata();
  for (int i = 0; i < metadata.num_arguments; i++) {
    const halide_filter_argument_t &argument = metadata.arguments[i];
    if (argument.name != name || !argument.buffer_estimates) continue;
    const int64_t *extent = argument.buffer_estimates[2 * dim + 1];
    return extent ? int(*extent) : -1;
  }
  return -1;
}

// The linked kernels of a kind that this CPU runs.
inline std::vector<const KernelInfo *> runnable_kernels(const std::string &kind) {
  std::vector<const KernelInfo *> found;
  const std::vector<TargetInfo> known = targets();
  for (const KernelInfo *kernel : all_kernels()) {
    for (const TargetInfo &target : known) {
      if (kernel->kind == kind && kernel->target == std::string(target.name) && target.cpu_has_it) {
        found.push_back(kernel);
      }
    }
  }
  return found;
}

inline std::string describe(const KernelInfo &kernel) {
  return std::string(kernel.kind) + " " + kernel.target + " " + kernel.type + " head_dim " +
         std::to_string(kernel.head_dim);
}

}  // namespace posattn::testing
