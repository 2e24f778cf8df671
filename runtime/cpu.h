// What the CPU and its operating system can run, in terms of the targets that kernels are compiled for.
#pragma once

#include <cstdint>
#include <string>

namespace posattn {

// Targets, best first. A kernel's target is an index into this.
struct CpuTarget {
  const char *name;
  int key_lanes;  // keys that its kernels read side by side (schedules/machine.h); packed keys are laid out
                  // so
  bool (*available)();
};
constexpr int kNumCpuTargets = 3;
const CpuTarget &cpu_target(int index);

// Index of a target, or -1 if no target is called that.
int find_cpu_target(const std::string &name);

}  // namespace posattn
