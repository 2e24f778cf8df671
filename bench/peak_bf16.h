/* Products of bfloat16 summed in float32, in registers alone, by the best unit of this machine. */
#include <stdint.h>

typedef struct {
  void (*steps)(int64_t count);
  double flops; /* of a step */
} arithmetic;

/* AMX tiles, or vdpbf16ps; steps is null where there is neither. */
arithmetic bf16_arithmetic(void);
