// Which of the linked kernels a subcommand is about.
#pragma once

#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "runtime/kernel_registry.h"
#include "runtime/tensor.h"

namespace posattn::cli {

struct KernelFilter {
  std::vector<std::string> kinds, branches, types, targets;  // empty: any
  std::vector<int64_t> head_dims;

  // --kind, --branches, --head-dim, --type and --target, each of them repeatable.
  void add_to(CLI::App &app);
  bool matches(const KernelInfo &kernel) const;
  // Error if a target that was asked for is unknown or not for this machine.
  void check_targets() const;
};

// The linked kernels that match, ordered by target (best first), kind, branches, type and head dimension. A
// kernel that several libraries hold counts once.
std::vector<const KernelInfo *> select_kernels(const KernelFilter &filter);

bool is_kind(const KernelInfo &kernel, const char *kind);
// All attention of many queries (prefill, prefill_plain, ...), and of few (decode, decode_row, ...).
bool is_prefill(const KernelInfo &kernel);
bool is_decode(const KernelInfo &kernel);
bool runs_here(const KernelInfo &kernel);
bool runs_on_gpu(const std::string &target);
// Of the device that runs it: Error if there is none of that name, or it does not run here.
void force_target(const std::string &target);
// Calls take kernels of its target, and of two that serve a call this one; until take_any_kernel().
void take_kernel(const KernelInfo &kernel);
void take_any_kernel();
std::vector<std::string> branch_names(const KernelInfo &kernel);  // {} for "none"
DType type_of(const KernelInfo &kernel);
std::string calls_of(const KernelInfo &kernel);  // that it is tuned for: "all", "up to 2048 keys"
// The next smaller head dimension for which there is such a kernel; 0 if there is none. Between that and its
// own lie the head dimensions that a kernel serves.
int64_t next_smaller_head_dim(const KernelInfo &kernel);

}  // namespace posattn::cli
