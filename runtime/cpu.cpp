#include "runtime/cpu.h"

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>
#endif

namespace posattn {
namespace {

#if defined(__x86_64__) || defined(__i386__)
// The builtins also ask whether the operating system saves the wider registers.
bool has_sse41() { return __builtin_cpu_supports("sse4.1"); }

bool has_f16c() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}

bool has_avx2() {
  return has_sse41() && __builtin_cpu_supports("avx") && __builtin_cpu_supports("avx2") &&
         __builtin_cpu_supports("fma") && has_f16c();
}

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl");
}
#else
bool has_sse41() { return false; }
bool has_avx2() { return false; }
bool has_avx512() { return false; }
#endif

constexpr CpuTarget kTargets[kNumCpuTargets] = {
    {"avx512", 32, has_avx512}, {"avx2", 16, has_avx2}, {"sse41", 8, has_sse41}};

}  // namespace

const CpuTarget &cpu_target(int index) { return kTargets[index]; }

int find_cpu_target(const std::string &name) {
  for (int i = 0; i < kNumCpuTargets; ++i) {
    if (name == kTargets[i].name) return i;
  }
  return -1;
}

}  // namespace posattn
