// What attend() looks for and plans alike on a CPU and on a GPU: kernels by kind, and where results go.
#pragma once

#include "runtime/attend_problem.h"
#include "runtime/workspace.h"

namespace posattn {

int64_t ceil_div(int64_t a, int64_t b);
// Of sizes in a workspace: an Error where it overflows.
int64_t workspace_product(std::initializer_list<int64_t> factors);
bool varies_by_batch(const TensorView &view);  // (B, T) of more than one row
bool default_positions(const AttendArgs &args);

// Up to so many rows of a key head the decode kernel is used.
constexpr int64_t kMostDecodeRows = 8;

struct CommonKernels {
  // Few query rows: grouped queries share a read of the keys, and the keys are split.
  bool decode = false;
  // The branches are shift-invariant and positions consecutive: a kernel without branches reads their sum
  // from a table of offsets.
  bool tabulated = false;
  const Kernel *attention = nullptr, *merge = nullptr, *weights = nullptr, *rotary = nullptr;
  const Kernel *offsets[BranchSet::kCapacity] = {};
};

// Finds kernels, and remembers the first that is missing. Subclasses know targets.
class KernelFinder {
 public:
  KernelFinder(const AttendArgs &args, const AttendProblem &problem, KernelQuery &missing)
      : args_(args), problem_(problem), missing_(missing) {}
  virtual ~KernelFinder() = default;

 protected:
  // Of the best target that has one.
  virtual const Kernel *look(KernelQuery &query) const = 0;

  KernelQuery any(const char *kind) const;
  // A query for attention of its branches, in a head dimension that serves keys and values.
  KernelQuery attention(const char *kind, bool tabulated) const;
  const Kernel *found(KernelQuery query);
  // Sets decode, attention and merge if there are both kernels; or merge and decode, of attention.
  void find_decode(const KernelQuery &decode, CommonKernels &out) const;
  void find_merge(CommonKernels &out) const;
  // The kernels for weights and for tables of offsets, where they are asked for.
  bool find_weights(CommonKernels &out);
  bool find_offsets(CommonKernels &out);

  const AttendArgs &args_;
  const AttendProblem &problem_;
  KernelQuery &missing_;
};

// Where results go on their way.
struct ResultPlan {
  int64_t row_heads = 1, splits = 1, split_blocks = 1;
  float *partial_out = nullptr, *partial_lse = nullptr;  // of split keys: attention's, before they are merged
  float *lse = nullptr;                                  // if the caller wants none
};
void take_results(const AttendArgs &args, const AttendProblem &problem, bool decode, ResultPlan &plan,
                  Workspace &workspace);

struct ResultBuffers {
  KernelBuffer out, lse;                  // (d, query, head, batch), (query, head, batch)
  KernelBuffer partial_out, partial_lse;  // (d, row, split, kv_head, batch), (row, split, kv_head, batch)
  KernelBuffer weights;                   // (key, query, head, batch), one head for their mean
};
ResultBuffers result_buffers(const AttendArgs &args, const AttendShape &shape, bool decode,
                             const ResultPlan &plan);
// out and lse as attention without a split writes them: (d, query, split, head, batch), (query, split, ..).
KernelBuffer with_one_split(const KernelBuffer &out_or_lse, int split_dim);

// Tells a kernel which of the neutral branches that it may have are asked for; inputs of the others are
// zeros.
void bind_neutral_branches(KernelCall &call, const BranchSet &asked, const float *zeros, int64_t num_zeros);

}  // namespace posattn
