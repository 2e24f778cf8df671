#include "tools/posattn/kernel_filter.h"

#include <algorithm>
#include <cstring>
#include <sstream>
#include <tuple>

#include "runtime/cuda/targets.h"
#include "runtime/dispatch.h"
#include "runtime/error.h"

namespace posattn::cli {
namespace {

template <typename T, typename U>
bool allows(const std::vector<T> &values, const U &value) {
  return values.empty() || std::find(values.begin(), values.end(), value) != values.end();
}

size_t rank_of(const std::string &target) {
  const int index = find_target(target);
  return static_cast<size_t>(index < 0 ? kNumTargets : index);
}

auto key_of(const KernelInfo &k) {
  return std::make_tuple(rank_of(k.target), std::string(k.kind), std::string(k.branches), std::string(k.type),
                         k.head_dim, k.max_queries, k.max_keys);
}

template <typename T>
void add_repeatable(CLI::App &app, const std::string &name, std::vector<T> &values, const std::string &help,
                    const std::string &type) {
  app.add_option(name, values, help)->allow_extra_args(false)->type_name(type);
}

}  // namespace

void KernelFilter::add_to(CLI::App &app) {
  add_repeatable(app, "--kind", kinds,
                 "Only kernels of this kind, such as prefill; may be repeated, as all of these", "NAME");
  add_repeatable(app, "--branches", branches, "Only kernels of this set of branches, such as none", "SET");
  add_repeatable(app, "--head-dim", head_dims, "Only kernels of this head dimension", "D");
  add_repeatable(app, "--type", types, "Only kernels of this type", "f32|bf16|f16");
  add_repeatable(app, "--target", targets, "Only kernels for this target, such as avx2", "NAME");
}

bool KernelFilter::matches(const KernelInfo &kernel) const {
  return allows(kinds, kernel.kind) && allows(branches, kernel.branches) &&
         allows(head_dims, kernel.head_dim) && allows(types, kernel.type) && allows(targets, kernel.target);
}

void KernelFilter::check_targets() const {
  for (const std::string &target : targets) force_target(target);
  take_any_kernel();
}

std::vector<const KernelInfo *> select_kernels(const KernelFilter &filter) {
  std::vector<const KernelInfo *> found;
  for (const KernelInfo *kernel : all_kernels())
    if (filter.matches(*kernel)) found.push_back(kernel);
  std::stable_sort(found.begin(), found.end(),
                   [](const KernelInfo *a, const KernelInfo *b) { return key_of(*a) < key_of(*b); });
  found.erase(std::unique(found.begin(), found.end(),
                          [](const KernelInfo *a, const KernelInfo *b) { return key_of(*a) == key_of(*b); }),
              found.end());
  return found;
}

bool is_kind(const KernelInfo &kernel, const char *kind) { return std::strcmp(kernel.kind, kind) == 0; }
bool is_prefill(const KernelInfo &kernel) { return std::string(kernel.kind).rfind("prefill", 0) == 0; }
bool is_decode(const KernelInfo &kernel) { return std::string(kernel.kind).rfind("decode", 0) == 0; }

bool runs_here(const KernelInfo &kernel) {
  const std::vector<TargetInfo> known = runs_on_gpu(kernel.target) ? cuda_targets() : targets();
  return std::any_of(known.begin(), known.end(), [&](const TargetInfo &info) {
    return info.name == std::string(kernel.target) && info.cpu_has_it;
  });
}

bool runs_on_gpu(const std::string &target) { return find_target(target) >= kNumCpuTargets; }

void force_target(const std::string &target) {
  if (runs_on_gpu(target)) {
    set_cuda_target(target);
  } else {
    set_target(target);
  }
}

void take_kernel(const KernelInfo &kernel) {
  force_target(kernel.target);
  prefer_kernel(&kernel);
}

void take_any_kernel() {
  set_target("");
  set_cuda_target("");
  prefer_kernel(nullptr);
}

std::vector<std::string> branch_names(const KernelInfo &kernel) {
  std::vector<std::string> names;
  std::istringstream text(kernel.branches);
  for (std::string name; std::getline(text, name, '+');)
    if (name != "none") names.push_back(name);
  return names;
}

DType type_of(const KernelInfo &kernel) {
  for (const DType type : {DType::f32, DType::bf16, DType::f16})
    if (name_of(type) == std::string(kernel.type)) return type;
  fail("kernel: expected f32, bf16 or f16, got ", kernel.type);
}

std::string calls_of(const KernelInfo &kernel) {
  const auto most = [](int32_t count, const char *what) {
    return count ? "up to " + std::to_string(count) + " " + what : std::string();
  };
  const std::string queries = most(kernel.max_queries, "queries"), keys = most(kernel.max_keys, "keys");
  if (queries.empty() && keys.empty()) return "all";
  return queries + (queries.empty() || keys.empty() ? "" : ", ") + keys;
}

int64_t next_smaller_head_dim(const KernelInfo &kernel) {
  int64_t smaller = 0;
  for (const KernelInfo *other : all_kernels()) {
    const bool alike = std::string(other->kind) == kernel.kind &&
                       std::string(other->branches) == kernel.branches &&
                       std::string(other->type) == kernel.type && std::string(other->target) == kernel.target;
    if (alike && other->head_dim < kernel.head_dim) smaller = std::max<int64_t>(smaller, other->head_dim);
  }
  return smaller;
}

}  // namespace posattn::cli
