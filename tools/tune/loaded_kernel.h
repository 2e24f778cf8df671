// A kernel out of a shared library, as one of the program's own.
#pragma once

#include <string>

#include "runtime/kernel_registry.h"

namespace posattn::tune {

// What the tuner calls a kernel by.
struct KernelKey {
  std::string kind, branches, type, target;
  int32_t head_dim = 0;
};

// Loads and registers it. It stays until the process ends, and so must `key`. Error if the file or its
// functions are not there.
const KernelInfo &load_kernel(const std::string &library, const std::string &symbol, const KernelKey &key);

}  // namespace posattn::tune
