/* posattn for C (C99), and for whatever calls C: the operator, layers with their weights, caches.
 *
 * Calls return POSATTN_OK or say why not in posattn_last_error(); nothing is written then. Tensors belong to
 * the caller and are only looked at during a call, except for handles, which own copies. Calls may run at the
 * same time on any threads, as long as none of them changes a cache or uses a scratch that another one uses.
 *
 * Initialise argument structs with their posattn_..._init function, then set what you need. A tensor that is
 * all zero, which is what that leaves, is an argument that is not given: rank 0 and null data.
 */
#ifndef POSATTN_C_API_POSATTN_H_
#define POSATTN_C_API_POSATTN_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define POSATTN_API __attribute__((visibility("default")))
#else
#define POSATTN_API
#endif

#define POSATTN_VERSION "0.1.0"
/* Changes whenever a struct of this file does. Compare it with posattn_abi_version(). */
#define POSATTN_ABI_VERSION 3

POSATTN_API const char *posattn_version(void);
POSATTN_API int posattn_abi_version(void);

typedef enum {
  POSATTN_OK = 0,
  POSATTN_INVALID_ARGUMENT = 1, /* an argument, a file, or this machine does not fit */
  POSATTN_OUT_OF_MEMORY = 2,
  POSATTN_INTERNAL_ERROR = 3
} posattn_status;

/* What the last call of this thread that failed had to say: which argument, what was expected, what came.
 * "" if none has failed. Valid until the thread's next failure. Never null. */
POSATTN_API const char *posattn_last_error(void);

/* ---- Tensors ---- */

enum { POSATTN_MAX_RANK = 5, POSATTN_MAX_BRANCHES = 8 };

/* The values of a posattn_tensor's dtype. Structs hold all choices as int32_t. */
typedef enum {
  POSATTN_F32 = 0,
  POSATTN_BF16 = 1,
  POSATTN_F16 = 2,
  POSATTN_F64 = 3,
  POSATTN_I64 = 4,
  POSATTN_I32 = 5,
  POSATTN_BOOL = 6 /* one byte, 0 or 1 */
} posattn_dtype;

/* Strides count elements, not bytes; 0 broadcasts, negative ones are fine. Inputs are not written. */
typedef struct {
  void *data;
  int32_t dtype;
  int32_t rank;
  int64_t shape[POSATTN_MAX_RANK];
  int64_t stride[POSATTN_MAX_RANK];
} posattn_tensor;

/* A contiguous tensor, last dimension fastest. A shape or rank out of range is refused where it is used. */
POSATTN_API posattn_tensor posattn_contiguous(void *data, posattn_dtype dtype, int rank,
                                              const int64_t *shape);

/* ---- Attention ---- */

typedef struct posattn_cache posattn_cache;
typedef struct posattn_layer posattn_layer;
typedef struct posattn_scratch posattn_scratch;

enum { POSATTN_CAUSAL_NONE = 0, POSATTN_CAUSAL_BOTTOM_RIGHT = 1, POSATTN_CAUSAL_TOP_LEFT = 2 };
enum { POSATTN_WEIGHTS_NONE = 0, POSATTN_WEIGHTS_MEAN = 1, POSATTN_WEIGHTS_HEADS = 2 };
enum { POSATTN_ROPE_INTERLEAVED = 0, POSATTN_ROPE_HALF = 1 };
enum { POSATTN_MINUS = 0, POSATTN_PLUS = 1 };

/* What attention and layers have in common. B batch, H query heads, Tq queries, Tk keys, a cache's included.
 * Everything composes. */
