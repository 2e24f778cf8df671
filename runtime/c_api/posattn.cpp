// The operator, and what concerns the whole process.
#include "runtime/c_api/posattn.h"

#include <cstring>
#include <string>

#include "runtime/c_api/arguments.h"
#include "runtime/c_api/status.h"
#include "runtime/cuda/attend.h"
#include "runtime/kernel_registry.h"
#include "runtime/rotary.h"
#include "runtime/threads.h"

namespace posattn::c_api {
namespace {

std::string &last_error() {
  static thread_local std::string text;
  return text;
}

bool runs_here(const char *target) {
  for (const TargetInfo &info : targets()) {
    if (std::strcmp(info.name, target) == 0) return info.cpu_has_it;
  }
  return false;
}

}  // namespace

posattn_status record_failure(posattn_status status, const char *text) noexcept {
  try {
    last_error() = text;
  } catch (...) {  // no memory for the text: the status has to do
    last_error().clear();
  }
  return status;
}

}  // namespace posattn::c_api

using posattn::c_api::AttendCall;
using posattn::c_api::guarded;
using posattn::c_api::required;
using posattn::c_api::view_of;

extern "C" {

const char *posattn_version(void) { return POSATTN_VERSION; }

int posattn_abi_version(void) { return POSATTN_ABI_VERSION; }

const char *posattn_last_error(void) { return posattn::c_api::last_error().c_str(); }

posattn_tensor posattn_contiguous(void *data, posattn_dtype dtype, int rank, const int64_t *shape) {
  posattn_tensor tensor = {};
  tensor.data = data;
  tensor.dtype = dtype;
  tensor.rank = rank;
  if (rank < 0 || rank > POSATTN_MAX_RANK) return tensor;
  int64_t stride = 1;
  for (int d = rank - 1; d >= 0; --d) {
    tensor.shape[d] = shape[d];
    tensor.stride[d] = stride;
    // Too large a shape is refused later, whatever its strides.
    if (shape[d] > 0 && __builtin_mul_overflow(stride, shape[d], &stride)) stride = 0;
  }
  return tensor;
}

void posattn_attend_args_init(posattn_attend_args *args) {
  *args = {};
  args->options.window_left = args->options.window_right = -1;
}

posattn_status posattn_attend_workspace_size(const posattn_attend_args *args, size_t *size) {
  return guarded([&] {
    const AttendCall call(required(args, "args"));
    required(size, "size") = posattn::attend_workspace_size(call.args());
  });
}

posattn_status posattn_attend(const posattn_attend_args *args, void *workspace, size_t workspace_size) {
  return guarded([&] {
    const AttendCall call(required(args, "args"));
    if (workspace) {
      posattn::attend(call.args(), workspace, workspace_size);
    } else {
      posattn::attend(call.args());
    }
  });
}

posattn_status posattn_attend_cuda_workspace_size(const posattn_attend_args *args, void *stream,
                                                  size_t *size) {
  return guarded([&] {
    const AttendCall call(required(args, "args"));
    required(size, "size") = posattn::attend_workspace_size(call.args(), posattn::CudaStream{stream, 0});
  });
}

posattn_status posattn_attend_cuda(const posattn_attend_args *args, void *stream, void *workspace,
                                   size_t workspace_size) {
  return guarded([&] {
    const AttendCall call(required(args, "args"));
    const posattn::CudaStream on{stream, 0};
    if (workspace) {
      posattn::attend(call.args(), on, workspace, workspace_size);
    } else {
      posattn::attend(call.args(), on);
    }
  });
}

posattn_status posattn_rotate(const posattn_tensor *x, const posattn_tensor *inv_freq, int32_t rope_layout,
                              const posattn_tensor *positions, const posattn_tensor *position_mask,
                              const posattn_tensor *out) {
  return guarded([&] {
    const posattn::Rope rope{view_of(required(inv_freq, "inv_freq"), "inv_freq"),
                             posattn::c_api::rope_layout_of(rope_layout)};
    posattn::rotate(rope, view_of(required(x, "x"), "x"), view_of(positions, "positions"),
                    view_of(position_mask, "position_mask"),
                    posattn::c_api::mutable_view_of(required(out, "out"), "out"));
  });
}

posattn_status posattn_set_num_threads(int count) {
  return guarded([&] { posattn::set_num_threads(count); });
}

posattn_status posattn_set_parallel_for(posattn_parallel_for run, void *context) {
  return guarded([&] { posattn::set_parallel_for(run, context); });
}

posattn_status posattn_set_target(const char *name) {
  return guarded([&] { posattn::set_target(name ? name : ""); });
}

posattn_status posattn_current_target(const char **name) {
  return guarded([&] { required(name, "name") = posattn::current_target(); });
}

int64_t posattn_num_kernels(void) { return static_cast<int64_t>(posattn::all_kernels().size()); }

posattn_status posattn_describe_kernel(int64_t index, posattn_kernel_info *info) {
  return guarded([&] {
    if (index < 0 || index >= posattn_num_kernels()) {
      posattn::fail("index: expected one of ", posattn_num_kernels(), " kernels, got ", index);
    }
    const posattn::KernelInfo &kernel = *posattn::all_kernels()[static_cast<size_t>(index)];
    required(info, "info") = {kernel.kind,
                              kernel.branches,
                              kernel.type,
                              kernel.target,
                              kernel.size,
                              kernel.head_dim,
                              posattn::c_api::runs_here(kernel.target)};
  });
}

}  // extern "C"
