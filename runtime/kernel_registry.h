// The kernels that a program links, and which of them this machine runs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

struct halide_filter_metadata_t;

namespace posattn {

// One line of the manifest: a Halide function compiled for one target. tools/posattn_kernels.bzl generates
// the tables of these; a program that links a kernel library registers its table before main().
struct KernelInfo {
  const char *kind;  // "prefill", "decode", "weights", "offsets", "projection", "rotary", "pack_keys", ...
  const char *branches;  // branch set joined by '+', sorted, or "none"
  int32_t head_dim;      // 0 where it does not matter
  const char *type;      // "f32", "bf16", "f16"
  const char *target;    // "sse41", "avx2", "avx512", ...
  int64_t size;          // bytes of its object file
  int (*call)(void **arguments);
  const halide_filter_metadata_t *(*metadata)();
  // The shapes that its schedule was tuned for: calls of at most so many queries (or rows) and keys; 0: any.
  int32_t max_queries = 0, max_keys = 0;
};

// Called by generated code at static-initialisation time, and by programs that load kernels later.
struct KernelTable {
  KernelTable(const KernelInfo *kernels, int count);
};

const std::vector<const KernelInfo *> &all_kernels();

// Targets best first, e.g. {"amx", "avx512bf16", "avx512", "avx2", "sse41"}.
struct TargetInfo {
  const char *name;
  bool cpu_has_it;     // this CPU and its operating system run it
  bool linked;         // some kernel of the program is compiled for it
  std::string reason;  // one line for people
};
std::vector<TargetInfo> targets();

// Forces a target for the process ("" = choose again by CPU). Throws Error if this machine or build lacks it.
// amx is for bf16: other types then run on avx512.
void set_target(const std::string &name);
// The target that is forced, or else the best one; Error if this machine runs no linked kernel.
const char *current_target();
// Index in cpu.h of the forced target, or -1.
int forced_target();

}  // namespace posattn
