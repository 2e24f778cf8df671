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
  // Why this machine cannot run it, or null if it can.
  const char *(*lacks)();
  // The target that computes what this one has no kernels for, which every machine with this one has; or
  // null.
  const char *rest;
  bool available() const { return lacks() == nullptr; }
};
constexpr int kNumCpuTargets = 5;
const CpuTarget &cpu_target(int index);

// Index of a target, or -1 if no target is called that.
int find_cpu_target(const std::string &name);

// Keeps the thread's configuration of AMX tiles, if it has one, and puts it back: kernels of the target amx
// leave tiles unconfigured, and a caller may have configured its own. Costs a comparison on other machines.
class KeepTileConfig {
 public:
  KeepTileConfig();
  ~KeepTileConfig();
  KeepTileConfig(const KeepTileConfig &) = delete;
  KeepTileConfig &operator=(const KeepTileConfig &) = delete;

 private:
  uint8_t config_[64];  // of any alignment: stacks of sanitized code are aligned to less than a cache line
  bool kept_;
};

}  // namespace posattn
