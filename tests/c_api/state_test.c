/* Handles from C: caches, a layer of a file; and what concerns the whole process. */
#include "tests/c_api/check.h"

static const double kTolerance = 2e-6;

static double causal(const void *context, int64_t b, int64_t h, int64_t i, int64_t j) {
  (void)b, (void)h;
  return j <= i + *(const int64_t *)context ? 0 : -INFINITY;
}

static posattn_tensor tokens(const posattn_tensor *t, int64_t begin, int64_t end) {
  posattn_tensor slice = *t;
  slice.data = at(t, 0, 0, begin, 0);
  slice.shape[2] = end - begin;
  return slice;
}

/* Attends through the cache, causally, and compares with all keys and values so far. */
static void check_cache(const posattn_cache *cache, const posattn_tensor *query, const posattn_tensor *key,
                        const posattn_tensor *value, double tolerance) {
  const int64_t count = query->shape[0] * query->shape[1] * query->shape[2] * query->shape[3];
  const int64_t past = key->shape[2] - query->shape[2];
  float *out = random_floats(count, 9);
  posattn_attend_args args;
  posattn_attend_args_init(&args);
  args.query = *query;
  args.cache = cache;
  args.out = tensor4(out, query->shape[0], query->shape[1], query->shape[2], query->shape[3]);
  args.options.causal = POSATTN_CAUSAL_BOTTOM_RIGHT;
  CHECK(posattn_cache_length(cache) == key->shape[2]);
  CHECK_OK(posattn_attend(&args, NULL, 0));
  CHECK(attention_error(query, key, value, &args.out, causal, &past) < tolerance);
  free(out);
}

static void test_cache(void) {
  enum { B = 2, H = 2, T = 50, D = 32 };
  float *q = random_floats(B * H * T * D, 1), *k = random_floats(B * H * T * D, 2),
        *v = random_floats(B * H * T * D, 3);
  const posattn_tensor query = tensor4(q, B, H, T, D), key = tensor4(k, B, H, T, D),
                       value = tensor4(v, B, H, T, D);
  const int64_t steps[] = {0, 33, 34, 35, T}, batch_shape[1] = {B};
  int64_t swap[B] = {1, 0};
  posattn_cache *cache = NULL;
  posattn_tensor some, more;
  CHECK_OK(posattn_cache_create(B, H, D, D, T, POSATTN_F32, &cache));
  CHECK(posattn_cache_capacity(cache) == T && posattn_cache_length(cache) == 0);
  for (int s = 0; s < 4; ++s) {
    const posattn_tensor chunk = tokens(&query, steps[s], steps[s + 1]),
                         all_keys = tokens(&key, 0, steps[s + 1]),
                         all_values = tokens(&value, 0, steps[s + 1]);
    some = tokens(&key, steps[s], steps[s + 1]);
    more = tokens(&value, steps[s], steps[s + 1]);
    CHECK_OK(posattn_cache_append(cache, &some, &more));
    check_cache(cache, &chunk, &all_keys, &all_values, kTolerance);
  }
  some = tokens(&key, 0, 1);
  more = tokens(&value, 0, 1);
  CHECK_ERROR(posattn_cache_append(cache, &some, &more), ""); /* full */
  CHECK(posattn_last_error()[0] != '\0' && posattn_cache_length(cache) == T);

  CHECK_ERROR(posattn_cache_append(NULL, &some, &more), "cache: expected a pointer, got null");
  CHECK_ERROR(posattn_cache_append(cache, NULL, &more), "");
  CHECK_ERROR(posattn_cache_truncate(cache, T + 1), "");
  CHECK_OK(posattn_cache_truncate(cache, 34));
  {
    /* Batch rows swapped: as if both had been from the start. */
    posattn_tensor swapped_keys = tokens(&key, 0, 34), swapped_values = tokens(&value, 0, 34);
    const posattn_tensor last = tokens(&query, 33, 34),
                         order = posattn_contiguous(swap, POSATTN_I64, 1, batch_shape);
    swapped_keys.data = at(&key, 1, 0, 0, 0);
    swapped_values.data = at(&value, 1, 0, 0, 0);
    swapped_keys.stride[0] = swapped_values.stride[0] = -H * T * D;
    CHECK_OK(posattn_cache_reorder(cache, &order));
    check_cache(cache, &last, &swapped_keys, &swapped_values, kTolerance);
  }
  posattn_cache_free(cache);
  CHECK_OK(posattn_cache_create_int8(B, H, D, D, T, POSATTN_F32, &cache));
  CHECK_OK(posattn_cache_append(cache, &key, &value));
  check_cache(cache, &query, &key, &value, 0.02);
  posattn_cache_free(cache);
  posattn_cache_free(NULL);
  CHECK_ERROR(posattn_cache_create_int8(B, H, 0, D, T, POSATTN_F32, &cache), "");
  CHECK_ERROR(posattn_cache_create_int8(B, H, D, D, T, POSATTN_F32, NULL), "cache: expected a pointer, got null");
  CHECK_ERROR(posattn_cache_create(B, H, 0, D, T, POSATTN_F32, &cache), "");
  CHECK_ERROR(posattn_cache_create(B, H, D, D, T, POSATTN_I64, &cache), "");
  CHECK_ERROR(posattn_cache_create(B, H, D, D, T, POSATTN_F32, NULL), "cache: expected a pointer, got null");
  free(q);
  free(k);
  free(v);
}

