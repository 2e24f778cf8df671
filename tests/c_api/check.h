/* What the tests in C share: checks, random numbers, and attention by its formula in double precision. */
#ifndef POSATTN_TESTS_C_API_CHECK_H_
#define POSATTN_TESTS_C_API_CHECK_H_

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/c_api/posattn.h"

#define CHECK(condition)                                                                      \
  do {                                                                                        \
    if (!(condition)) {                                                                       \
      fprintf(stderr, "%s:%d: not so: %s (last error: %s)\n", __FILE__, __LINE__, #condition, \
              posattn_last_error());                                                          \
      exit(1);                                                                                \
    }                                                                                         \
  } while (0)

#define CHECK_OK(call) CHECK((call) == POSATTN_OK)

/* The call is refused, and the text starts with `expected`. */
#define CHECK_ERROR(call, expected)                                        \
  do {                                                                     \
    CHECK((call) == POSATTN_INVALID_ARGUMENT);                             \
    CHECK(strncmp(posattn_last_error(), expected, strlen(expected)) == 0); \
  } while (0)

/* Uniform in [-1, 1). */
static inline float random_float(uint32_t *state) {
  *state = *state * 1664525u + 1013904223u;
  return (float)(int32_t)*state / 2147483648.0f;
}

static inline float *random_floats(int64_t count, uint32_t seed) {
  float *values = (float *)malloc((size_t)count * sizeof(float));
  for (int64_t i = 0; i < count; ++i) values[i] = random_float(&seed);
  return values;
}

static inline posattn_tensor tensor4(float *data, int64_t a, int64_t b, int64_t c, int64_t d) {
  const int64_t shape[4] = {a, b, c, d};
  return posattn_contiguous(data, POSATTN_F32, 4, shape);
}

static inline float *at(const posattn_tensor *t, int64_t a, int64_t b, int64_t c, int64_t d) {
  return (float *)t->data + a * t->stride[0] + b * t->stride[1] + c * t->stride[2] + d * t->stride[3];
}

/* What is added to a logit, or -INFINITY to hide the key. */
typedef double (*score_mod)(const void *context, int64_t b, int64_t h, int64_t i, int64_t j);

static inline double dot(const float *x, const float *y, int64_t count) {
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += (double)x[i] * y[i];
  return sum;
}

/* The largest difference of `out` from softmax(q k^T / sqrt(D) + mod) v. */
static inline double attention_error(const posattn_tensor *q, const posattn_tensor *k,
                                     const posattn_tensor *v, const posattn_tensor *out, score_mod mod,
                                     const void *context) {
  const int64_t keys = k->shape[2], dim = q->shape[3], value_dim = v->shape[3];
  const int64_t group = q->shape[1] / k->shape[1];
  double *p = (double *)malloc((size_t)keys * sizeof(double));
  double worst = 0;
  for (int64_t b = 0; b < q->shape[0]; ++b) {
    for (int64_t h = 0; h < q->shape[1]; ++h) {
      for (int64_t i = 0; i < q->shape[2]; ++i) {
        double largest = -INFINITY, sum = 0;
        for (int64_t j = 0; j < keys; ++j) {
          p[j] = dot(at(q, b, h, i, 0), at(k, b, h / group, j, 0), dim) / sqrt((double)dim);
          if (mod) p[j] += mod(context, b, h, i, j);
          largest = fmax(largest, p[j]);
        }
        for (int64_t j = 0; j < keys; ++j) {
          p[j] = p[j] == -INFINITY ? 0 : exp(p[j] - largest);
          sum += p[j];
        }
        for (int64_t c = 0; c < value_dim; ++c) {
          double expected = 0;
          for (int64_t j = 0; j < keys; ++j) expected += p[j] * *at(v, b, h / group, j, c);
          if (sum > 0) expected /= sum;
          const double difference = fabs(expected - *at(out, b, h, i, c));
          worst = difference <= worst ? worst : difference; /* NaN wins */
        }
      }
    }
  }
  free(p);
  return worst;
}

#endif /* POSATTN_TESTS_C_API_CHECK_H_ */
