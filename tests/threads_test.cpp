// Parallel loops of kernels: all of their iterations run, on no more threads than were asked for.
#include "runtime/threads.h"

#include <HalideRuntime.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <set>
#include <thread>
#include <vector>

#include "runtime/error.h"
#include "runtime/parallel.h"

namespace posattn {
namespace {

struct Loop {
  std::vector<std::atomic<int>> seen;
  std::atomic<int> active{0}, most_active{0};
  std::mutex mutex;
  std::set<std::thread::id> threads;
  int fail_at = -1;
  explicit Loop(size_t count) : seen(count) {}
};

void count_thread(std::atomic<int> &active, std::atomic<int> &most) {
  const int now = ++active;
  int before = most;
  while (now > before && !most.compare_exchange_weak(before, now)) {
  }
}

int task(void *, int i, uint8_t *closure) {
  Loop &loop = *reinterpret_cast<Loop *>(closure);
  count_thread(loop.active, loop.most_active);
  ++loop.seen[static_cast<size_t>(i)];
  {
    const std::lock_guard<std::mutex> lock(loop.mutex);
    loop.threads.insert(std::this_thread::get_id());
  }
  std::this_thread::sleep_for(std::chrono::microseconds(200));
  --loop.active;
  return i == loop.fail_at ? 9 : 0;
}

// As a kernel does.
int run(Loop &loop) {
  install_parallel_for();
  return halide_do_par_for(nullptr, task, 0, static_cast<int>(loop.seen.size()),
                           reinterpret_cast<uint8_t *>(&loop));
}

void expect_each_once(const Loop &loop) {
  for (const std::atomic<int> &count : loop.seen) ASSERT_EQ(count, 1);
}

#if defined(__SANITIZE_THREAD__)
constexpr bool kPoolIsOpaque = true;  // its locks are not instrumented: all that they guard looks like a race
#else
constexpr bool kPoolIsOpaque = false;
#endif

class Threads : public ::testing::Test {
 protected:
  void SetUp() override {
    if (kPoolIsOpaque) set_num_threads(1);
  }
  ~Threads() override {
    set_parallel_for(nullptr, nullptr);
    set_num_threads(0);
  }
};

TEST_F(Threads, EveryIterationRunsOnce) {
  if (kPoolIsOpaque) GTEST_SKIP() << "Halide's pool";
  for (int threads : {1, 4, 2, 0}) {
    set_num_threads(threads);
    for (size_t count : {0, 1, 2, 100}) {
      Loop loop(count);
      EXPECT_EQ(run(loop), 0);
      expect_each_once(loop);
      EXPECT_LE(loop.most_active, threads > 0 ? threads : 1000);
    }
  }
}

TEST_F(Threads, OneThreadIsTheCaller) {
  set_num_threads(1);
  Loop loop(20);
  EXPECT_EQ(run(loop), 0);
  EXPECT_EQ(loop.threads, std::set<std::thread::id>{std::this_thread::get_id()});
}

TEST_F(Threads, BadNumbersAreErrors) {
  EXPECT_THROW(set_num_threads(-1), Error);
  EXPECT_THROW(set_num_threads(100000), Error);
}

TEST_F(Threads, AnErrorOfOneIterationIsTheLoops) {
  if (kPoolIsOpaque) GTEST_SKIP() << "Halide's pool";
  for (int threads : {1, 4}) {
    set_num_threads(threads);
    Loop loop(30);
    loop.fail_at = 17;
    EXPECT_EQ(run(loop), 9);
  }
}

// As many callers as threads: nobody helps them.
TEST_F(Threads, ManyCallersDoNotMultiplyThePool) {
  if (kPoolIsOpaque) GTEST_SKIP() << "Halide's pool";
  constexpr int kPool = 4, kCallers = 4;
  set_num_threads(kPool);
  Loop loop(kCallers * 50);
  std::vector<std::thread> callers;
  callers.reserve(kCallers);
  std::atomic<int> failures{0};
  for (int c = 0; c < kCallers; ++c) {
    callers.emplace_back([&, c] {
      install_parallel_for();
      failures += halide_do_par_for(nullptr, task, c * 50, 50, reinterpret_cast<uint8_t *>(&loop)) != 0;
    });
  }
  for (std::thread &caller : callers) caller.join();
  EXPECT_EQ(failures, 0);
  expect_each_once(loop);
  // One that starts before the others may have found help, which stays until its loop ends.
  EXPECT_LE(loop.most_active, kPool + kCallers - 1);
}

int nested_task(void *context, int i, uint8_t *closure) {
  Loop &loop = *reinterpret_cast<Loop *>(closure);
  return halide_do_par_for(context, task, i * 10, 10, reinterpret_cast<uint8_t *>(&loop));
}

TEST_F(Threads, LoopsInsideOfLoops) {
  if (kPoolIsOpaque) GTEST_SKIP() << "Halide's pool";
  for (int threads : {1, 2, 4}) {
    set_num_threads(threads);
    Loop loop(100);
    install_parallel_for();
    EXPECT_EQ(halide_do_par_for(nullptr, nested_task, 0, 10, reinterpret_cast<uint8_t *>(&loop)), 0);
    expect_each_once(loop);
    EXPECT_LE(loop.most_active, threads);
  }
  // Few outer iterations leave threads for the inner ones; on a busy machine these may come too late for one.
  set_num_threads(4);
  int most_active = 0;
  for (int attempt = 0; attempt < 1000 && most_active <= 2; ++attempt) {
    Loop loop(20);
    EXPECT_EQ(halide_do_par_for(nullptr, nested_task, 0, 2, reinterpret_cast<uint8_t *>(&loop)), 0);
    expect_each_once(loop);
    most_active = std::max<int>(most_active, loop.most_active);
  }
  EXPECT_GT(most_active, 2);
}

struct Hook {
  std::atomic<int> loops{0};
  std::atomic<int64_t> iterations{0};
};

int backward(void *context, int64_t count, int (*body)(void *closure, int64_t i), void *closure) {
  Hook &hook = *static_cast<Hook *>(context);
  ++hook.loops;
  for (int64_t i = count; i-- > 0;) {
    ++hook.iterations;
    if (const int error = body(closure, i)) return error;
  }
  return 0;
}

TEST_F(Threads, TheApplicationsOwn) {
  Hook first, second;
  set_parallel_for(backward, &first);
  Loop loop(12);
  EXPECT_EQ(run(loop), 0);
  expect_each_once(loop);
  EXPECT_EQ(first.loops, 1);
  EXPECT_EQ(first.iterations, 12);
  set_parallel_for(backward, &second);
  Loop failing(12);
  failing.fail_at = 3;
  EXPECT_EQ(run(failing), 9);
  EXPECT_EQ(first.loops, 1);
  EXPECT_EQ(second.loops, 1);
  set_parallel_for(nullptr, nullptr);
  Loop again(12);
  EXPECT_EQ(run(again), 0);
  expect_each_once(again);
  EXPECT_EQ(second.loops, 1);
}

}  // namespace
}  // namespace posattn
