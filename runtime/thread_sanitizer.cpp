// Halide's thread pool comes out of Halide's compiler, without instrumentation: ThreadSanitizer sees its
// mutexes but not its atomics, and reports races between the pool's own threads. Races of our code are still
// reported.
#if defined(__SANITIZE_THREAD__)
extern "C" const char *__tsan_default_suppressions();
extern "C" const char *__tsan_default_suppressions() {
  return "race:Halide::Runtime::Internal\nmutex:Halide::Runtime::Internal\nrace:halide_\n";
}
#endif
