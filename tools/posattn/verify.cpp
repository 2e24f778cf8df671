// posattn verify: every kernel of the build that this machine can run, against the float64 reference.
#include <unistd.h>

#include <algorithm>
#include <iomanip>
#include <iostream>
#include <memory>
#include <sstream>

#include "runtime/error.h"
#include "tools/posattn/commands.h"
#include "tools/posattn/kernel_filter.h"
#include "tools/posattn/options.h"
#include "tools/posattn/verify_case.h"

namespace posattn::cli {
namespace {

constexpr int kFailed = 1;

struct VerifyOptions {
  KernelFilter filter;
  int cases = 4, threads = 0;
  uint64_t seed = 1;
};

struct Counts {
  int64_t kernels = 0, cases = 0, failed = 0, skipped = 0, unavailable = 0;
};

std::string title(const KernelInfo &kernel) {
  std::string text =
      std::string(kernel.target) + " " + kernel.kind + " " + kernel.branches + " " + kernel.type;
  if (kernel.head_dim) text += " head dim " + std::to_string(kernel.head_dim);
  if (calls_of(kernel) != "all") text += " for " + calls_of(kernel);
  return text;
}

// On a terminal one line that is overwritten; elsewhere a line for each kernel.
class Progress {
 public:
  explicit Progress(size_t total) : total_(total), terminal_(isatty(STDOUT_FILENO)) {}

  void begin(const KernelInfo &kernel) {
    ++number_;
    if (!terminal_) return;
    clear();
    std::cout << '[' << number_ << '/' << total_ << "] " << title(kernel) << std::flush;
  }
  // Stays.
  void line(const std::string &text) {
    if (terminal_) clear();
    std::cout << text << '\n' << std::flush;
  }
  void passed(const KernelInfo &kernel, const std::string &details) {
    if (!terminal_) line("ok      " + title(kernel) + "  " + details);
  }
  void end() {
    if (terminal_) clear();
  }

 private:
  void clear() { std::cout << "\r\033[K"; }
  size_t total_, number_ = 0;
  bool terminal_;
};

// Each kernel has cases of its own, the same ones in every run.
uint64_t first_seed(const KernelInfo &kernel, uint64_t seed) {
  uint64_t hash = 14695981039346656037u;  // FNV-1a
  for (const char c : title(kernel)) hash = (hash ^ static_cast<unsigned char>(c)) * 1099511628211u;
  return hash % 1000000000 + seed;
}

void verify_kernel(const KernelInfo &kernel, const VerifyOptions &options, Progress &progress,
                   Counts &counts) {
  const std::string reason = why_not(kernel);
  if (!reason.empty()) {
    ++counts.skipped;
    progress.line("skipped " + title(kernel) + "  " + reason);
    return;
  }
  ++counts.kernels;
  double worst = 0;
  bool ok = true;
  for (int i = 0; i < options.cases; ++i) {
    ++counts.cases;
    const Verdict verdict = verify(kernel, first_seed(kernel, options.seed) + static_cast<uint64_t>(i));
    if (verdict.bound > 0) worst = std::max(worst, verdict.error / verdict.bound);
    if (verdict.ok) continue;
    ok = false;
    progress.line("FAILED  " + title(kernel) + "  " + verdict.text);
  }
  counts.failed += !ok;
  std::ostringstream details;
  details << options.cases << " cases, worst error " << std::fixed << std::setprecision(0) << 100 * worst
          << " % of what is allowed";
  if (ok) progress.passed(kernel, details.str());
}

void run(const VerifyOptions &options) {
  options.filter.check_targets();
  MachineOptions machine;
  machine.threads = options.threads;
  machine.apply();
  const std::vector<const KernelInfo *> kernels = select_kernels(options.filter);
  if (kernels.empty()) fail("verify: no kernel of this build matches");

  Counts counts;
  Progress progress(kernels.size());
  for (const KernelInfo *kernel : kernels) {
    progress.begin(*kernel);
    if (!runs_here(*kernel)) {
      ++counts.unavailable;
      continue;
    }
    take_kernel(*kernel);  // not a variant of it that is tuned for other shapes
    verify_kernel(*kernel, options, progress, counts);
  }
  take_any_kernel();
  progress.end();
  std::cout << counts.kernels << " kernels verified with " << counts.cases
            << " cases: " << counts.kernels - counts.failed << " passed, " << counts.failed << " failed";
  if (counts.skipped) std::cout << "; " << counts.skipped << " skipped";
  if (counts.unavailable) std::cout << "; " << counts.unavailable << " are for other machines";
  std::cout << '\n' << std::flush;
  if (counts.failed) throw CLI::RuntimeError(kFailed);
}

}  // namespace

void add_verify(CLI::App &app) {
  const auto options = std::make_shared<VerifyOptions>();
  CLI::App *command =
      app.add_subcommand("verify", "Every kernel of the build on this machine against the float64 reference");
  command->footer("Exits with 0 if every kernel passes, 1 if one fails, 2 if the arguments are wrong.");
  options->filter.add_to(*command);
  command->add_option("--cases", options->cases, "Random computations for each kernel (4)")
      ->check(CLI::Range(1, 1000000))
      ->type_name("N");
  command->add_option("--seed", options->seed, "Of the random computations (1)")->type_name("N");
  command->add_option("--threads", options->threads, "Threads; 0, the default, is one a core")
      ->check(CLI::Range(0, 4096))
      ->type_name("N");
  command->final_callback([options] { run(*options); });
}

}  // namespace posattn::cli
