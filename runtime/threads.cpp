#include "runtime/threads.h"

#include <HalideRuntime.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "runtime/cpu.h"
#include "runtime/error.h"
#include "runtime/parallel.h"

// A program without kernels links no Halide runtime either.
#pragma weak halide_set_num_threads
#pragma weak halide_set_custom_do_par_for
#pragma weak halide_default_do_par_for

namespace posattn {
namespace {

struct Hook {
  ParallelFor run;
  void *context;
};

std::atomic<const Hook *> hook{nullptr};
std::atomic<int> pool_size{0};  // 0: not chosen, one thread per core
std::atomic<int> busy{0};       // threads that run iterations of Halide's pool, callers included
thread_local bool is_busy = false;

int num_threads() {
  const int chosen = pool_size.load(std::memory_order_relaxed);
  if (chosen > 0) return chosen;
  static const int cores = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  return cores;
}

// One parallel loop of a kernel. Threads take its iterations one by one.
struct Loop {
  void *user_context;
  halide_task_t task;
  int first, count;
  uint8_t *closure;
  std::atomic<int> next{0}, error{0};

  int call(int i) const { return task(user_context, first + i, closure); }

  void work() {
    for (int i = next++; i < count; i = next++) {
      if (const int status = call(i)) {
        error = status;
        next = count;
      }
    }
  }
};

// What Halide's pool runs. A helper only joins while fewer threads are busy than were asked for: the pool
// does not shrink, and several callers at once would otherwise each add a thread to it.
int help(void *, int, uint8_t *closure) {
  Loop &loop = *reinterpret_cast<Loop *>(closure);
  if (is_busy) {
    loop.work();
    return 0;
  }
  if (busy.fetch_add(1) < num_threads()) {
    is_busy = true;
    loop.work();
    is_busy = false;
  }
  --busy;
  return 0;
}

int run_iteration(void *loop, int64_t i) {
  const KeepTileConfig keep;  // this thread is the caller's
  return static_cast<Loop *>(loop)->call(static_cast<int>(i));
}

int parallel_for(void *user_context, halide_task_t task, int first, int count, uint8_t *closure) {
  if (count <= 0) return 0;
  if (count == 1) return task(user_context, first, closure);
  Loop loop{user_context, task, first, count, closure};
  if (const Hook *custom = hook.load(std::memory_order_acquire)) {
    return custom->run(custom->context, count, run_iteration, &loop);
  }
  const bool outermost = !is_busy;
  if (outermost) ++busy;
  is_busy = true;
  const int threads = num_threads();
  if (busy < threads || (!outermost && threads > 1)) {
    halide_default_do_par_for(user_context, help, 0, std::min(count, threads),
                              reinterpret_cast<uint8_t *>(&loop));
  }
  loop.work();  // all, or what is left if every helper turned away
  if (outermost) {
    is_busy = false;
    --busy;
  }
  return loop.error;
}

}  // namespace

void install_parallel_for() {
  static const bool once = [] {
    if (halide_set_custom_do_par_for) halide_set_custom_do_par_for(parallel_for);
    return true;
  }();
  (void)once;
}

void set_num_threads(int count) {
  constexpr int kMost = 256;  // of Halide's pool
  if (count < 0 || count > kMost) fail("threads: expected 0 to ", kMost, ", got ", count);
  pool_size = count;
  if (halide_set_num_threads) halide_set_num_threads(count);
}

void set_parallel_for(ParallelFor run, void *context) {
  // Old hooks are kept: a kernel of another thread may still be using one.
  static std::mutex mutex;
  static std::vector<std::unique_ptr<const Hook>> *hooks = new std::vector<std::unique_ptr<const Hook>>;
  const std::lock_guard<std::mutex> lock(mutex);
  if (!run) {
    hook.store(nullptr, std::memory_order_release);
    return;
  }
  hooks->push_back(std::make_unique<const Hook>(Hook{run, context}));
  hook.store(hooks->back().get(), std::memory_order_release);
}

}  // namespace posattn
