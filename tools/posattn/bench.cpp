// posattn bench: how fast the kernels are here.
#include <algorithm>
#include <chrono>
#include <iomanip>
#include <iostream>
#include <memory>

#include "runtime/error.h"
#include "tools/posattn/bench_case.h"
#include "tools/posattn/commands.h"
#include "tools/posattn/kernel_filter.h"
#include "tools/posattn/options.h"

namespace posattn::cli {
namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kFewestRuns = 3;

struct BenchOptions {
  KernelFilter filter;
  BenchSizes sizes;
  double seconds = 0.3;
  int threads = 0;
};

// Seconds of each run, fastest first; after one run that is not counted.
std::vector<double> time_runs(const BenchWork &work, double seconds) {
  const auto run = [&work] {
    work.run();
    if (work.finish) work.finish();
  };
  run();
  std::vector<double> times;
  const Clock::time_point begin = Clock::now();
  for (Clock::time_point start = begin;
       times.size() < kFewestRuns || std::chrono::duration<double>(start - begin).count() < seconds;) {
    run();
    const Clock::time_point end = Clock::now();
    times.push_back(std::chrono::duration<double>(end - start).count());
    start = end;
  }
  std::sort(times.begin(), times.end());
  return times;
}

void print_header() {
  std::cout << std::left << std::setw(12) << "target" << std::setw(12) << "kind" << std::setw(20)
            << "branches" << std::setw(6) << "type" << std::right << std::setw(5) << "dim" << std::setw(9)
            << "best" << std::setw(9) << "median"
            << "  " << std::left << std::setw(9) << "unit"
            << "sizes\n";
}

void print_result(const KernelInfo &kernel, const BenchWork &work, const std::vector<double> &times) {
  const auto rate = [&](double seconds) { return work.amount / seconds * 1e-9; };
  std::cout << std::left << std::setw(12) << kernel.target << std::setw(12) << kernel.kind << std::setw(20)
            << kernel.branches << std::setw(6) << kernel.type << std::right << std::setw(5)
            << (kernel.head_dim ? std::to_string(kernel.head_dim) : "any") << std::fixed
            << std::setprecision(1) << std::setw(9) << rate(times.front()) << std::setw(9)
            << rate(times[times.size() / 2]) << "  " << std::left << std::setw(9) << work.unit << work.sizes
            << (calls_of(kernel) == "all" ? "" : "; tuned for " + calls_of(kernel)) << '\n'
            << std::flush;
}

void run(const BenchOptions &options) {
  options.filter.check_targets();
  MachineOptions machine;
  machine.threads = options.threads;
  machine.apply();
  int64_t timed = 0;
  for (const KernelInfo *kernel : select_kernels(options.filter)) {
    if (!runs_here(*kernel)) continue;
    take_kernel(*kernel);  // not a variant of it that is tuned for other shapes
    const BenchWork work = make_work(*kernel, options.sizes);
    if (!work.run) continue;
    if (!timed++) print_header();
    print_result(*kernel, work, time_runs(work, options.seconds));
  }
  take_any_kernel();
  if (!timed) fail("bench: no kernel that this machine runs and that is timed by itself matches");
}

}  // namespace

void add_bench(CLI::App &app) {
  const auto options = std::make_shared<BenchOptions>();
  CLI::App *command = app.add_subcommand("bench", "Speed of every kernel here");
  command->footer(
      "Prefill counts the operations of both products and includes packing the keys and values. Decode is "
      "one query a\n"
      "head on a full cache and counts the bytes of its keys and values. weights is prefill that returns the "
      "weights,\n"
      "too. pack_keys packs keys and values. offsets and merge are timed as parts of prefill and decode. "
      "Best and\n"
      "median are over all runs. A run on a GPU ends when its results are there: the launch counts.");
  options->filter.add_to(*command);
  BenchSizes &sizes = options->sizes;
  const std::vector<std::tuple<const char *, int64_t *, const char *>> numbers = {
      {"--batch", &sizes.batch, "Of attention (1)"},
      {"--heads", &sizes.heads, "Of attention (8)"},
      {"--queries", &sizes.queries, "Of prefill and weights; tokens of rotary (1024)"},
      {"--keys", &sizes.keys, "Of prefill and weights (as many as queries), decode and packing (8192)"},
      {"--rows", &sizes.rows, "Of projection (512)"},
      {"--features", &sizes.features, "In and out, of projection (1024)"}};
  for (const auto &[name, value, help] : numbers)
    command->add_option(name, *value, help)->check(CLI::Range(int64_t{1}, int64_t{1} << 24))->type_name("N");
  command->add_option("--seconds", options->seconds, "Time for each kernel (0.3)")
      ->check(CLI::Range(0.0, 3600.0))
      ->type_name("S");
  command->add_option("--threads", options->threads, "Threads; 0, the default, is one a core")
      ->check(CLI::Range(0, 4096))
      ->type_name("N");
  command->final_callback([options] { run(*options); });
}

}  // namespace posattn::cli