typedef struct {
  /* Broadcast to (B, H, Tq, Tk): any dimension may be 1, leading ones may be missing. */
  posattn_tensor keep_mask;  /* bool, true = attend */
  posattn_tensor block_mask; /* bool, true = hidden */
  posattn_tensor add_mask;   /* added to the logits, -inf hides; f32, bf16 or f16 */
  posattn_tensor dense_bias; /* a positional bias of the same form */
  /* What these hide has no influence, whatever the keys and values hold (NaN included). */
  posattn_tensor key_keep_mask;  /* (B, Tk) or (1, Tk) bool */
  posattn_tensor key_block_mask; /* (B, Tk) or (1, Tk) bool */
  posattn_tensor key_add_mask;   /* (B, Tk) or (1, Tk) float */
  posattn_tensor key_lengths;    /* (B) i32 or i64 in [0, Tk] */
  /* (P), (1, P) or (B, P); f32, f64, i32 or i64. Default: 0, 1, 2, ... Position masks are bool; false = the
   * token takes part without positional treatment. */
  posattn_tensor q_positions, k_positions, q_position_mask, k_position_mask;
  int64_t window_left, window_right; /* -left <= j - (i + Tk - Tq) <= right; -1 (initial) is unbounded */
  int32_t causal;                    /* POSATTN_CAUSAL_...; bottom-right: j <= i + (Tk - Tq) */
  int32_t need_weights;              /* POSATTN_WEIGHTS_... */
  int32_t has_scale;                 /* 0 (initial): scale is 1 / sqrt(D) */
  float scale;
  float softcap; /* 0 (initial): none */
} posattn_options;

typedef enum {
  POSATTN_RELATIVE = 1, /* table f32 (2M + 1) or (H, 2M + 1); sign */
  POSATTN_ALIBI = 2,    /* table f32 (H): the slopes */
  POSATTN_T5 = 3,       /* table f32 (buckets, H); max_distance, bidirectional */
  POSATTN_CUSTOM = 4    /* a branch that was compiled under `name`, with its inputs */
} posattn_branch_kind;

enum { POSATTN_INPUT_TENSOR = 0, POSATTN_INPUT_FLOAT = 1, POSATTN_INPUT_INT = 2 };

/* A tensor or number that a compiled branch reads, by the name it gave it. Only names, types and ranks are
 * checked: sizes are between the branch and its caller. */
typedef struct {
  const char *name;
  int32_t kind;          /* POSATTN_INPUT_... */
  float f;               /* of POSATTN_INPUT_FLOAT */
  int32_t i;             /* of POSATTN_INPUT_INT */
  posattn_tensor tensor; /* f32 or i32, at most 4 dimensions, last one contiguous */
} posattn_branch_input;

/* A positional branch on the logits. */
typedef struct {
  int32_t kind; /* POSATTN_RELATIVE, ... */
  int32_t sign; /* POSATTN_MINUS subtracts the table's value (symm-learning), POSATTN_PLUS adds it */
  posattn_tensor table;
  int64_t max_distance;  /* of t5 */
  int32_t bidirectional; /* of t5 */
  int32_t num_inputs;    /* of a custom branch, as are name and inputs */
  const char *name;
  const posattn_branch_input *inputs;
} posattn_branch;

/* query (B, Hq, Tq, D), key (B, Hkv, Tk, D), value (B, Hkv, Tk, Dv), out (B, Hq, Tq, Dv): one type of f32,
 * bf16 and f16, any strides, last dimension contiguous; Hq a multiple of Hkv. */
typedef struct {
  posattn_tensor query, key, value, out;
  posattn_tensor lse;             /* optional output, (B, Hq, Tq) f32; -inf where nothing is visible */
  posattn_tensor weights;         /* optional output, (B, Hq, Tq, Tk), or (B, Tq, Tk) for the mean */
  const posattn_cache *cache;     /* in place of key and value */
  const posattn_branch *branches; /* all of them apply; no two of a name */
  int32_t num_branches;           /* at most POSATTN_MAX_BRANCHES */
  int32_t rope_layout;            /* POSATTN_ROPE_...: pairs (x0, x1), .. or (x_i, x_{i + n}) */
  posattn_tensor rope_inv_freq;   /* optional, (n) f32: rotates query and (unless cached) key */
  posattn_options options;
} posattn_attend_args;

POSATTN_API void posattn_attend_args_init(posattn_attend_args *args);
/* Bytes of workspace for such a call: shapes count, data pointers do not. */
POSATTN_API posattn_status posattn_attend_workspace_size(const posattn_attend_args *args, size_t *size);
/* workspace: 64-byte aligned, at least that large; null: the call allocates its own. */
POSATTN_API posattn_status posattn_attend(const posattn_attend_args *args, void *workspace,
                                          size_t workspace_size);
/* The same on a GPU, with every tensor (those of branches, too) and the workspace in its memory:
 * runtime/cuda/attend.h says what holds there. stream: a CUstream or cudaStream_t, null for the default one.
 * The workspace is 256-byte aligned; null: one from the stream's memory pool. The library must hold CUDA
 * kernels, as libposattn_cuda.so does. */
