#include "runtime/cuda/launch.h"

#include <HalideRuntime.h>
#include <HalideRuntimeCuda.h>

#include <cstring>
#include <exception>

#include "runtime/error.h"

namespace posattn::cuda {
namespace {

// Parameters of a launch: the device and the compiler allow 4 KB of them.
constexpr int kMostArguments = 512;

int run(Launch &launch, const void *image, const char *name, const int (&grid)[3], const int (&block)[3],
        int shared_bytes, void *args[], const int8_t arg_is_buffer[], const size_t arg_sizes[]) {
  // Loops without iterations: the driver takes them for errors.
  for (int i = 0; i < 3; ++i) {
    if (grid[i] <= 0 || block[i] <= 0) return 0;
  }
  const Function function = launch.context->function(image, name, shared_bytes);
  void *arguments[kMostArguments];
  int count = 0;
  for (; arg_sizes[count] != 0; ++count) {
    if (count == kMostArguments) fail("cuda: a kernel has more than ", kMostArguments, " arguments");
    arguments[count] =
        arg_is_buffer[count] ? &static_cast<halide_buffer_t *>(args[count])->device : args[count];
    if (arg_is_buffer[count] || arg_sizes[count] != sizeof(void *)) continue;
    for (const void *map : launch.maps) {
      if (map && std::memcmp(args[count], &map, sizeof(map)) == 0) arguments[count] = const_cast<void *>(map);
    }
  }
  const auto size = [](int value) { return static_cast<unsigned>(value); };
  if (launch.starts_early && driver().LaunchKernelEx) {
    LaunchAttribute attribute = {};
    attribute.id = kLaunchProgrammaticSerialization;
    attribute.is_allowed = 1;
    const LaunchConfig config = {
        size(grid[0]),  size(grid[1]),      size(grid[2]), size(block[0]), size(block[1]),
        size(block[2]), size(shared_bytes), launch.stream, &attribute,     1};
    check(driver().LaunchKernelEx(&config, function, arguments, nullptr), "launching a kernel");
    return 0;
  }
  check(driver().LaunchKernel(function, size(grid[0]), size(grid[1]), size(grid[2]), size(block[0]),
                              size(block[1]), size(block[2]), size(shared_bytes), launch.stream, arguments,
                              nullptr),
        "launching a kernel");
  return 0;
}

// Kernels only ever compare its address: their buffers are on the GPU already, and stay there.
const halide_device_interface_t kInterface = {};

}  // namespace

const void *device_interface() { return &kInterface; }

}  // namespace posattn::cuda

using posattn::cuda::Launch;

// The functions that compiled kernels call, in place of those of Halide's runtime for CUDA.
extern "C" {

const halide_device_interface_t *halide_cuda_device_interface() { return &posattn::cuda::kInterface; }

// Before every launch. The module itself is what we know it by: loaded when it is first launched in a
// context.
int halide_cuda_initialize_kernels(void *, void **state, const char *image, int) {
  __atomic_store_n(state, const_cast<char *>(image), __ATOMIC_RELAXED);
  return 0;
}

void halide_cuda_finalize_kernels(void *, void *) {}

int halide_cuda_run(void *user_context, void *state, const char *name, int grid_x, int grid_y, int grid_z,
                    int block_x, int block_y, int block_z, int shared_bytes, size_t arg_sizes[], void *args[],
                    int8_t arg_is_buffer[]) {
  Launch &launch = *static_cast<Launch *>(user_context);
  // Nothing may be thrown through compiled kernels.
  try {
    return posattn::cuda::run(launch, state, name, {grid_x, grid_y, grid_z}, {block_x, block_y, block_z},
                              shared_bytes, args, arg_is_buffer, arg_sizes);
  } catch (const std::exception &error) {
    launch.error = error.what();
    return halide_error_code_gpu_device_error;
  }
}

}  // extern "C"
