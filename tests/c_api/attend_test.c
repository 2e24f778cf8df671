/* posattn_attend() from C: strides, branches, masks, workspace, and how it refuses. */
#include "tests/c_api/check.h"

enum { B = 2, HQ = 4, HKV = 2, TQ = 5, TK = 37, D = 32, M = 8 };
static const double kTolerance = 2e-6;

/* The query is (B, T, H, D) in memory, the rest is as in the shapes. */
typedef struct {
  float *query, *key, *value, *out, *table, *slopes;
  int32_t lengths[B];
  posattn_attend_args args;
} problem;

static void make(problem *p) {
  p->query = random_floats(B * HQ * TQ * D, 1);
  p->key = random_floats(B * HKV * TK * D, 2);
  p->value = random_floats(B * HKV * TK * D, 3);
  p->out = random_floats(B * HQ * TQ * D, 4);
  p->table = random_floats(HQ * (2 * M + 1), 5);
  p->slopes = random_floats(HQ, 6);
  p->lengths[0] = TK;
  p->lengths[1] = 20;
  posattn_attend_args_init(&p->args);
  p->args.query = tensor4(p->query, B, HQ, TQ, D);
  p->args.query.stride[1] = D;
  p->args.query.stride[2] = HQ * D;
  p->args.key = tensor4(p->key, B, HKV, TK, D);
  p->args.value = tensor4(p->value, B, HKV, TK, D);
  p->args.out = tensor4(p->out, B, HQ, TQ, D);
}

static void release(problem *p) {
  free(p->query);
  free(p->key);
  free(p->value);
  free(p->out);
  free(p->table);
  free(p->slopes);
}

static double error_of(const problem *p, score_mod mod) {
  return attention_error(&p->args.query, &p->args.key, &p->args.value, &p->args.out, mod, p);
}

static void test_plain(void) {
  problem p;
  make(&p);
  CHECK(error_of(&p, NULL) > 0.1); /* the check would see it */
  CHECK_OK(posattn_attend(&p.args, NULL, 0));
  CHECK(error_of(&p, NULL) < kTolerance);
  release(&p);
}

static double everything(const void *context, int64_t b, int64_t h, int64_t i, int64_t j) {
  const problem *p = (const problem *)context;
  const int64_t aligned = i + TK - TQ;
  if (j > aligned || j < aligned - 30 || j >= p->lengths[b]) return -INFINITY;
  const int64_t offset = i - j < -M ? -M : i - j > M ? M : i - j;
  return -p->slopes[h] * fabs((double)(i - j)) - p->table[h * (2 * M + 1) + offset + M];
}

static void add_branches(problem *p, posattn_branch branches[2]) {
  const int64_t table_shape[2] = {HQ, 2 * M + 1}, slopes_shape[1] = {HQ};
  memset(branches, 0, 2 * sizeof(*branches));
  branches[0].kind = POSATTN_RELATIVE;
  branches[0].table = posattn_contiguous(p->table, POSATTN_F32, 2, table_shape);
  branches[1].kind = POSATTN_ALIBI;
  branches[1].table = posattn_contiguous(p->slopes, POSATTN_F32, 1, slopes_shape);
  p->args.branches = branches;
  p->args.num_branches = 2;
}

static void test_everything_composes(void) {
  problem p;
  posattn_branch branches[2];
  const int64_t lengths_shape[1] = {B}, lse_shape[3] = {B, HQ, TQ};
  float lse[B * HQ * TQ];
  size_t size = 0;
  void *memory, *workspace;
  make(&p);
  add_branches(&p, branches);
  p.args.options.causal = POSATTN_CAUSAL_BOTTOM_RIGHT;
  p.args.options.window_left = 30;
  p.args.options.key_lengths = posattn_contiguous(p.lengths, POSATTN_I32, 1, lengths_shape);
  p.args.lse = posattn_contiguous(lse, POSATTN_F32, 3, lse_shape);
  for (int64_t j = 20; j < TK; ++j) *at(&p.args.key, 1, 0, j, 0) = NAN; /* hidden by the length */

  CHECK_OK(posattn_attend_workspace_size(&p.args, &size));
  memory = malloc(size + 64);
  workspace = (void *)(((uintptr_t)memory + 63) / 64 * 64);
  CHECK_ERROR(posattn_attend(&p.args, workspace, size - 1), "workspace");
  CHECK_OK(posattn_attend(&p.args, workspace, size));
  /* Memory of the host is no GPU's; without a driver there is no GPU to begin with. */
  CHECK_ERROR(posattn_attend_cuda(&p.args, NULL, NULL, 0), "");
  CHECK_OK(posattn_attend(&p.args, workspace, size));
  for (int64_t j = 20; j < TK; ++j) *at(&p.args.key, 1, 0, j, 0) = 0;
  CHECK(error_of(&p, everything) < kTolerance);
  for (int i = 0; i < B * HQ * TQ; ++i) CHECK(fabsf(lse[i]) < 20);
  free(memory);
  release(&p);
}

