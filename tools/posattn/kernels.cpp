// posattn kernels: what this build holds, what this machine would run, and why.
#include <iomanip>
#include <iostream>
#include <map>
#include <memory>

#include "runtime/cuda/targets.h"
#include "runtime/error.h"
#include "runtime/kernel_registry.h"
#include "tools/posattn/commands.h"
#include "tools/posattn/kernel_filter.h"

namespace posattn::cli {
namespace {

struct Total {
  int64_t count = 0, bytes = 0;
  void add(const KernelInfo &kernel) {
    ++count;
    bytes += kernel.size;
  }
};

std::string kilobytes(int64_t bytes) {
  std::ostringstream text;
  text << std::fixed << std::setprecision(1) << static_cast<double>(bytes) / 1024 << " KiB";
  return text.str();
}

void print_kernels(const std::vector<const KernelInfo *> &kernels) {
  size_t width = std::string("branches").size(), kind_width = std::string("kind").size();
  for (const KernelInfo *kernel : kernels) {
    width = std::max(width, std::string(kernel->branches).size());
    kind_width = std::max(kind_width, std::string(kernel->kind).size());
  }
  const auto line = [&](const auto &kind, const auto &branches, const auto &head_dim, const auto &type,
                        const auto &target, const std::string &size, const std::string &calls) {
    std::cout << std::left << std::setw(static_cast<int>(kind_width) + 2) << kind
              << std::setw(static_cast<int>(width) + 2) << branches << std::right << std::setw(8) << head_dim
              << "  " << std::left << std::setw(6) << type << std::setw(12) << target << std::right
              << std::setw(12) << size << "  " << calls << '\n';
  };
  line("kind", "branches", "head dim", "type", "target", "size", "calls");
  for (const KernelInfo *kernel : kernels)
    line(kernel->kind, kernel->branches, kernel->head_dim ? std::to_string(kernel->head_dim) : "any",
         kernel->type, kernel->target, kilobytes(kernel->size), calls_of(*kernel));
}

void print_targets(const std::map<std::string, Total> &totals, const std::string &forced) {
  std::string chosen;
  try {
    chosen = current_target();
  } catch (const Error &) {  // none runs here: said in the table
  }
  std::cout << "target       kernels        size  this machine\n";
  std::vector<TargetInfo> all = targets();
  for (const TargetInfo &target : cuda_targets()) all.push_back(target);
  for (const TargetInfo &target : all) {
    const auto found = totals.find(target.name);
    const Total total = found == totals.end() ? Total() : found->second;
    std::string why = target.reason;
    if (target.name == chosen)
      why =
          forced.empty() ? "runs these: the best that it has and this build holds" : "runs these: asked for";
    std::cout << std::left << std::setw(12) << target.name << std::right << std::setw(8) << total.count
              << std::setw(12) << kilobytes(total.bytes) << "  " << why << '\n';
  }
  if (chosen.empty()) std::cout << "No kernel of this build runs on this machine.\n";
}

void run(const KernelFilter &filter) {
  if (filter.targets.size() == 1) force_target(filter.targets[0]);
  const std::vector<const KernelInfo *> kernels = select_kernels(filter);
  Total all;
  std::map<std::string, Total> totals;
  for (const KernelInfo *kernel : kernels) {
    all.add(*kernel);
    totals[kernel->target].add(*kernel);
  }
  print_kernels(kernels);
  std::cout << '\n' << all.count << " kernels, " << kilobytes(all.bytes) << "\n\n";
  print_targets(totals, filter.targets.size() == 1 ? filter.targets[0] : "");
}

}  // namespace

void add_kernels(CLI::App &app) {
  const auto filter = std::make_shared<KernelFilter>();
  CLI::App *command =
      app.add_subcommand("kernels", "What this build holds, what this machine would run, and why");
  filter->add_to(*command);
  command->final_callback([filter] { run(*filter); });
}

}  // namespace posattn::cli