enum { E = 64, HEADS = 2, TOKENS = 7 };

/* "layer.in_proj_weight" (3E, E) and "layer.out_proj.weight" (E, E), as
 * torch.nn.MultiheadAttention(bias=False) would save them. */
static void write_layer(const char *path, const float *in_proj, const float *out_proj) {
  char header[512];
  unsigned char length[8] = {0};
  FILE *file = fopen(path, "wb");
  const int in_bytes = 3 * E * E * 4, out_bytes = E * E * 4;
  const int written =
      snprintf(header, sizeof(header),
               "{\"layer.in_proj_weight\":{\"dtype\":\"F32\",\"shape\":[%d,%d],\"data_offsets\":[0,%d]},"
               "\"layer.out_proj.weight\":{\"dtype\":\"F32\",\"shape\":[%d,%d],\"data_offsets\":[%d,%d]}}",
               3 * E, E, in_bytes, E, E, in_bytes, in_bytes + out_bytes);
  CHECK(file != NULL && written > 0 && written < (int)sizeof(header));
  length[0] = (unsigned char)(written & 255);
  length[1] = (unsigned char)(written >> 8);
  CHECK(fwrite(length, 1, 8, file) == 8);
  CHECK(fwrite(header, 1, (size_t)written, file) == (size_t)written);
  CHECK(fwrite(in_proj, 1, (size_t)in_bytes, file) == (size_t)in_bytes);
  CHECK(fwrite(out_proj, 1, (size_t)out_bytes, file) == (size_t)out_bytes);
  CHECK(fclose(file) == 0);
}

/* y (rows, E) = x W^T for W (E, E). */
static void multiply(const float *x, const float *weight, float *y, int64_t rows) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t n = 0; n < E; ++n) y[r * E + n] = (float)dot(x + r * E, weight + n * E, E);
  }
}

/* The tokens of (1, T, E) as heads. */
static posattn_tensor heads(float *data) {
  posattn_tensor t = tensor4(data, 1, HEADS, TOKENS, E / HEADS);
  t.stride[1] = E / HEADS;
  t.stride[2] = E;
  return t;
}

