// Calls a compiled kernel with arguments that are bound by name, on the stack.
#pragma once

#include <HalideRuntime.h>

#include <cstdint>
#include <cstring>

#include "runtime/kernel_registry.h"
#include "runtime/tensor.h"

namespace posattn {

namespace cuda {
struct Launch;
struct TensorMap;
}  // namespace cuda

constexpr int kMaxKernelArguments = 64;
constexpr int kMaxKernelDims = 5;

// A name and its hash, which the compiler evaluates for a literal.
struct ArgumentName {
  // NOLINTNEXTLINE: a literal is a name.
  constexpr ArgumentName(const char *name) : text(name), hash(2166136261u) {
    for (const char *c = name; *c; ++c) hash = (hash ^ static_cast<unsigned char>(*c)) * 16777619u;
  }
  const char *text;
  uint32_t hash;
};

// A linked kernel with its arguments looked up once.
struct Kernel {
  struct Argument {
    const char *name;
    halide_type_t type;
    int dimensions;  // 0: a number
    // What the kernel says of itself, 0 where it says nothing: the extents that it fixes, or the value that
    // an integer should have.
    int64_t estimates[kMaxKernelDims];
  };
  const KernelInfo *info;
  int target;         // index in cpu.h, or cuda/targets.h
  uint64_t branches;  // one bit a name, as dispatch.cpp numbers them
  int num_arguments;
  uint32_t hashes[kMaxKernelArguments];
  Argument arguments[kMaxKernelArguments];

  int find(ArgumentName name) const {
    for (int i = 0; i < num_arguments; ++i) {
      if (hashes[i] == name.hash && std::strcmp(arguments[i].name, name.text) == 0) return i;
    }
    return -1;
  }
  int64_t estimate(ArgumentName name, int dim, int64_t otherwise) const {
    const int i = find(name);
    return i >= 0 && arguments[i].estimates[dim] > 0 ? arguments[i].estimates[dim] : otherwise;
  }
};

// A tensor as kernels see it: the first dimension is the fastest. Offsets are 32-bit inside kernels.
struct KernelBuffer {
  const void *data = nullptr;
  DType type = DType::f32;
  int dimensions = 0;
  int64_t extent[kMaxKernelDims] = {}, stride[kMaxKernelDims] = {};

  KernelBuffer() = default;
  KernelBuffer(const void *memory, DType element) : data(memory), type(element) {}
  KernelBuffer &dim(int64_t size, int64_t step) {
    extent[dimensions] = size;
    stride[dimensions++] = step;
    return *this;
  }
};
// Where one dimension runs over [begin, end) only.
KernelBuffer slice(const KernelBuffer &buffer, int dim, int64_t begin, int64_t end);
// The same memory with dimensions in the opposite order.
KernelBuffer kernel_buffer(const TensorView &view);
// Whether every element is within 32-bit offsets.
bool fits_kernel(const KernelBuffer &buffer);

// One call. Names that the kernel does not have are ignored; run() insists that those it has are bound.
class KernelCall {
 public:
  explicit KernelCall(const Kernel &kernel) : kernel_(kernel) {
    for (int i = 0; i < kernel.num_arguments; ++i) pointers_[i] = nullptr;
  }
  // On a GPU, where all its tensors are.
  KernelCall(const Kernel &kernel, cuda::Launch &launch);
  KernelCall(const KernelCall &) = delete;
  KernelCall &operator=(const KernelCall &) = delete;

  KernelCall &set(ArgumentName name, float value);
  KernelCall &set(ArgumentName name, int32_t value);
  KernelCall &set(ArgumentName name, bool value);
  KernelCall &set(ArgumentName name, const KernelBuffer &buffer);  // Error if type or dimensions differ
  // On a GPU: the map must live until run() returns. A kernel has three at most.
  KernelCall &set(ArgumentName name, const cuda::TensorMap &map);
  // Binds what is left of a branch's inputs: numbers to 0, tensors to zeros, enough for heads [0, num_zeros).
  KernelCall &set_to_zero(const char *branch, const float *zeros, int64_t num_zeros);
  void run();

 private:
  template <typename T>
  KernelCall &set_number(ArgumentName name, T value, halide_type_t type);

  void set_memory(halide_buffer_t &buffer, const void *data) const;

  const Kernel &kernel_;
  cuda::Launch *launch_ = nullptr;
  void *pointers_[kMaxKernelArguments];
  uint64_t numbers_[kMaxKernelArguments];
  halide_buffer_t buffers_[kMaxKernelArguments];
  halide_dimension_t dims_[kMaxKernelArguments][kMaxKernelDims];
};

}  // namespace posattn
