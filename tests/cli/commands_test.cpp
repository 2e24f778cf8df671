// posattn kernels, verify and bench.
#include <gtest/gtest.h>

#include <set>
#include <sstream>

#include "runtime/kernel_registry.h"
#include "tests/cli/runner.h"

namespace posattn::cli_test {
namespace {

std::vector<std::vector<std::string>> words_of(const std::string &text) {
  std::vector<std::vector<std::string>> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) {
    std::istringstream words(line);
    lines.emplace_back();
    for (std::string word; words >> word;) lines.back().push_back(word);
  }
  return lines;
}

// This test links the same kernels as the program.
std::vector<const KernelInfo *> kernels_of(const std::string &target) {
  std::vector<const KernelInfo *> found;
  for (const KernelInfo *kernel : all_kernels())
    if (kernel->target == target) found.push_back(kernel);
  return found;
}

// The best target here with kernels of float32: the best of all may be for bfloat16 alone.
std::string f32_target() {
  for (const TargetInfo &info : targets()) {
    if (!info.cpu_has_it || !info.linked) continue;
    for (const KernelInfo *kernel : kernels_of(info.name))
      if (kernel->kind == std::string("prefill") && kernel->type == std::string("f32")) return info.name;
  }
  return "none";
}

// Those that were tuned for calls of some sizes count each.
size_t variants_of(const std::string &kind, const std::string &branches, int32_t head_dim,
                   const std::string &type, const std::string &target) {
  std::set<std::pair<int32_t, int32_t>> sizes;
  for (const KernelInfo *kernel : all_kernels()) {
    const bool alike = kernel->kind == kind && kernel->branches == branches && kernel->head_dim == head_dim &&
                       kernel->type == type && kernel->target == target;
    if (alike) sizes.emplace(kernel->max_queries, kernel->max_keys);
  }
  return sizes.size();
}

bool runnable(const std::string &target) {
  for (const TargetInfo &info : targets())
    if (info.name == target) return info.cpu_has_it && info.linked;
  return false;
}

TEST(Kernels, ListsEachKernelOnce) {
  const Finished finished = posattn({"kernels"});
  ASSERT_EQ(finished.exit_code, 0) << finished.err;
  EXPECT_EQ(finished.err, "");
  const auto lines = words_of(finished.out);
  ASSERT_FALSE(all_kernels().empty());
  int64_t bytes = 0;
  for (const KernelInfo *kernel : all_kernels()) {
    const std::string dim = kernel->head_dim ? std::to_string(kernel->head_dim) : "any";
    int count = 0;
    for (const auto &line : lines)
      count += line.size() >= 6 && line[0] == kernel->kind && line[1] == kernel->branches && line[2] == dim &&
               line[3] == kernel->type && line[4] == kernel->target;
    const size_t expected =
        variants_of(kernel->kind, kernel->branches, kernel->head_dim, kernel->type, kernel->target);
    EXPECT_EQ(count, static_cast<int>(expected))
        << kernel->kind << " " << kernel->branches << " " << dim << " " << kernel->type;
    bytes += kernel->size;
  }
  EXPECT_GT(bytes, 0);
  EXPECT_NE(finished.out.find("\n" + std::to_string(all_kernels().size()) + " kernels, "), std::string::npos);
}

TEST(Kernels, TellsWhichTargetRunsAndWhy) {
  const Finished finished = posattn({"kernels"});
  int chosen = 0;
  for (const auto &line : words_of(finished.out)) {
    if (line.empty() || line.size() < 5 || finished.out.find(line[0]) == std::string::npos) continue;
    for (const TargetInfo &info : targets()) {
      if (line[0] != info.name) continue;
      EXPECT_EQ(line[1], std::to_string(kernels_of(info.name).size()));
      const bool runs = line[4] == "runs";
      EXPECT_EQ(runs, info.name == std::string(current_target()));
      chosen += runs;
    }
  }
  EXPECT_EQ(chosen, 1);
}

TEST(Kernels, Filters) {
  const Finished finished = posattn({"kernels", "--kind", "prefill", "--kind", "decode", "--type", "bf16",
                                     "--head-dim", "64", "--branches", "none", "--target", current_target()});
  ASSERT_EQ(finished.exit_code, 0) << finished.err;
  size_t expected = 0;
  for (const char *kind : {"prefill", "decode"})
    expected += variants_of(kind, "none", 64, "bf16", current_target());
  EXPECT_NE(finished.out.find("\n" + std::to_string(expected) + " kernels, "), std::string::npos)
      << finished.out;
}

TEST(Verify, EveryKernelOfThisMachine) {
  const Finished finished = posattn({"verify", "--cases", "1"});
  EXPECT_EQ(finished.exit_code, 0) << finished.out << finished.err;
  // Output that is no terminal gets a line for each kernel.
  int64_t expected = 0, ok = 0, other = 0;
  for (const KernelInfo *kernel : all_kernels()) (runnable(kernel->target) ? expected : other) += 1;
  for (const auto &line : words_of(finished.out)) ok += !line.empty() && line[0] == "ok";
  EXPECT_EQ(ok, expected);
  EXPECT_EQ(finished.out.find('\r'), std::string::npos);
  std::string summary = std::to_string(expected) + " kernels verified with " + std::to_string(expected) +
                        " cases: " + std::to_string(expected) + " passed, 0 failed";
  if (other) summary += "; " + std::to_string(other) + " are for other machines";
  EXPECT_NE(finished.out.find(summary + "\n"), std::string::npos) << finished.out;
}

TEST(Verify, FiltersAndSeeds) {
  const Arguments arguments = {"verify",     "--kind",     "decode",  "--type", "f32",
                               "--head-dim", "64",         "--cases", "3",      "--target",
                               f32_target(), "--branches", "none"};
  const Finished first = posattn(arguments), again = posattn(arguments);
  EXPECT_EQ(first.exit_code, 0) << first.out << first.err;
  const size_t variants = variants_of("decode", "none", 64, "f32", f32_target());
  const std::string count = std::to_string(variants);
  const std::string summary =
      count + " kernels verified with " + std::to_string(3 * variants) + " cases: " + count + " passed";
  EXPECT_NE(first.out.find(summary), std::string::npos) << first.out;
  EXPECT_EQ(first.out, again.out);
}

TEST(Bench, TimesEachKind) {
  const Finished finished =
      posattn({"bench",      "--type", "f32",      "--head-dim", "64",        "--head-dim", "0",
               "--branches", "none",   "--target", f32_target(), "--seconds", "0",          "--queries",
               "64",         "--keys", "128",      "--rows",     "16",        "--features", "64",
               "--heads",    "2",      "--batch",  "2",          "--threads", "1"});
  ASSERT_EQ(finished.exit_code, 0) << finished.err;
  std::set<std::string> found;
  for (const auto &line : words_of(finished.out)) {
    if (line.size() < 8 || line[0] != f32_target()) continue;
    found.insert(line[1]);
    const double best = std::stod(line[5]), median = std::stod(line[6]);
    EXPECT_GE(best, median);
    EXPECT_GT(best, 0);
    const bool products =
        line[1] == "prefill" || line[1] == "prefill_i8" || line[1] == "weights" || line[1] == "projection";
    EXPECT_EQ(line[7], products ? "GFLOP/s" : "GB/s");
  }
  EXPECT_EQ(found.size(), 8u) << finished.out;
}

TEST(Help, EverySubcommandExplainsItself) {
  for (const char *command : {"attend", "mha", "kernels", "verify", "bench"}) {
    const Finished finished = posattn({command, "--help"});
    EXPECT_EQ(finished.exit_code, 0);
    EXPECT_NE(finished.out.find("--help"), std::string::npos);
    EXPECT_NE(posattn({"--help"}).out.find(command), std::string::npos);
  }
}

}  // namespace
}  // namespace posattn::cli_test
