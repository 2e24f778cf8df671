// Work on which one certain kernel spends its time.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "runtime/kernel_registry.h"
#include "tests/reference.h"

namespace posattn::cli {

struct BenchSizes {
  int64_t batch = 1, heads = 8, queries = 1024, rows = 512, features = 1024;
  int64_t keys = 0;     // 0: as many as queries, and 8192 of decode and packing
  bool causal = false;  // prefill
};

struct BenchWork {
  std::function<void()> run;     // once; owns all that it needs
  std::function<void()> finish;  // of a GPU's kernel: waits for all that was run. Empty on a CPU
  double amount = 0;             // of one run: floating-point operations, or bytes
  const char *unit = "";         // of amount / 1e9 / second
  std::string sizes;             // for people
  // Some of what the last run computed against float64; may be empty. What was computed is too much for all
  // of it.
  std::function<oracle::Comparison()> check;
};

// The target must be the current one of its device, and the kernel the one that the library finds, or the
// preferred one (runtime/dispatch.h), now and whenever it runs. run is empty for a kind that is not timed by
// itself, because it is part of the others' work.
BenchWork make_work(const KernelInfo &kernel, const BenchSizes &sizes);

}  // namespace posattn::cli
