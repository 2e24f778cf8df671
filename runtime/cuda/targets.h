// The families of kernels for GPUs, and which of them a GPU runs.
#pragma once

#include <string>
#include <vector>

#include "runtime/cpu.h"
#include "runtime/kernel_registry.h"

namespace posattn {

// Targets, best first. A kernel's target is an index into these after those of cpu.h.
struct CudaTarget {
  const char *name;
  int capability;  // 10 * major + minor
  bool exact;      // this capability only, not later ones
};
constexpr int kNumCudaTargets = 3;
constexpr int kNumTargets = kNumCpuTargets + kNumCudaTargets;
const CudaTarget &cuda_target(int index);  // from kNumCpuTargets to kNumTargets

// Index of a target of a CPU or GPU, or -1 if none is called that.
int find_target(const std::string &name);
const char *target_name(int index);
bool runs_on(const CudaTarget &target, int capability);

// As targets() of kernel_registry.h, for the GPU that a call without a stream would use.
std::vector<TargetInfo> cuda_targets();
// Forces a target for calls that run on GPUs ("" = choose again). Throws Error if there is none of that name
// or the build lacks it. A call fails where its GPU does not run it.
void set_cuda_target(const std::string &name);
int forced_cuda_target();  // or -1

}  // namespace posattn
