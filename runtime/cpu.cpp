#include "runtime/cpu.h"

#include <atomic>

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace posattn {
namespace {

constexpr const char *kCpuLacks = "this CPU or its operating system lacks it";

// Whether some thread of this process may have configured tiles: only once permission was given.
std::atomic<bool> tiles_permitted{false};

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

bool bit(unsigned word, int i) { return (word >> i & 1) != 0; }

// AVX-512 with products of bfloat16 pairs, and what every CPU but Cooper Lake has that has them.
bool has_avx512_bf16() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!has_avx512() || __get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return false;
  const bool bmi = bit(b, 3), bmi2 = bit(b, 8), ifma = bit(b, 21), vbmi = bit(c, 1), vbmi2 = bit(c, 6),
             gfni = bit(c, 8), vnni = bit(c, 11), bitalg = bit(c, 12), vpopcnt = bit(c, 14);
  if (__get_cpuid_count(7, 1, &a, &b, &c, &d) == 0) return false;
  const bool avx512_bf16 = bit(a, 5);
  return bmi && bmi2 && ifma && vbmi && vbmi2 && gfni && vnni && bitalg && vpopcnt && avx512_bf16;
}

// Everything that a compiler takes for granted on Zen 4, which is what Halide's smallest target with products
// of bfloat16 stands for: SSE4A, LZCNT and MOVBE, too.
bool has_zen4() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!has_avx512_bf16() || __get_cpuid(1, &a, &b, &c, &d) == 0) return false;
  const bool movbe = bit(c, 22), popcnt = bit(c, 23);
  if (__get_cpuid(0x80000001, &a, &b, &c, &d) == 0) return false;
  const bool lzcnt = bit(c, 5), sse4a = bit(c, 6);
  return movbe && popcnt && lzcnt && sse4a;
}
#else
bool has_sse41() { return false; }
bool has_avx2() { return false; }
bool has_avx512() { return false; }
bool has_zen4() { return false; }
#endif

#if defined(__x86_64__) && defined(__linux__)
// Everything that Halide takes for granted on Sapphire Rapids, the first CPU with AMX.
bool has_sapphire_rapids() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!has_avx512_bf16() || __get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return false;
  const bool amx_bf16 = bit(d, 22), amx_tile = bit(d, 24), amx_int8 = bit(d, 25);
  if (__get_cpuid_count(7, 1, &a, &b, &c, &d) == 0) return false;
  const bool avx_vnni = bit(a, 4);
  return amx_bf16 && amx_tile && amx_int8 && avx_vnni;
}

// Linux gives a process the tiles' 8 KB of state in each thread only if it asks, which is for good; threads
// that exist get it, too.
const char *lacks_amx() {
  static const char *const reason = []() -> const char * {
    if (!has_sapphire_rapids()) return kCpuLacks;
    constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    if (syscall(SYS_arch_prctl, kRequestPermission, kTileData) != 0) {
      return "the operating system gives this process no permission to use AMX tiles";
    }
    tiles_permitted.store(true, std::memory_order_relaxed);
    return nullptr;
  }();
  return reason;
}

__attribute__((target("amx-tile"))) void store_config(uint8_t *config) {
  __asm__ volatile("sttilecfg %0" : "=m"(*reinterpret_cast<uint8_t(*)[64]>(config)));
}
__attribute__((target("amx-tile"))) void load_config(const uint8_t *config) {
  __asm__ volatile("ldtilecfg %0" : : "m"(*reinterpret_cast<const uint8_t(*)[64]>(config)));
}
#else
const char *lacks_amx() { return kCpuLacks; }
void store_config(uint8_t *) {}
void load_config(const uint8_t *) {}
#endif

// Asked once: a virtual machine's CPUID takes microseconds.
template <bool (*has)()>
const char *lacks() {
  static const bool here = has();
  return here ? nullptr : kCpuLacks;
}

constexpr CpuTarget kTargets[kNumCpuTargets] = {{"amx", 32, lacks_amx, "avx512"},
                                                {"avx512bf16", 32, lacks<has_zen4>, "avx512"},
                                                {"avx512", 32, lacks<has_avx512>, nullptr},
                                                {"avx2", 16, lacks<has_avx2>, nullptr},
                                                {"sse41", 8, lacks<has_sse41>, nullptr}};

}  // namespace

const CpuTarget &cpu_target(int index) { return kTargets[index]; }

int find_cpu_target(const std::string &name) {
  for (int i = 0; i < kNumCpuTargets; ++i) {
    if (name == kTargets[i].name) return i;
  }
  return -1;
}

KeepTileConfig::KeepTileConfig() : kept_(tiles_permitted.load(std::memory_order_relaxed)) {
  if (!kept_) return;
  store_config(config_);
  kept_ = config_[0] != 0;  // palette 0: nothing is configured
}

KeepTileConfig::~KeepTileConfig() {
  if (kept_) load_config(config_);
}

}  // namespace posattn
