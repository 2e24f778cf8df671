// How compiled kernels reach the GPU: what Halide's own runtime would do, on the caller's stream and context.
#pragma once

#include <string>

#include "runtime/cuda/context.h"

namespace posattn::cuda {

// One call of a kernel, which the kernel hands through to the functions that launch it (its user context).
struct Launch {
  ContextState *context;
  Stream stream;
  std::string error;  // of what failed
  // Tensor maps of this call. A kernel's argument that is the address of one stands for the map itself, which
  // is passed by value.
  const void *maps[4] = {};
  // The kernel itself waits for the one before it, and may start while that still runs.
  bool starts_early = false;
};

// Of buffers that lie on the GPU (halide_device_interface_t).
const void *device_interface();

}  // namespace posattn::cuda
