// attend() from several threads at once, on threads of the application's own: what the thread sanitizer looks
// at.
#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

#include "runtime/attend.h"
#include "runtime/threads.h"
#include "tests/case.h"
#include "tests/check.h"

namespace posattn::oracle {
namespace {

struct Hook {
  std::atomic<int64_t> loops{0}, bodies{0};
};

// Three threads share the iterations of each loop.
int run_on_threads(void *context, int64_t count, int (*body)(void *closure, int64_t i), void *closure) {
  Hook &hook = *static_cast<Hook *>(context);
  ++hook.loops;
  std::atomic<int64_t> next{0};
  std::atomic<int> result{0};
  const auto work = [&] {
    for (int64_t i = next++; i < count; i = next++) {
      ++hook.bodies;
      const int status = body(closure, i);
      if (status != 0) result = status;
    }
  };
  std::thread second(work), third(work);
  work();
  second.join();
  third.join();
  return result;
}

std::vector<CaseSpec> specs() {
  std::vector<CaseSpec> result;
  for (DType type : {DType::f32, DType::bf16, DType::f16}) {
    for (int64_t queries : {1, 70}) {
      CaseSpec s;
      s.seed = 50 + result.size();
      s.type = type;
      s.queries = queries;
      s.keys = 130;
      s.rotary_dim = 32;
      s.branches = {"relative"};
      s.causal = Causal::bottom_right;
      s.key_lengths = true;
      s.weights = Weights::mean;
      result.push_back(s);
    }
  }
  return result;
}

TEST(Parallel, AHookRunsEveryLoop) {
  set_num_threads(1);  // without a hook, the caller does it all
  on_every_target([] {
    for (const CaseSpec &s : specs()) {
      Case c(s);
      const Outputs expected = outputs_of(c.args());
      Hook hook;
      set_parallel_for(run_on_threads, &hook);
      const Outputs outputs = outputs_of(c.args());
      set_parallel_for(nullptr, nullptr);
      EXPECT_TRUE(same_bits(expected, outputs)) << describe(s);
      EXPECT_GT(hook.loops, 0);
      EXPECT_GE(hook.bodies, hook.loops);
    }
  });
  set_num_threads(0);
}

// Several threads make the same calls, each in another order, and all get the same bits.
void expect_threads_agree(size_t threads) {
  std::vector<std::unique_ptr<Case>> cases;
  std::vector<Outputs> expected;
  for (const CaseSpec &s : specs()) {
    cases.push_back(std::make_unique<Case>(s));
    expected.push_back(outputs_of(cases.back()->args()));
  }
  std::atomic<int> different{0};
  std::vector<std::thread> callers;
  for (size_t t = 0; t < threads; ++t) {
    callers.emplace_back([&, t] {
      for (size_t i = 0; i < cases.size(); ++i) {
        const size_t which = (i + t * 2) % cases.size();
        if (!same_bits(expected[which], outputs_of(cases[which]->args()))) ++different;
      }
    });
  }
  for (std::thread &caller : callers) caller.join();
  EXPECT_EQ(different, 0);
}

TEST(Parallel, CallsFromManyThreads) {
  Hook hook;
  set_parallel_for(run_on_threads, &hook);
  expect_threads_agree(4);
  set_parallel_for(nullptr, nullptr);
}

// On Halide's pool, which kernels of several calls share.
TEST(Parallel, CallsFromManyThreadsOnThePool) {
#if defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "the pool's threads run code that is not instrumented";
#endif
  expect_threads_agree(3);
}

}  // namespace
}  // namespace posattn::oracle