POSATTN_API posattn_status posattn_attend_cuda_workspace_size(const posattn_attend_args *args, void *stream,
                                                              size_t *size);
POSATTN_API posattn_status posattn_attend_cuda(const posattn_attend_args *args, void *stream, void *workspace,
                                               size_t workspace_size);
/* out = x rotated by its positions: for keys that go into a cache. x, out (B, H, T, D); positions and mask
 * (null: 0, 1, 2, ... and none) as q_positions and q_position_mask above. */
POSATTN_API posattn_status posattn_rotate(const posattn_tensor *x, const posattn_tensor *inv_freq,
                                          int32_t rope_layout, const posattn_tensor *positions,
                                          const posattn_tensor *position_mask, const posattn_tensor *out);

/* ---- Keys and values of the tokens so far. Free with posattn_cache_free(); null is fine there. ---- */

POSATTN_API posattn_status posattn_cache_create(int64_t batch, int64_t kv_heads, int64_t head_dim,
                                                int64_t value_dim, int64_t capacity, posattn_dtype dtype,
                                                posattn_cache **cache);
/* Where the layer is. What is then done to the cache itself is put onto the layer's stream. */
POSATTN_API posattn_status posattn_cache_create_for_layer(const posattn_layer *layer, int64_t batch,
                                                          int64_t capacity, posattn_cache **cache);
/* The same for keys and values of `dtype`, stored as 8-bit integers with a scale for each row of a token and
 * head: a quarter of float32's memory, and of what decoding reads. need_weights is not served from them. */
POSATTN_API posattn_status posattn_cache_create_int8(int64_t batch, int64_t kv_heads, int64_t head_dim,
                                                     int64_t value_dim, int64_t capacity, posattn_dtype dtype,
                                                     posattn_cache **cache);
POSATTN_API posattn_status posattn_cache_create_int8_for_layer(const posattn_layer *layer, int64_t batch,
                                                               int64_t capacity, posattn_cache **cache);
POSATTN_API void posattn_cache_free(posattn_cache *cache);
POSATTN_API int64_t posattn_cache_length(const posattn_cache *cache);   /* tokens; 0 for null */
POSATTN_API int64_t posattn_cache_capacity(const posattn_cache *cache); /* tokens; 0 for null */
/* key (B, Hkv, T, D), value (B, Hkv, T, Dv); with rope, keys that are rotated already. A failure, a full
 * cache for one, leaves the cache as it was. A layer's forward appends by itself. */
POSATTN_API posattn_status posattn_cache_append(posattn_cache *cache, const posattn_tensor *key,
                                                const posattn_tensor *value);
/* Row b becomes what row source_rows[b] was (beam search). (B) i64 or i32. */
POSATTN_API posattn_status posattn_cache_reorder(posattn_cache *cache, const posattn_tensor *source_rows);
POSATTN_API posattn_status posattn_cache_truncate(posattn_cache *cache, int64_t length);

/* ---- Layers. Immutable; free with posattn_layer_free(). ---- */

typedef enum { POSATTN_CPU = 0, POSATTN_CUDA = 1 } posattn_device;

typedef struct {
  int64_t num_heads;
  int64_t num_kv_heads; /* 0 (initial): num_heads */
  /* Positional branches joined by '+', "relative+rope"; null or "none": none. Of additive, sinusoidal,
   * fourier, mlp, relative, alibi, t5, rope, dense. Their tensors come from the file. */
  const char *positions;
  double rope_base;          /* 10000 */
  int64_t rope_dim;          /* 0 (initial): the whole head */
  int64_t t5_max_distance;   /* 128 */
  double sinusoidal_base;    /* 10000 */
  int32_t dtype;             /* computes in; -1 (initial): the weights' type */
  int32_t add_zero_attn;     /* torch's */
  int32_t relative_sign;     /* POSATTN_MINUS */
  int32_t rope_layout;       /* POSATTN_ROPE_INTERLEAVED */
  int32_t t5_bidirectional;  /* 1 */
  int32_t sinusoidal_halves; /* 0: sin, cos, sin, cos, ..; 1: all sines, then all cosines (Whisper) */
  int32_t device;            /* POSATTN_CPU; for POSATTN_CUDA the library must hold CUDA kernels */
  void *stream; /* on POSATTN_CUDA: a CUstream or cudaStream_t of the GPU; null: the default one */
} posattn_layer_options;

