#include "runtime/cuda/targets.h"

#include <atomic>

#include "runtime/cuda/driver.h"
#include "runtime/error.h"

namespace posattn {
namespace {

// sm90a has instructions that no later card has (wgmma).
constexpr CudaTarget kTargets[kNumCudaTargets] = {
    {"sm90a", 90, true},
    {"sm80", 80, false},
    {"simt", 80, false},
};

std::atomic<int> forced{-1};

bool linked(int target) {
  for (const KernelInfo *kernel : all_kernels()) {
    if (find_target(kernel->target) == target) return true;
  }
  return false;
}

// Of the current context's GPU, or else of the first.
int capability_of(const cuda::Driver &d) {
  cuda::Context context = nullptr;
  cuda::Device device = 0;
  if (d.CtxGetCurrent(&context) != cuda::kSuccess || !context || d.CtxGetDevice(&device) != cuda::kSuccess) {
    cuda::check(d.DeviceGet(&device, 0), "device");
  }
  int major = 0, minor = 0;
  cuda::check(d.DeviceGetAttribute(&major, cuda::kAttributeCapabilityMajor, device), "compute capability");
  cuda::check(d.DeviceGetAttribute(&minor, cuda::kAttributeCapabilityMinor, device), "compute capability");
  return 10 * major + minor;
}

}  // namespace

const CudaTarget &cuda_target(int index) { return kTargets[index - kNumCpuTargets]; }

int find_target(const std::string &name) {
  for (int i = 0; i < kNumCudaTargets; ++i) {
    if (name == kTargets[i].name) return kNumCpuTargets + i;
  }
  return find_cpu_target(name);
}

const char *target_name(int index) {
  return index < kNumCpuTargets ? cpu_target(index).name : cuda_target(index).name;
}

bool runs_on(const CudaTarget &target, int capability) {
  return target.exact ? capability == target.capability : capability >= target.capability;
}

std::vector<TargetInfo> cuda_targets() {
  std::string why;
  const cuda::Driver *const d = cuda::find_driver(&why);
  const int capability = d ? capability_of(*d) : 0;
  std::vector<TargetInfo> result;
  for (int i = 0; i < kNumCudaTargets; ++i) {
    const bool has_it = d && runs_on(kTargets[i], capability), is_linked = linked(kNumCpuTargets + i);
    std::string reason = why;
    if (d && !has_it) {
      reason = "this GPU's compute capability is " + std::to_string(capability / 10) + "." +
               std::to_string(capability % 10);
    }
    if (has_it) reason = is_linked ? "available" : "no kernel of this program is compiled for it";
    result.push_back({kTargets[i].name, has_it, is_linked, reason});
  }
  return result;
}

void set_cuda_target(const std::string &name) {
  if (name.empty()) {
    forced = -1;
    return;
  }
  const int index = find_target(name);
  if (index < kNumCpuTargets) {
    std::string known;
    for (const CudaTarget &target : kTargets) known += (known.empty() ? "" : ", ") + std::string(target.name);
    fail("target: expected one of ", known, ", got ", name);
  }
  if (!linked(index)) fail("target: ", name, ": no kernel of this program is compiled for it");
  forced = index;
}

int forced_cuda_target() { return forced; }

}  // namespace posattn