static void check_forward(const posattn_layer *layer, float *in_proj, const float *out_proj) {
  float *x = random_floats(TOKENS * E, 3), *out = random_floats(TOKENS * E, 4),
        *stepwise = random_floats(TOKENS * E, 5), *q = random_floats(TOKENS * E, 6),
        *k = random_floats(TOKENS * E, 7), *v = random_floats(TOKENS * E, 8),
        *heads_out = random_floats(TOKENS * E, 9), *expected = random_floats(TOKENS * E, 10);
  const int64_t shape[3] = {1, TOKENS, E}, zero = 0;
  const posattn_tensor query = heads(q), key = heads(k), value = heads(v);
  posattn_attend_args attention;
  posattn_forward_args args;
  posattn_scratch *scratch = NULL;
  posattn_cache *cache = NULL;

  /* The same by hand: projections, attention, projection. */
  multiply(x, in_proj, q, TOKENS);
  multiply(x, in_proj + E * E, k, TOKENS);
  multiply(x, in_proj + 2 * E * E, v, TOKENS);
  posattn_attend_args_init(&attention);
  attention.query = query;
  attention.key = key;
  attention.value = value;
  attention.out = heads(heads_out);
  attention.options.causal = POSATTN_CAUSAL_BOTTOM_RIGHT;
  CHECK_OK(posattn_attend(&attention, NULL, 0));
  CHECK(attention_error(&query, &key, &value, &attention.out, causal, &zero) < kTolerance);
  multiply(heads_out, out_proj, expected, TOKENS);

  CHECK_OK(posattn_scratch_create(&scratch));
  posattn_forward_args_init(&args);
  args.query = args.key = args.value = posattn_contiguous(x, POSATTN_F32, 3, shape);
  args.out = posattn_contiguous(out, POSATTN_F32, 3, shape);
  args.scratch = scratch;
  args.options.causal = POSATTN_CAUSAL_BOTTOM_RIGHT;
  CHECK_OK(posattn_layer_forward(layer, &args));

  CHECK_OK(posattn_cache_create_for_layer(layer, 1, TOKENS, &cache));
  args.cache = cache;
  for (int t = 0; t < TOKENS; ++t) {
    const int64_t one[3] = {1, 1, E};
    args.query = args.key = args.value = posattn_contiguous(x + t * E, POSATTN_F32, 3, one);
    args.out = posattn_contiguous(stepwise + t * E, POSATTN_F32, 3, one);
    CHECK_OK(posattn_layer_forward(layer, &args));
  }
  CHECK(posattn_cache_length(cache) == TOKENS);
  CHECK(posattn_layer_forward(layer, &args) == POSATTN_INVALID_ARGUMENT); /* full */
  for (int i = 0; i < TOKENS * E; ++i) {
    CHECK(fabsf(out[i] - expected[i]) < 2e-5f);
    CHECK(fabsf(stepwise[i] - expected[i]) < 2e-5f);
  }
  posattn_cache_free(cache);

  CHECK_OK(posattn_cache_create_int8_for_layer(layer, 1, TOKENS, &cache));
  args.cache = cache;
  args.query = args.key = args.value = posattn_contiguous(x, POSATTN_F32, 3, shape);
  args.out = posattn_contiguous(stepwise, POSATTN_F32, 3, shape);
  CHECK_OK(posattn_layer_forward(layer, &args));
  CHECK(posattn_cache_length(cache) == TOKENS);
  for (int i = 0; i < TOKENS * E; ++i) CHECK(fabsf(stepwise[i] - expected[i]) < 0.02f);
  posattn_cache_free(cache);
  posattn_scratch_free(scratch);
  free(x), free(out), free(stepwise), free(q), free(k), free(v), free(heads_out), free(expected);
}