typedef struct {
  int64_t embed_dim, key_dim, value_dim; /* channels of the query, key and value streams */
  int64_t num_heads, num_kv_heads, head_dim;
  int64_t extra_keys; /* bias_k and add_zero_attn of torch: columns at the end of the weights */
  int32_t dtype;      /* of the streams */
} posattn_layer_info;

POSATTN_API void posattn_layer_options_init(posattn_layer_options *options);
/* A layer of a safetensors file, by the names that frameworks write. prefix: "blocks.3." of a whole model's
 * file; null or "" for a file of one layer. The weights are copied. */
POSATTN_API posattn_status posattn_layer_load(const char *path, const char *prefix,
                                              const posattn_layer_options *options, posattn_layer **layer);
POSATTN_API void posattn_layer_free(posattn_layer *layer);
POSATTN_API posattn_status posattn_layer_describe(const posattn_layer *layer, posattn_layer_info *info);

/* Intermediate memory that calls of forward keep using; for one call at a time. */
POSATTN_API posattn_status posattn_scratch_create(posattn_scratch **scratch);
POSATTN_API void posattn_scratch_free(posattn_scratch *scratch);

/* query (B, Tq, embed_dim), key (B, T, key_dim), value (B, T, value_dim), out (B, Tq, embed_dim). With a
 * cache, keys and values are appended to it, then all of it is attended to; without key and value it is read
 * as it is. Queries' positions then continue where the cache ended, unless they are given. */
typedef struct {
  posattn_tensor query, key, value, out;
  posattn_tensor lse;       /* optional output, (B, H, Tq) f32 */
  posattn_tensor weights;   /* for need_weights, (B, H, Tq, Tk + extra_keys), or (B, Tq, ..) for the mean */
  posattn_cache *cache;     /* optional */
  posattn_scratch *scratch; /* optional; not for a layer on a GPU */
  posattn_options options;
  /* Of a layer on a GPU, whose tensors and cache are there, too (runtime/cuda/layers.h says what holds): the
   * call is put onto the stream and not waited for. The workspace is 256-byte aligned, null: one from the
   * stream's memory pool. */
  void *stream, *workspace;
  size_t workspace_size;
} posattn_forward_args;

POSATTN_API void posattn_forward_args_init(posattn_forward_args *args);
POSATTN_API posattn_status posattn_layer_forward(const posattn_layer *layer,
                                                 const posattn_forward_args *args);
/* Bytes of workspace for such a call; 0 for a layer on the CPU. */
POSATTN_API posattn_status posattn_layer_workspace_size(const posattn_layer *layer,
                                                        const posattn_forward_args *args, size_t *size);

/* ---- The machine ---- */

/* Size of the thread pool, the calling thread included; 0 = one per core. For the whole process. */
POSATTN_API posattn_status posattn_set_num_threads(int count);
/* Runs body(closure, i) for all i in [0, count) on threads of the application's own; returns the first result
 * of body that is not 0, or 0. */
typedef int (*posattn_parallel_for)(void *context, int64_t count, int (*body)(void *closure, int64_t i),
                                    void *closure);
/* In place of the pool; null gives the pool back. */
POSATTN_API posattn_status posattn_set_parallel_for(posattn_parallel_for run, void *context);

/* "amx", "avx512bf16", "avx512", "avx2", "sse41"; null or "": the best that this machine runs. For the whole
 * process. */
POSATTN_API posattn_status posattn_set_target(const char *name);
POSATTN_API posattn_status posattn_current_target(const char **name);

/* One compiled kernel. Strings live as long as the program. */
typedef struct {
  const char *kind, *branches, *type, *target;
  int64_t size;      /* bytes of its object file */
  int32_t head_dim;  /* 0 where it does not matter */
  int32_t runs_here; /* whether this CPU and its operating system run it */
} posattn_kernel_info;

POSATTN_API int64_t posattn_num_kernels(void);
POSATTN_API posattn_status posattn_describe_kernel(int64_t index, posattn_kernel_info *info);

#ifdef __cplusplus
}
#endif

#endif /* POSATTN_C_API_POSATTN_H_ */
