#include "runtime/kernel_registry.h"

#include <atomic>
#include <mutex>

#include "runtime/cpu.h"
#include "runtime/error.h"

namespace posattn {
namespace {

// Tables may register before any other static object of this file exists: everything lives in functions.
struct Registry {
  std::mutex mutex;
  std::vector<const KernelInfo *> kernels;
  std::atomic<int> forced{-1};  // index of a target
};

Registry &registry() {
  static Registry *the_one = new Registry;  // never destroyed: kernels may run until the process ends
  return *the_one;
}

bool linked(int target) {
  for (const KernelInfo *kernel : all_kernels()) {
    if (find_cpu_target(kernel->target) == target) return true;
  }
  return false;
}

std::string reason_for(int target, bool is_linked) {
  if (const char *reason = cpu_target(target).lacks()) return reason;
  return is_linked ? "available" : "no kernel of this program is compiled for it";
}

}  // namespace

KernelTable::KernelTable(const KernelInfo *kernels, int count) {
  Registry &all = registry();
  const std::lock_guard<std::mutex> lock(all.mutex);
  for (int i = 0; i < count; ++i) all.kernels.push_back(&kernels[i]);
}

const std::vector<const KernelInfo *> &all_kernels() { return registry().kernels; }

std::vector<TargetInfo> targets() {
  std::vector<TargetInfo> result;
  for (int i = 0; i < kNumCpuTargets; ++i) {
    const bool cpu_has_it = cpu_target(i).available(), is_linked = linked(i);
    result.push_back({cpu_target(i).name, cpu_has_it, is_linked, reason_for(i, is_linked)});
  }
  return result;
}

void set_target(const std::string &name) {
  if (name.empty()) {
    registry().forced = -1;
    return;
  }
  const int index = find_cpu_target(name);
  if (index < 0) {
    std::string known;
    for (int i = 0; i < kNumCpuTargets; ++i) known += std::string(i > 0 ? ", " : "") + cpu_target(i).name;
    fail("target: expected one of ", known, ", got ", name);
  }
  const bool cpu_has_it = cpu_target(index).available(), is_linked = linked(index);
  if (!cpu_has_it || !is_linked) fail("target: ", name, ": ", reason_for(index, is_linked));
  registry().forced = index;
}

int forced_target() { return registry().forced; }

const char *current_target() {
  const int forced = forced_target();
  if (forced >= 0) return cpu_target(forced).name;
  for (int i = 0; i < kNumCpuTargets; ++i) {
    if (cpu_target(i).available() && linked(i)) return cpu_target(i).name;
  }
  fail("target: no kernel of this program runs on this machine");
}

}  // namespace posattn
