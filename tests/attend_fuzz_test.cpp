// Random calls of attend() against float64 for a fixed time.
//
//   POSATTN_SEED=n            just that case
//   POSATTN_FUZZ_SECONDS=s    how long: 20 by default, and then no more cases than kUsualCases
//   POSATTN_FUZZ_START=n      the first of the seeds (default 1); "now" takes it from the clock, for long
//   runs
#include <gtest/gtest.h>

#include <chrono>
#include <cstdlib>
#include <iostream>
#include <string>

#include "tests/case.h"
#include "tests/check.h"

namespace posattn::oracle {
namespace {

constexpr uint64_t kUsualCases = 300;

uint64_t number_from(const char *variable, uint64_t otherwise) {
  const char *text = std::getenv(variable);
  return text && *text ? std::strtoull(text, nullptr, 10) : otherwise;
}

TEST(AttendFuzz, RandomCases) {
  using Clock = std::chrono::steady_clock;
  const std::vector<std::vector<std::string>> branch_sets = linked_branch_sets();
  if (const uint64_t seed = number_from("POSATTN_SEED", 0)) {
    std::cout << describe(random_spec(seed, branch_sets)) << "\n";
    EXPECT_TRUE(passes(random_spec(seed, branch_sets)));
    return;
  }
  const char *from = std::getenv("POSATTN_FUZZ_START");
  const auto now =
      std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch());
  const uint64_t start = from && std::string(from) == "now" ? static_cast<uint64_t>(now.count()) * 1000
                                                            : number_from("POSATTN_FUZZ_START", 1);
  const bool usual = !std::getenv("POSATTN_FUZZ_SECONDS");
  const auto end = Clock::now() + std::chrono::seconds(number_from("POSATTN_FUZZ_SECONDS", 20));
  uint64_t seed = start;
  int failures = 0;
  for (; Clock::now() < end && failures < 10 && !(usual && seed - start == kUsualCases); ++seed) {
    const ::testing::AssertionResult result = passes(random_spec(seed, branch_sets));
    if (result) continue;
    ++failures;
    ADD_FAILURE() << result.message()
                  << "\n  replay: ./bazelw test //tests:attend_fuzz_test --test_env=POSATTN_SEED=" << seed;
  }
  std::cout << seed - start << " cases from seed " << start << "\n";
  EXPECT_GT(seed, start);
}

}  // namespace
}  // namespace posattn::oracle
