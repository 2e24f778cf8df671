#include "runtime/kernel_call.h"

#include <iterator>
#include <limits>
#include <utility>

#include "runtime/cpu.h"
#include "runtime/cuda/launch.h"
#include "runtime/error.h"
#include "runtime/kernel_memory.h"
#include "runtime/parallel.h"

namespace posattn {
namespace {

halide_type_t halide_type(const KernelBuffer &buffer) {
  switch (buffer.type) {
    case DType::f32:
      return halide_type_t(halide_type_float, 32);
    case DType::bf16:
      return halide_type_t(halide_type_bfloat, 16);
    case DType::f16:
      return halide_type_t(halide_type_float, 16);
    case DType::f64:
      return halide_type_t(halide_type_float, 64);
    case DType::i64:
      return halide_type_t(halide_type_int, 64);
    case DType::i32:
      return halide_type_t(halide_type_int, 32);
    case DType::boolean:
      return halide_type_t(halide_type_uint, 8);
  }
  fail("kernel: unknown type");
}

bool fits_int32(int64_t value) {
  return value >= std::numeric_limits<int32_t>::min() && value <= std::numeric_limits<int32_t>::max();
}

}  // namespace

KernelBuffer slice(const KernelBuffer &buffer, int dim, int64_t begin, int64_t end) {
  KernelBuffer part = buffer;
  part.data = static_cast<const char *>(buffer.data) + begin * buffer.stride[dim] * size_of(buffer.type);
  part.extent[dim] = end - begin;
  return part;
}

KernelBuffer kernel_buffer(const TensorView &view) {
  KernelBuffer buffer(view.data(), view.dtype());
  for (int d = view.rank() - 1; d >= 0; --d) buffer.dim(view.size(d), view.size(d) > 1 ? view.stride(d) : 0);
  // A dimension of one element may have any step; kernels take the first dimension's to be 1.
  if (view.rank() > 0 && view.size(-1) <= 1) buffer.stride[0] = 1;
  return buffer;
}

bool fits_kernel(const KernelBuffer &buffer) {
  int64_t forward = 0, backward = 0;
  for (int d = 0; d < buffer.dimensions; ++d) {
    if (!fits_int32(buffer.extent[d])) return false;
    if (buffer.extent[d] <= 1) continue;
    int64_t reach;
    if (__builtin_mul_overflow(buffer.extent[d] - 1, buffer.stride[d], &reach)) return false;
    int64_t &sum = reach < 0 ? backward : forward;
    if (__builtin_add_overflow(sum, reach, &sum)) return false;
  }
  // A margin for the vectors that are read at the end of a row.
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max() - (1 << 16);
  return forward <= kMost && backward >= -kMost;
}

KernelCall::KernelCall(const Kernel &kernel, cuda::Launch &launch) : KernelCall(kernel) {
  launch_ = &launch;
  const int i = kernel_.find("__user_context");
  if (i < 0) fail("kernel ", kernel.info->kind, ": it is compiled for no GPU");
  const void *const context = &launch;
  std::memcpy(&numbers_[i], &context, sizeof(context));
  pointers_[i] = &numbers_[i];
}

void KernelCall::set_memory(halide_buffer_t &buffer, const void *data) const {
  if (!launch_) {
    buffer.host = static_cast<uint8_t *>(const_cast<void *>(data));
    return;
  }
  buffer.device = reinterpret_cast<uint64_t>(data);
  buffer.device_interface = static_cast<const halide_device_interface_t *>(cuda::device_interface());
  buffer.flags = halide_buffer_flag_device_dirty;
}

template <typename T>
KernelCall &KernelCall::set_number(ArgumentName name, T value, halide_type_t type) {
  const int i = kernel_.find(name);
  if (i < 0) return *this;
  const Kernel::Argument &argument = kernel_.arguments[i];
  if (argument.dimensions != 0 || argument.type != type) fail(name.text, ": the kernel expects another type");
  std::memcpy(&numbers_[i], &value, sizeof(value));
  pointers_[i] = &numbers_[i];
  return *this;
}

KernelCall &KernelCall::set(ArgumentName name, float value) {
  return set_number(name, value, halide_type_t(halide_type_float, 32));
}

KernelCall &KernelCall::set(ArgumentName name, int32_t value) {
  return set_number(name, value, halide_type_t(halide_type_int, 32));
}

KernelCall &KernelCall::set(ArgumentName name, bool value) {
  return set_number(name, static_cast<uint8_t>(value), halide_type_t(halide_type_uint, 1));
}

KernelCall &KernelCall::set(ArgumentName name, const KernelBuffer &buffer) {
  const int i = kernel_.find(name);
  if (i < 0) return *this;
  const Kernel::Argument &argument = kernel_.arguments[i];
  const halide_type_t type = halide_type(buffer);
  // Some kernels take any type of that many bits.
  const bool as_bits =
      argument.type.code == halide_type_uint && argument.type.bits == type.bits && type.bits > 8;
  if (argument.type != type && !as_bits) {
    fail(name.text, ": the kernel expects another type than ", name_of(buffer.type));
  }
  if (argument.dimensions != buffer.dimensions) {
    fail(name.text, ": the kernel expects ", argument.dimensions, " dimensions, got ", buffer.dimensions);
  }
  if (!fits_kernel(buffer)) fail(name.text, ": too large: kernels address 2^31 elements of a tensor");
  for (int d = 0; d < buffer.dimensions; ++d) {
    // A dimension of one element is never stepped over.
    const int64_t stride =
        d > 0 && buffer.extent[d] <= 1 && !fits_int32(buffer.stride[d]) ? 0 : buffer.stride[d];
    dims_[i][d] = halide_dimension_t(0, static_cast<int32_t>(buffer.extent[d]), static_cast<int32_t>(stride));
  }
  halide_buffer_t &out = buffers_[i];
  out = halide_buffer_t();
  set_memory(out, buffer.data);
  out.type = argument.type;
  out.dimensions = buffer.dimensions;
  out.dim = dims_[i];
  pointers_[i] = &out;
  return *this;
}

KernelCall &KernelCall::set(ArgumentName name, const cuda::TensorMap &map) {
  if (kernel_.find(name) < 0) return *this;
  const void *const address = &map;
  for (const void *&slot : launch_->maps) {
    if (slot && slot != address) continue;
    slot = address;
    return set_number(name, reinterpret_cast<uint64_t>(address), halide_type_t(halide_type_uint, 64));
  }
  fail(name.text, ": a kernel has at most ", std::size(launch_->maps), " tensor maps");
}

KernelCall &KernelCall::set_to_zero(const char *branch, const float *zeros, int64_t num_zeros) {
  const size_t length = std::strlen(branch);
  for (int i = 0; i < kernel_.num_arguments; ++i) {
    const Kernel::Argument &argument = kernel_.arguments[i];
    // A branch's inputs start with its name.
    if (pointers_[i] || std::strncmp(argument.name, branch, length) != 0 || argument.name[length] != '_')
      continue;
    if (argument.dimensions == 0) {
      numbers_[i] = 0;
      pointers_[i] = &numbers_[i];
      continue;
    }
    for (int d = 0; d < argument.dimensions; ++d) {
      dims_[i][d] = halide_dimension_t(0, static_cast<int32_t>(num_zeros), d == 0 ? 1 : 0);
    }
    halide_buffer_t &out = buffers_[i];
    out = halide_buffer_t();
    set_memory(out, zeros);
    out.type = argument.type;
    out.dimensions = argument.dimensions;
    out.dim = dims_[i];
    pointers_[i] = &out;
  }
  return *this;
}

void KernelCall::run() {
  for (int i = 0; i < kernel_.num_arguments; ++i) {
    if (!pointers_[i]) {
      fail("kernel ", kernel_.info->kind, " of branches '", kernel_.info->branches,
           "': nothing was bound to its input '", kernel_.arguments[i].name, "'");
    }
  }
  install_kernel_memory();
  install_parallel_for();
  const KeepTileConfig keep;
  const int error = kernel_.info->call(pointers_);
  // Kernels are compiled without checks: what a launch returns gets lost in them.
  if (launch_ && !launch_->error.empty()) fail(std::exchange(launch_->error, std::string()));
  if (error) fail("kernel ", kernel_.info->kind, ": failed with code ", error);
}

}  // namespace posattn
