// Finds the kernel for a call among those that the program links.
#pragma once

#include <string>

#include "runtime/kernel_call.h"
#include "runtime/tensor.h"

namespace posattn {

// Branches that kernels skip where the second of these, an input, is 0: one that has them serves calls that
// do not ask for them.
struct NeutralBranch {
  const char *name, *used;
};
constexpr NeutralBranch kNeutralBranches[] = {
    {"alibi", "alibi_used"}, {"relative", "relative_used"}, {"t5", "t5_used"}};

// "alibi+relative": sorted, without repetition.
struct BranchSet {
  static constexpr int kCapacity = 8;
  const char *names[kCapacity] = {};
  int size = 0;

  void add(const char *name);  // Error if it is there already
  bool has(const char *name) const;
  std::string text() const;
};

struct KernelQuery {
  const char *kind = nullptr;
  DType type = DType::f32;
  int target = 0;        // index in cpu.h, or cuda/targets.h
  int64_t head_dim = 0;  // the smallest at least as large, or this one exactly
  bool exact_head_dim = false;
  BranchSet branches;
  // Of the call, as kernels may be tuned for short ones. Not among what makes a result: kernels that differ
  // in this alone agree within rounding.
  int64_t queries = 0, keys = 0;
};

// The kernel with the fewest branches beyond those asked for, which must be ones whose inputs can be made
// neutral; among these the one of the smallest head dimension, and of these the one that was tuned for the
// shortest calls that take in this one. Null if there is none. Costs no allocation.
const Kernel *find_kernel(const KernelQuery &query);
// The same, or an Error that lists what is linked.
const Kernel &require_kernel(const KernelQuery &query);
[[noreturn]] void fail_no_kernel(const KernelQuery &query);

// From now on this kernel is found for every query that it serves, whatever else does and whatever shapes it
// is tuned for; null: no longer. For programs that measure or verify one kernel. It must be registered.
void prefer_kernel(const KernelInfo *kernel);

// Targets that a call may use, best first: the forced one (and for what it never has kernels for, its rest),
// or all that this CPU has and the program links.
struct TargetList {
  int targets[8];
  int size;
};
TargetList usable_targets();
// The same for a GPU of that compute capability (10 * major + minor).
TargetList usable_cuda_targets(int capability);

}  // namespace posattn
