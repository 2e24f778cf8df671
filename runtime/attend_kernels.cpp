#include "runtime/attend_kernels.h"

#include <algorithm>
#include <cstring>

namespace posattn {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t workspace_product(std::initializer_list<int64_t> factors) {
  int64_t result = 1;
  for (int64_t factor : factors) result = checked_product(result, factor, "workspace");
  return result;
}

bool varies_by_batch(const TensorView &view) { return view.rank() == 2 && view.size(0) > 1; }

bool default_positions(const AttendArgs &args) {
  return args.q_positions.empty() && args.k_positions.empty() && args.q_position_mask.empty() &&
         args.k_position_mask.empty();
}

KernelQuery KernelFinder::any(const char *kind) const {
  KernelQuery query;
  query.kind = kind;
  query.type = problem_.type;
  query.queries = problem_.shape.queries;
  query.keys = problem_.shape.keys;
  return query;
}

KernelQuery KernelFinder::attention(const char *kind, bool tabulated) const {
  KernelQuery query = any(kind);
  if (!tabulated) query.branches = problem_.branches;
  query.head_dim = std::max(problem_.shape.head_dim, problem_.shape.value_dim);
  return query;
}

const Kernel *KernelFinder::found(KernelQuery query) {
  const Kernel *kernel = look(query);
  if (!kernel && !missing_.kind) missing_ = query;
  return kernel;
}

void KernelFinder::find_decode(const KernelQuery &decode, CommonKernels &out) const {
  KernelQuery query = decode;
  out.attention = look(query);
  if (out.attention) find_merge(out);
}

void KernelFinder::find_merge(CommonKernels &out) const {
  KernelQuery merge = any("merge");
  merge.head_dim = out.attention->info->head_dim;
  merge.exact_head_dim = true;
  out.merge = look(merge);
  out.decode = out.merge != nullptr;
}

bool KernelFinder::find_weights(CommonKernels &out) {
  if (args_.need_weights == Weights::none) return true;
  KernelQuery weights = any("weights");
  if (!out.tabulated) weights.branches = problem_.branches;
  return (out.weights = found(weights)) != nullptr;
}

bool KernelFinder::find_offsets(CommonKernels &out) {
  for (int i = 0; out.tabulated && i < problem_.branches.size; ++i) {
    KernelQuery offsets = any("offsets");
    offsets.type = DType::f32;
    offsets.branches.add(problem_.branches.names[i]);
    out.offsets[i] = found(offsets);
    // A table of one branch holds nothing but that branch.
    if (!out.offsets[i] || out.offsets[i]->find("unavailable") >= 0 ||
        std::strcmp(out.offsets[i]->info->branches, problem_.branches.names[i]) != 0) {
      return false;
    }
  }
  return true;
}

void take_results(const AttendArgs &args, const AttendProblem &problem, bool decode, ResultPlan &plan,
                  Workspace &workspace) {
  const AttendShape &shape = problem.shape;
  if (decode) {
    const int64_t rows =
        workspace_product({shape.batch, shape.kv_heads, plan.splits, shape.queries, plan.row_heads});
    plan.partial_lse = workspace.take<float>(rows);
    plan.partial_out = workspace.take<float>(workspace_product({rows, shape.value_dim}));
  }
  if (args.lse.empty()) {
    plan.lse = workspace.take<float>(workspace_product({shape.batch, shape.query_heads, shape.queries}));
  }
}

ResultBuffers result_buffers(const AttendArgs &args, const AttendShape &shape, bool decode,
                             const ResultPlan &plan) {
  const int64_t B = shape.batch, Hq = shape.query_heads, Hkv = shape.kv_heads, Tq = shape.queries;
  ResultBuffers all;
  all.out = kernel_buffer(args.out);
  all.lse = KernelBuffer(plan.lse, DType::f32).dim(Tq, 1).dim(Hq, Tq).dim(B, Hq * Tq);
  if (!args.lse.empty()) all.lse = kernel_buffer(args.lse);
  if (decode) {
    const int64_t rows = Tq * plan.row_heads, Dv = shape.value_dim, S = plan.splits;
    all.partial_out = KernelBuffer(plan.partial_out, DType::f32).dim(Dv, 1).dim(rows, Dv).dim(S, Dv * rows);
    all.partial_out.dim(Hkv, Dv * rows * S).dim(B, Dv * rows * S * Hkv);
    all.partial_lse = KernelBuffer(plan.partial_lse, DType::f32).dim(rows, 1).dim(S, rows);
    all.partial_lse.dim(Hkv, rows * S).dim(B, rows * S * Hkv);
  }
  if (args.need_weights == Weights::heads) all.weights = kernel_buffer(args.weights);
  if (args.need_weights == Weights::mean) {
    const KernelBuffer mean = kernel_buffer(args.weights);
    all.weights =
        KernelBuffer(mean.data, mean.type).dim(mean.extent[0], 1).dim(mean.extent[1], mean.stride[1]);
    all.weights.dim(1, 0).dim(mean.extent[2], mean.stride[2]);
  }
  return all;
}

KernelBuffer with_one_split(const KernelBuffer &out_or_lse, int split_dim) {
  KernelBuffer result(out_or_lse.data, out_or_lse.type);
  for (int d = 0; d < out_or_lse.dimensions; ++d) {
    if (d == split_dim) result.dim(1, 0);
    result.dim(out_or_lse.extent[d], out_or_lse.stride[d]);
  }
  return result;
}

void bind_neutral_branches(KernelCall &call, const BranchSet &asked, const float *zeros, int64_t num_zeros) {
  for (const NeutralBranch &neutral : kNeutralBranches) {
    if (asked.has(neutral.name)) {
      call.set(neutral.used, 1);
    } else {
      call.set_to_zero(neutral.name, zeros, num_zeros);
    }
  }
}

}  // namespace posattn
