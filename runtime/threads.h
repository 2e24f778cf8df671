// Threads that kernels run on: Halide's pool, or the application's own.
#pragma once

#include <cstdint>

namespace posattn {

// Size of Halide's pool, the calling thread included; 0 = one per core. For the whole process.
void set_num_threads(int count);

// Runs body(closure, i) for every i in [0, count), in any order, on any threads, and returns when all are
// done. A non-zero result of body is the function's result. Must be callable from several threads at once.
using ParallelFor = int (*)(void *context, int64_t count, int (*body)(void *closure, int64_t i),
                            void *closure);

// From now on kernels use `run` in place of Halide's pool; null gives the pool back. `context` is passed
// through.
void set_parallel_for(ParallelFor run, void *context);

}  // namespace posattn
