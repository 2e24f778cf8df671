// Computations in which one certain kernel takes part, held against float64.
#pragma once

#include <cstdint>
#include <string>

#include "runtime/kernel_registry.h"

namespace posattn::cli {

struct Verdict {
  bool ok = false;
  double error = 0, bound = 0;  // of the output that comes nearest to its bound
  std::string text;             // of a failure: what was computed and what is wrong
};

// Draws a computation from the seed so that the library needs this kernel for it, and runs it. The kernel's
// target must be the current one.
Verdict verify(const KernelInfo &kernel, uint64_t seed);

// Empty, or why there is nothing to hold this kernel against.
std::string why_not(const KernelInfo &kernel);

}  // namespace posattn::cli
