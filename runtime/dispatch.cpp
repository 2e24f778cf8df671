#include "runtime/dispatch.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>
#include <map>
#include <mutex>
#include <set>
#include <string_view>
#include <vector>

#include "runtime/cpu.h"
#include "runtime/cuda/targets.h"
#include "runtime/error.h"

namespace posattn {
namespace {

constexpr int kNumTypes = 3;
int type_index(std::string_view type) {
  if (type == "f32") return 0;
  if (type == "bf16") return 1;
  return type == "f16" ? 2 : -1;
}
int type_index(DType type) { return type_index(name_of(type)); }

// All linked kernels, looked at once. Immutable: rebuilt if a library that is loaded later brings more.
struct Index {
  size_t num_linked;
  std::vector<std::string> branch_names;  // a bit each
  uint64_t neutral = 0;
  std::vector<std::string> kinds;
  // By kind, then type, then target.
  std::vector<std::vector<Kernel>> kernels;
  bool target_linked[kNumTargets] = {};

  size_t slot(size_t kind, int type, int target) const {
    return (kind * kNumTypes + static_cast<size_t>(type)) * kNumTargets + static_cast<size_t>(target);
  }
  const std::vector<Kernel> *find(const char *kind, DType type, int target) const {
    const int t = type_index(type);
    if (t < 0) return nullptr;
    for (size_t k = 0; k < kinds.size(); ++k) {
      if (kinds[k] == kind) return &kernels[slot(k, t, target)];
    }
    return nullptr;
  }
  int branch_bit(std::string_view name) const {
    for (size_t i = 0; i < branch_names.size(); ++i) {
      if (branch_names[i] == name) return static_cast<int>(i);
    }
    return -1;
  }
};

template <typename Visit>
void for_each_branch(std::string_view set, const Visit &visit) {
  while (!set.empty()) {
    const size_t plus = std::min(set.find('+'), set.size());
    const std::string_view name = set.substr(0, plus);
    if (name != "none" && !name.empty()) visit(name);
    set.remove_prefix(std::min(plus + 1, set.size()));
  }
}

uint64_t branch_bits(Index &index, const char *set) {
  uint64_t bits = 0;
  for_each_branch(set, [&](std::string_view name) {
    int bit = index.branch_bit(name);
    if (bit < 0) {
      bit = static_cast<int>(index.branch_names.size());
      if (bit == 64) fail("kernels: more than 64 branches are linked");
      index.branch_names.emplace_back(name);
      for (const NeutralBranch &neutral : kNeutralBranches) {
        if (name == neutral.name) index.neutral |= uint64_t{1} << bit;
      }
    }
    bits |= uint64_t{1} << bit;
  });
  return bits;
}

Kernel look_at(const KernelInfo &info, int target, uint64_t branches) {
  Kernel kernel{};
  kernel.info = &info;
  kernel.target = target;
  kernel.branches = branches;
  const halide_filter_metadata_t *metadata = info.metadata();
  if (metadata->num_arguments > kMaxKernelArguments) {
    fail("kernel ", info.kind, " of branches '", info.branches, "': expected at most ", kMaxKernelArguments,
         " inputs, got ", metadata->num_arguments);
  }
  kernel.num_arguments = metadata->num_arguments;
  for (int i = 0; i < metadata->num_arguments; ++i) {
    const halide_filter_argument_t &argument = metadata->arguments[i];
    kernel.hashes[i] = ArgumentName(argument.name).hash;
    Kernel::Argument &out = kernel.arguments[i];
    out = {argument.name, argument.type, argument.dimensions, {}};
    if (argument.dimensions > kMaxKernelDims)
      fail("kernel ", info.kind, ": too many dimensions of ", argument.name);
    for (int d = 0; d < argument.dimensions && argument.buffer_estimates; ++d) {
      if (const int64_t *extent = argument.buffer_estimates[2 * d + 1]) out.estimates[d] = *extent;
    }
    if (argument.scalar_estimate && argument.type == halide_type_t(halide_type_int, 32)) {
      out.estimates[0] = argument.scalar_estimate->u.i32;
    } else if (argument.scalar_estimate && argument.type == halide_type_t(halide_type_uint, 64)) {
      out.estimates[0] = static_cast<int64_t>(argument.scalar_estimate->u.u64);
    }
  }
  return kernel;
}

const Index *build_index() {
  Index *index = new Index;
  const std::vector<const KernelInfo *> &all = all_kernels();
  index->num_linked = all.size();
  for (const KernelInfo *info : all) {
    const int type = type_index(info->type), target = find_target(info->target);
    if (type < 0 || target < 0) continue;
    auto kind = std::find(index->kinds.begin(), index->kinds.end(), info->kind);
    if (kind == index->kinds.end()) {
      kind = index->kinds.insert(index->kinds.end(), info->kind);
      index->kernels.resize(index->kinds.size() * kNumTypes * kNumTargets);
    }
    const size_t k = static_cast<size_t>(kind - index->kinds.begin());
    const uint64_t branches = branch_bits(*index, info->branches);
    index->kernels[index->slot(k, type, target)].push_back(look_at(*info, target, branches));
    index->target_linked[target] = true;
  }
  return index;
}

const Index &kernel_index() {
  static std::atomic<const Index *> current{nullptr};
  static std::mutex mutex;
  const Index *index = current.load(std::memory_order_acquire);
  if (index && index->num_linked == all_kernels().size()) return *index;
  const std::lock_guard<std::mutex> lock(mutex);
  index = current.load(std::memory_order_acquire);
  if (!index || index->num_linked != all_kernels().size()) {
    index = build_index();  // an old one stays: a call may be using it
    current.store(index, std::memory_order_release);
  }
  return *index;
}

std::atomic<const KernelInfo *> preferred_kernel{nullptr};

bool takes(const KernelInfo &info, const KernelQuery &query) {
  return (info.max_queries == 0 || query.queries <= info.max_queries) &&
         (info.max_keys == 0 || query.keys <= info.max_keys);
}

// Of kernels that serve a call, the one of the lowest rank is taken.
std::array<int64_t, 4> rank(const Kernel &kernel, uint64_t extra_branches) {
  const auto limit = [](int32_t most) { return most == 0 ? std::numeric_limits<int64_t>::max() : most; };
  return {__builtin_popcountll(extra_branches), kernel.info->head_dim, limit(kernel.info->max_queries),
          limit(kernel.info->max_keys)};
}

}  // namespace

void BranchSet::add(const char *name) {
  int at = 0;
  while (at < size && std::strcmp(names[at], name) < 0) ++at;
  if (at < size && std::strcmp(names[at], name) == 0) fail("branches: '", name, "' is given twice");
  if (size == kCapacity) fail("branches: expected at most ", kCapacity);
  for (int i = size++; i > at; --i) names[i] = names[i - 1];
  names[at] = name;
}

bool BranchSet::has(const char *name) const {
  return std::any_of(names, names + size, [&](const char *other) { return std::strcmp(name, other) == 0; });
}

std::string BranchSet::text() const {
  std::string text;
  for (int i = 0; i < size; ++i) text += (i > 0 ? "+" : "") + std::string(names[i]);
  return size > 0 ? text : "none";
}

const Kernel *find_kernel(const KernelQuery &query) {
  const Index &index = kernel_index();
  const std::vector<Kernel> *candidates = index.find(query.kind, query.type, query.target);
  if (!candidates) return nullptr;
  uint64_t wanted = 0;
  for (int i = 0; i < query.branches.size; ++i) {
    const int bit = index.branch_bit(query.branches.names[i]);
    if (bit < 0) return nullptr;
    wanted |= uint64_t{1} << bit;
  }
  const KernelInfo *preferred = preferred_kernel.load(std::memory_order_relaxed);
  const Kernel *best = nullptr;
  for (const Kernel &kernel : *candidates) {
    const uint64_t extra = kernel.branches & ~wanted;
    if ((wanted & ~kernel.branches) != 0 || (extra & ~index.neutral) != 0) continue;
    const int64_t head_dim = kernel.info->head_dim;
    if (head_dim != 0 && (query.exact_head_dim ? head_dim != query.head_dim : head_dim < query.head_dim))
      continue;
    if (kernel.info == preferred) return &kernel;
    if (!takes(*kernel.info, query)) continue;
    if (!best || rank(kernel, extra) < rank(*best, best->branches & ~wanted)) best = &kernel;
  }
  return best;
}

void prefer_kernel(const KernelInfo *kernel) { preferred_kernel = kernel; }

void fail_no_kernel(const KernelQuery &query) {
  std::map<std::string, std::set<std::string>> linked;  // "alibi, head_dim 64, f32" -> targets
  for (const KernelInfo *info : all_kernels()) {
    if (std::strcmp(info->kind, query.kind) != 0) continue;
    std::string what = info->branches;
    if (info->head_dim > 0) what += ", head_dim " + std::to_string(info->head_dim);
    linked[what + ", " + info->type].insert(info->target);
  }
  std::string list;
  for (const auto &[what, targets] : linked) {
    list += "\n  " + what + " (";
    for (const std::string &target : targets) list += (target == *targets.begin() ? "" : ", ") + target;
    list += ")";
  }
  fail("no kernel is linked for ", query.kind, " with branches ", query.branches.text(), ", head_dim ",
       query.exact_head_dim ? "" : "at least ", query.head_dim, ", ", name_of(query.type), ", ",
       target_name(query.target), "; this program has",
       list.empty() ? std::string(" none of that kind") : ":" + list);
}

const Kernel &require_kernel(const KernelQuery &query) {
  if (const Kernel *kernel = find_kernel(query)) return *kernel;
  fail_no_kernel(query);
}

TargetList usable_cuda_targets(int capability) {
  TargetList list{};
  const int forced = forced_cuda_target();
  const Index &index = kernel_index();
  for (int i = kNumCpuTargets; i < kNumTargets; ++i) {
    if (forced >= 0 && i != forced) continue;
    if (runs_on(cuda_target(i), capability) && index.target_linked[i]) list.targets[list.size++] = i;
  }
  return list;
}

TargetList usable_targets() {
  TargetList list{};
  const int forced = forced_target();
  const Index &index = kernel_index();
  if (forced >= 0) {
    list.targets[list.size++] = forced;
    const int rest = cpu_target(forced).rest ? find_cpu_target(cpu_target(forced).rest) : -1;
    if (rest >= 0 && index.target_linked[rest]) list.targets[list.size++] = rest;
    return list;
  }
  for (int i = 0; i < kNumCpuTargets; ++i) {
    if (index.target_linked[i] && cpu_target(i).available()) list.targets[list.size++] = i;
  }
  return list;
}

}  // namespace posattn
