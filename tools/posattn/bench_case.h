// Work on which one certain kernel spends its time.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "runtime/kernel_registry.h"

namespace posattn::cli {

struct BenchSizes {
  int64_t batch = 1, heads = 8, queries = 1024, keys = 8192, rows = 512, features = 1024;
};

struct BenchWork {
  std::function<void()> run;  // once; owns all that it needs
  double amount = 0;          // of one run: floating-point operations, or bytes
  const char *unit = "";      // of amount / 1e9 / second
  std::string sizes;          // for people
};

// The target must be the current one. run is empty for a kind that is not timed by itself, because it is part
// of the others' work.
BenchWork make_work(const KernelInfo &kernel, const BenchSizes &sizes);

}  // namespace posattn::cli
