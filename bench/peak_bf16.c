#include "peak_bf16.h"

#include <cpuid.h>
#include <stddef.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { DOTS = 12, TILES = 4 };
typedef float vec16 __attribute__((vector_size(64)));

static volatile float sink; /* results must look wanted */

#define EVERY_DOT(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)
#define START(i) vec16 a##i = {(float)count};
#define STEP(i) __asm__ volatile("vdpbf16ps %1, %1, %0" : "+v"(a##i) : "v"(b));
#define SUM(i) +a##i

__attribute__((target("avx512f"), noinline)) static void dots(int64_t count) {
  vec16 total;
  const vec16 b = {0};
  EVERY_DOT(START)
  for (int64_t n = 0; n < count; ++n) {
    EVERY_DOT(STEP)
  }
  total = EVERY_DOT(SUM);
  sink = total[0];
}

/* Four accumulators hide the latency. Tiles are configured and released by the thread that uses them. */
__attribute__((noinline)) static void tile_products(int64_t count) {
  struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  } config;
  memset(&config, 0, sizeof(config));
  config.palette = 1;
  for (int i = 0; i < 8; ++i) config.row_bytes[i] = 64, config.rows[i] = 16;
  __asm__ volatile("ldtilecfg %0" ::"m"(config));
  for (int64_t n = 0; n < count; ++n) {
    __asm__ volatile(
        "tdpbf16ps %tmm5, %tmm4, %tmm0\n\ttdpbf16ps %tmm5, %tmm4, %tmm1\n\t"
        "tdpbf16ps %tmm5, %tmm4, %tmm2\n\ttdpbf16ps %tmm5, %tmm4, %tmm3");
  }
  __asm__ volatile("tilerelease");
}

static int has_amx_bf16(void) {
  enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d >> 22 & 1) || !(d >> 24 & 1)) return 0;
  return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
}

static int has_avx512_bf16(void) {
  unsigned a, b, c, d;
  return __builtin_cpu_supports("avx512f") && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 5 & 1);
}

arithmetic bf16_arithmetic(void) {
  if (has_amx_bf16()) return (arithmetic){tile_products, 2.0 * TILES * 16 * 16 * 32};
  if (has_avx512_bf16()) return (arithmetic){dots, 2.0 * DOTS * 32};
  return (arithmetic){NULL, 0};
}
