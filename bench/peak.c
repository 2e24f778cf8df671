/* What this machine can do at most: rates of multiply-adds in registers and of reading memory, on some
 * threads that start together. Short loops, to be run between the things that they are compared with. */
#include <pthread.h>
#include <stdint.h>
#include <time.h>

#include "peak_bf16.h"

enum { MAX_THREADS = 256, CHAINS = 12 };

/* Twelve chains hide the latency of four to five cycles on two ports. */
#define EVERY_CHAIN(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)
#define START(i) vec a##i = (vec){0} + 1e-3f * i;
#define STEP(i) a##i = a##i * 0.9999f + 0.0001f;
#define SUM(i) +a##i

static volatile float sink; /* results must look wanted */

/* The compiler contracts STEP into a fused multiply-add where the target has one. */
#define MULTIPLY_ADD(name, features, lanes)                                     \
  __attribute__((target(features), noinline)) static void name(int64_t count) { \
    typedef float vec __attribute__((vector_size(4 * lanes)));                  \
    vec total;                                                                  \
    EVERY_CHAIN(START)                                                          \
    for (int64_t n = 0; n < count; ++n) {                                       \
      EVERY_CHAIN(STEP)                                                         \
    }                                                                           \
    total = EVERY_CHAIN(SUM);                                                   \
    sink = total[0];                                                            \
  }

/* Four sums, so that it is the loads that limit. */
#define READ(name, features, lanes)                                                                \
  __attribute__((target(features), noinline)) static void name(const float *data, int64_t count) { \
    typedef float vec __attribute__((vector_size(4 * lanes), aligned(4)));                         \
    const vec *v = (const vec *)data;                                                              \
    vec a = {0}, b = a, c = a, d = a;                                                              \
    for (int64_t i = 0; i + 4 <= count / lanes; i += 4) {                                          \
      a += v[i], b += v[i + 1], c += v[i + 2], d += v[i + 3];                                      \
    }                                                                                              \
    a += b + c + d;                                                                                \
    sink = a[0];                                                                                   \
  }

MULTIPLY_ADD(multiply_add_avx512, "avx512f,fma", 16)
MULTIPLY_ADD(multiply_add_avx2, "avx2,fma", 8)
MULTIPLY_ADD(multiply_add_sse, "sse2", 4)
READ(read_avx512, "avx512f", 16)
READ(read_avx2, "avx2", 8)
READ(read_sse, "sse2", 4)

typedef struct {
  void (*multiply_add)(int64_t count);
  void (*read)(const float *data, int64_t count);
  int lanes;
} machine;

static machine this_machine(void) {
  if (__builtin_cpu_supports("avx512f")) return (machine){multiply_add_avx512, read_avx512, 16};
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    return (machine){multiply_add_avx2, read_avx2, 8};
  }
  return (machine){multiply_add_sse, read_sse, 4};
}

typedef struct {
  pthread_barrier_t *start;
  void (*steps)(int64_t count);
  void (*read)(const float *data, int64_t count);
  const float *data; /* null: steps */
  int64_t count;
  double begin, end;
} task;

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void *run(void *argument) {
  task *t = argument;
  pthread_barrier_wait(t->start);
  t->begin = now();
  if (t->data) {
    t->read(t->data, t->count);
  } else {
    t->steps(t->count);
  }
  t->end = now();
  return NULL;
}

/* Seconds from the first start to the last end; 0 if threads cannot be had. */
static double run_all(task *tasks, int threads) {
  pthread_t ids[MAX_THREADS];
  pthread_barrier_t start;
  double begin, end;
  if (threads < 1 || threads > MAX_THREADS) return 0;
  pthread_barrier_init(&start, NULL, (unsigned)threads);
  for (int i = 0; i < threads; ++i) tasks[i].start = &start;
  for (int i = 1; i < threads; ++i) {
    if (pthread_create(&ids[i], NULL, run, &tasks[i]) != 0) return 0;
  }
  run(&tasks[0]);
  for (int i = 1; i < threads; ++i) pthread_join(ids[i], NULL);
  pthread_barrier_destroy(&start);
  begin = tasks[0].begin, end = tasks[0].end;
  for (int i = 1; i < threads; ++i) {
    if (tasks[i].begin < begin) begin = tasks[i].begin;
    if (tasks[i].end > end) end = tasks[i].end;
  }
  return end - begin;
}

static double rate(arithmetic of, int threads, int64_t count) {
  task tasks[MAX_THREADS];
  double seconds;
  for (int i = 0; i < threads && i < MAX_THREADS; ++i) tasks[i] = (task){.steps = of.steps, .count = count};
  seconds = run_all(tasks, threads);
  return seconds > 0 ? of.flops * (double)count * threads / seconds : 0;
}

/* FLOP/s of `count` steps of float32 multiply-adds on each thread. */
double peak_flops(int threads, int64_t count) {
  const machine with = this_machine();
  return rate((arithmetic){with.multiply_add, 2.0 * CHAINS * with.lanes}, threads, count);
}

/* Likewise of bfloat16 products; of float32 where the machine has no such unit. */
double peak_flops_bf16(int threads, int64_t count) {
  const arithmetic bf16 = bf16_arithmetic();
  return bf16.steps ? rate(bf16, threads, count) : peak_flops(threads, count);
}

/* Bytes/s of reading `count` floats once, an equal part on each thread. */
double peak_read(int threads, const float *data, int64_t count) {
  task tasks[MAX_THREADS];
  const machine with = this_machine();
  const int64_t part = threads > 0 ? count / threads : 0;
  double seconds;
  for (int i = 0; i < threads && i < MAX_THREADS; ++i) {
    tasks[i] = (task){.read = with.read, .data = data + i * part, .count = part};
  }
  seconds = run_all(tasks, threads);
  return seconds > 0 ? 4.0 * (double)(part * threads) / seconds : 0;
}