/* A branch that is described by its inputs alone computes what the built-in one does. */
static void test_custom_branch(void) {
  problem p;
  posattn_branch branches[2];
  posattn_branch_input input;
  float expected[B * HQ * TQ * D];
  make(&p);
  add_branches(&p, branches);
  p.args.branches = &branches[1];
  p.args.num_branches = 1;
  CHECK_OK(posattn_attend(&p.args, NULL, 0));
  memcpy(expected, p.out, sizeof(expected));
  memset(p.out, 0, sizeof(expected));

  memset(&input, 0, sizeof(input));
  input.name = "alibi_slopes";
  input.kind = POSATTN_INPUT_TENSOR;
  input.tensor = branches[1].table;
  branches[1].kind = POSATTN_CUSTOM;
  branches[1].name = "alibi";
  branches[1].inputs = &input;
  branches[1].num_inputs = 1;
  CHECK_OK(posattn_attend(&p.args, NULL, 0));
  CHECK(memcmp(expected, p.out, sizeof(expected)) == 0);

  branches[1].name = "no_such_branch";
  CHECK_ERROR(posattn_attend(&p.args, NULL, 0), "no kernel is linked");
  branches[1].name = NULL;
  CHECK_ERROR(posattn_attend(&p.args, NULL, 0), "branch: name: expected a pointer, got null");
  release(&p);
}

static void test_refuses(void) {
  problem p;
  float before[B * HQ * TQ * D];
  size_t size;
  make(&p);
  memcpy(before, p.out, sizeof(before));
#define REFUSED(change, text)                            \
  do {                                                   \
    posattn_attend_args good = p.args;                   \
    change;                                              \
    CHECK_ERROR(posattn_attend(&p.args, NULL, 0), text); \
    p.args = good;                                       \
  } while (0)
  REFUSED(memset(&p.args.query, 0, sizeof(p.args.query)), "query: ");
  REFUSED(p.args.query.rank = 0, "query: "); /* a number */
  REFUSED(p.args.query.rank = 6, "query: expected a rank of 0 to 5, got 6");
  REFUSED(p.args.query.rank = -1, "query: expected a rank of 0 to 5, got -1");
  REFUSED(p.args.key.dtype = 7, "key: dtype: expected a dtype of 0 to 6, got 7");
  REFUSED(p.args.key.dtype = POSATTN_F16, "key: ");
  REFUSED(p.args.value.shape[2] = -1, "value: shape: ");
  REFUSED(p.args.value.shape[2] = INT64_MAX, "value: shape: ");
  REFUSED(p.args.key.stride[3] = 0, "key: ");
  REFUSED(p.args.out.data = NULL, "out: ");
  REFUSED(p.args.options.causal = 3, "causal: expected 0 to 2, got 3");
  REFUSED(p.args.options.need_weights = -1, "need_weights: expected 0 to 2, got -1");
  REFUSED(p.args.num_branches = 9, "branches: expected 0 to 8, got 9");
  REFUSED(p.args.num_branches = 1, "branches: expected a pointer, got null");
#undef REFUSED
  CHECK_ERROR(posattn_attend(NULL, NULL, 0), "args: expected a pointer, got null");
  CHECK_ERROR(posattn_attend_workspace_size(&p.args, NULL), "size: expected a pointer, got null");
  CHECK_OK(posattn_attend_workspace_size(&p.args, &size));
  CHECK(memcmp(before, p.out, sizeof(before)) == 0);
  CHECK_OK(posattn_attend(&p.args, NULL, 0)); /* nothing of it sticks */
  release(&p);
}

int main(void) {
  CHECK(posattn_last_error()[0] == '\0');
  CHECK(strcmp(posattn_version(), POSATTN_VERSION) == 0);
  CHECK(posattn_abi_version() == POSATTN_ABI_VERSION);
  test_plain();
  test_everything_composes();
  test_custom_branch();
  test_refuses();
  return 0;
}