static void test_layer(void) {
  const char *folder = getenv("TEST_TMPDIR");
  char path[1024];
  float *in_proj = random_floats(3 * E * E, 1), *out_proj = random_floats(E * E, 2);
  posattn_layer_options options;
  posattn_layer *layer = NULL;
  posattn_layer_info info;
  snprintf(path, sizeof(path), "%s/c_api_layer.safetensors", folder ? folder : ".");
  for (int i = 0; i < 3 * E * E; ++i) in_proj[i] /= 8;
  write_layer(path, in_proj, out_proj);
  posattn_layer_options_init(&options);
  CHECK_ERROR(posattn_layer_load(path, "layer.", &options, &layer), "num_heads: ");
  options.num_heads = HEADS;
  CHECK_OK(posattn_layer_load(path, "layer.", &options, &layer));
  CHECK_OK(posattn_layer_describe(layer, &info));
  CHECK(info.embed_dim == E && info.key_dim == E && info.value_dim == E && info.num_heads == HEADS);
  CHECK(info.num_kv_heads == HEADS && info.head_dim == E / HEADS && info.extra_keys == 0);
  CHECK(info.dtype == POSATTN_F32);
  check_forward(layer, in_proj, out_proj);
  posattn_layer_free(layer);
  posattn_layer_free(NULL);

  layer = NULL;
  CHECK_ERROR(posattn_layer_load(path, "other.", &options, &layer), "");
  options.positions = "relative+rope"; /* rope needs nothing of the file, relative does */
  CHECK_ERROR(posattn_layer_load(path, "layer.", &options, &layer), "position 'relative'");
  options.positions = "sideways";
  CHECK_ERROR(posattn_layer_load(path, "layer.", &options, &layer), "position");
  options.positions = "rope";
  options.rope_layout = 2;
  CHECK_ERROR(posattn_layer_load(path, "layer.", &options, &layer), "rope_layout: expected 0 to 1, got 2");
  options.rope_layout = POSATTN_ROPE_INTERLEAVED;
  options.device = 2;
  CHECK_ERROR(posattn_layer_load(path, "layer.", &options, &layer), "device: expected 0 to 1, got 2");
  options.device = POSATTN_CPU;
  CHECK(remove(path) == 0);
  CHECK_ERROR(posattn_layer_load(path, "layer.", &options, &layer), "");
  CHECK_ERROR(posattn_layer_load(NULL, "layer.", &options, &layer), "path: expected a pointer, got null");
  CHECK(layer == NULL);
  free(in_proj);
  free(out_proj);
}

static void test_kernels(void) {
  const char *target = NULL;
  posattn_kernel_info info;
  int ours = 0;
  CHECK_OK(posattn_current_target(&target));
  CHECK(posattn_num_kernels() > 0);
  for (int64_t i = 0; i < posattn_num_kernels(); ++i) {
    CHECK_OK(posattn_describe_kernel(i, &info));
    CHECK(info.size > 0 && info.kind[0] && info.type[0] && info.branches[0]);
    if (strcmp(info.target, target) == 0) ours += info.runs_here;
  }
  CHECK(ours > 0);
  CHECK_ERROR(posattn_describe_kernel(posattn_num_kernels(), &info), "index: ");
  CHECK_ERROR(posattn_describe_kernel(-1, &info), "index: ");
  CHECK_ERROR(posattn_set_target("z80"), "target: ");
  CHECK_OK(posattn_set_target(target));
  CHECK_OK(posattn_set_target(NULL));
  CHECK_OK(posattn_set_num_threads(1));
  CHECK_ERROR(posattn_set_num_threads(-1), "threads: ");
}

static int backwards(void *context, int64_t count, int (*body)(void *closure, int64_t i), void *closure) {
  *(int64_t *)context += count;
  while (count-- > 0) {
    const int result = body(closure, count);
    if (result != 0) return result;
  }
  return 0;
}

/* Kernels run on the application's threads, and give the same bits there. */
static void test_parallel_for(void) {
  enum { H = 4, T = 300, D = 64 };
  float *q = random_floats(H * T * D, 1), *pool = random_floats(H * T * D, 2),
        *own = random_floats(H * T * D, 3);
  int64_t tasks = 0;
  posattn_attend_args args;
  posattn_attend_args_init(&args);
  args.query = args.key = args.value = tensor4(q, 1, H, T, D);
  args.out = tensor4(pool, 1, H, T, D);
  CHECK_OK(posattn_set_num_threads(2));
  CHECK_OK(posattn_attend(&args, NULL, 0));
  args.out.data = own;
  CHECK_OK(posattn_set_parallel_for(backwards, &tasks));
  CHECK_OK(posattn_attend(&args, NULL, 0));
  CHECK_OK(posattn_set_parallel_for(NULL, NULL));
  CHECK(tasks > 1);
  CHECK(memcmp(pool, own, H * T * D * sizeof(float)) == 0);
  free(q), free(pool), free(own);
}

int main(void) {
  test_cache();
  test_layer();
  test_kernels();
  test_parallel_for();
  return 0;
}
