#include "runtime/attend_plan.h"

#include <algorithm>
#include <cstring>

#include "runtime/cpu.h"
#include "runtime/error.h"
#include "runtime/packed_buffers.h"

namespace posattn {
namespace {

// Up to so many rows of a key head the decode kernel is used.
constexpr int64_t kMostDecodeRows = 8;
// Keys are split until there are about so many tasks: a fixed number, so that results do not depend on
// threads.
constexpr int64_t kDecodeTasks = 64;
constexpr int64_t kDecodeKeyBlock = 256;
// Elements of masks that are converted at a time, and the fewest queries for which that is worth a call.
constexpr int64_t kMaskChunkElements = int64_t{1} << 22;
constexpr int64_t kFewestChunkQueries = 64;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t product(std::initializer_list<int64_t> factors) {
  int64_t result = 1;
  for (int64_t factor : factors) result = checked_product(result, factor, "workspace");
  return result;
}

bool is_available(const Kernel &offsets) { return offsets.find("unavailable") < 0; }

// Finds kernels of one target and remembers the first that is missing.
class Finder {
 public:
  Finder(const AttendArgs &args, const AttendProblem &problem, int target, KernelQuery &missing)
      : args_(args), problem_(problem), target_(target), missing_(missing) {}

  bool find(bool tabulated, AttendKernels &out) {
    out = AttendKernels();
    out.target = target_;
    out.tabulated = tabulated && problem_.branches.size > 0;
    // Kernels add a table to the product as they store it: too early for a softcap.
    if (out.tabulated && args_.softcap > 0) return false;
    const BranchSet none, &branches = out.tabulated ? none : problem_.branches;
    const AttendShape &shape = problem_.shape;

    const bool int8 = args_.cache && args_.cache->format() == CacheFormat::int8;
    KernelQuery query = any(int8 ? "decode_i8" : "decode");
    query.branches = branches;
    query.head_dim = std::max(shape.head_dim, shape.value_dim);
    if (args_.cache) {
      query.head_dim = args_.cache->layout().head_dim;
      query.exact_head_dim = true;
    }
    if (shape.queries == 1 || shape.queries * problem_.group <= kMostDecodeRows) {
      out.attention = find_kernel(query);
      if (out.attention) {
        KernelQuery merge = any("merge");
        merge.head_dim = out.attention->info->head_dim;
        merge.exact_head_dim = true;
        out.merge = find_kernel(merge);
      }
      out.decode = out.attention && out.merge;
    }
    if (!out.decode) {
      query.kind = int8 ? "prefill_i8" : "prefill";
      out.attention = found(query);
    }
    if (!out.attention) return false;

    if (!args_.cache) {
      KernelQuery pack = any("pack_keys");
      pack.head_dim = out.attention->info->head_dim;
      pack.exact_head_dim = true;
      out.pack_keys = found(pack);
      pack.kind = "pack_values";
      out.pack_values = found(pack);
      if (!out.pack_keys || !out.pack_values) return false;
    }
    if (args_.rope && !(out.rotary = found(any("rotary")))) return false;
    if (args_.need_weights != Weights::none) {
      KernelQuery weights = any("weights");
      weights.branches = branches;
      if (!(out.weights = found(weights))) return false;
    }
    for (int i = 0; out.tabulated && i < problem_.branches.size; ++i) {
      KernelQuery offsets = any("offsets");
      offsets.type = DType::f32;
      offsets.branches.add(problem_.branches.names[i]);
      out.offsets[i] = found(offsets);
      // A table of one branch holds nothing but that branch.
      if (!out.offsets[i] || !is_available(*out.offsets[i]) ||
          std::strcmp(out.offsets[i]->info->branches, problem_.branches.names[i]) != 0) {
        return false;
      }
    }
    return true;
  }

 private:
  KernelQuery any(const char *kind) const {
    KernelQuery query;
    query.kind = kind;
    query.type = problem_.type;
    query.target = target_;
    query.queries = problem_.shape.queries;
    query.keys = problem_.shape.keys;
    return query;
  }
  const Kernel *found(const KernelQuery &query) {
    const Kernel *kernel = find_kernel(query);
    if (!kernel && !missing_.kind) missing_ = query;
    return kernel;
  }

  const AttendArgs &args_;
  const AttendProblem &problem_;
  int target_;
  KernelQuery &missing_;
};

void plan_splits(const AttendProblem &problem, AttendPlan &plan) {
  const AttendShape &shape = problem.shape;
  plan.row_heads = plan.kernels.decode ? problem.group : 1;
  const int64_t block = plan.kernels.attention->estimate("split_blocks", 0, kDecodeKeyBlock);
  const int64_t blocks = ceil_div(shape.keys, block);
  const int64_t wanted =
      plan.kernels.decode ? std::max<int64_t>(1, kDecodeTasks / (shape.batch * shape.kv_heads)) : 1;
  plan.split_blocks = ceil_div(blocks, std::min(wanted, blocks));
  plan.splits = ceil_div(blocks, plan.split_blocks);
  // Without a split, whatever the kernel's block is.
  if (plan.splits == 1) plan.split_blocks = int64_t{1} << 24;
}

void plan_masks(const AttendArgs &args, const AttendShape &shape, AttendPlan &plan, Workspace &workspace) {
  const bool both = !args.keep_mask.empty() && !args.block_mask.empty();
  plan.keep = both ? AttendMask::combined(args.keep_mask, args.block_mask, shape)
                   : AttendMask(args.keep_mask.empty() ? args.block_mask : args.keep_mask, shape);
  plan.add = AttendMask(args.add_mask, shape);
  plan.dense = AttendMask(args.dense_bias, shape);
  int64_t per_query = 0;
  for (const AttendMask *mask : {&plan.keep, &plan.add, &plan.dense}) {
    if (mask->needs_copy()) per_query = std::max(per_query, mask->copy_elements_per_query());
  }
  plan.chunk = shape.queries;
  if (per_query > 0) {
    plan.chunk = std::min(shape.queries, std::max(kFewestChunkQueries, kMaskChunkElements / per_query));
  }
  const auto copy_of = [&](const AttendMask &mask) -> void * {
    if (!mask.needs_copy()) return nullptr;
    return workspace.take_bytes(product({mask.copy_elements(plan.chunk), size_of(mask.copy_type())}));
  };
  plan.keep_copy = copy_of(plan.keep);
  plan.add_copy = copy_of(plan.add);
  plan.dense_copy = copy_of(plan.dense);
}

bool varies_by_batch(const TensorView &view) { return view.rank() == 2 && view.size(0) > 1; }

}  // namespace

bool find_attend_kernels(const AttendArgs &args, const AttendProblem &problem, bool tabulated,
                         AttendKernels &kernels, KernelQuery &missing) {
  missing = KernelQuery();
  TargetList targets = usable_targets();
  if (args.cache) {
    int *end = targets.targets + targets.size;
    if (forced_target() >= 0 && std::find(targets.targets, end, args.cache->target()) == end) {
      fail("cache: it was made for target ", cpu_target(args.cache->target()).name, ", and target ",
           cpu_target(targets.targets[0]).name, " is forced");
    }
    targets.targets[0] = args.cache->target();
    targets.size = 1;
  }
  if (targets.size == 0) fail("attend: no kernel of this program runs on this machine");
  for (int i = 0; i < targets.size; ++i) {
    if (Finder(args, problem, targets.targets[i], missing).find(tabulated, kernels)) return true;
  }
  return false;
}

AttendPlan make_attend_plan(const AttendArgs &args, const AttendProblem &problem,
                            const AttendKernels &kernels, Workspace &workspace) {
  const AttendShape &shape = problem.shape;
  const int64_t B = shape.batch, Hq = shape.query_heads, Hkv = shape.kv_heads;
  AttendPlan plan{};
  plan.kernels = kernels;
  plan.layout = args.cache ? args.cache->layout()
                           : packed_layout(*kernels.pack_keys, cpu_target(kernels.target).key_lanes);
  plan.blocks = ceil_div(shape.keys, plan.layout.lanes);
  plan.padded_keys = plan.blocks * plan.layout.lanes;
  plan_splits(problem, plan);

  plan.rows_per_batch = !args.key_lengths.empty();
  const int64_t row_count = product({shape.queries, plan.rows_per_batch ? B : 1});
  plan.row_begin = workspace.take<int32_t>(row_count);
  plan.row_end = workspace.take<int32_t>(row_count);
  if (problem.hides_keys) {
    plan.key_masks_per_batch = !args.key_lengths.empty() || varies_by_batch(args.key_keep_mask) ||
                               varies_by_batch(args.key_block_mask) || varies_by_batch(args.key_add_mask);
    const int64_t count = product({plan.padded_keys, plan.key_masks_per_batch ? B : 1});
    plan.visible = workspace.take<uint8_t>(count);
    if (has_key_bias(args)) plan.key_bias = workspace.take<float>(count);
  }
  plan_masks(args, shape, plan, workspace);

  plan.num_zeros = std::max<int64_t>(Hq, 64);
  plan.zeros = workspace.take<float>(plan.num_zeros);
  plan.positions_per_batch = varies_by_batch(args.q_positions) || varies_by_batch(args.k_positions) ||
                             varies_by_batch(args.q_position_mask) || varies_by_batch(args.k_position_mask);
  if (kernels.attention->branches != 0 || (kernels.weights && kernels.weights->branches != 0)) {
    const int64_t batches = plan.positions_per_batch ? B : 1;
    const auto take = [&](int64_t tokens) {
      float *high = workspace.take<float>(product({tokens, batches}));
      return PositionArrays{high, workspace.take<float>(product({tokens, batches}))};
    };
    plan.q_positions = take(shape.queries);
    plan.k_positions = take(shape.keys);
  }
  if (kernels.tabulated) {
    plan.num_offsets = shape.queries + shape.keys - 1;
    plan.offsets_stride = plan.num_offsets + plan.layout.lanes;  // kernels read a whole tile of keys
    const int64_t count = product({plan.offsets_stride, Hq});
    plan.offsets = workspace.take<float>(count);
    if (problem.branches.size > 1) plan.other_offsets = workspace.take<float>(count);
    plan.no_offsets = workspace.take<float>(plan.offsets_stride);
  }

  const int64_t size = size_of(problem.type);
  if (args.rope) {
    const int64_t pairs = args.rope->inv_freq.size(0);
    const bool q_per_batch = varies_by_batch(args.q_positions) || varies_by_batch(args.q_position_mask);
    plan.q_rotation = RotationTables::take(workspace, pairs, shape.queries, q_per_batch ? B : 1);
    plan.q_rotated = workspace.take_bytes(product({B, Hq, shape.queries, shape.head_dim, size}));
    if (!args.cache) {
      const bool k_per_batch = varies_by_batch(args.k_positions) || varies_by_batch(args.k_position_mask);
      plan.k_rotation = RotationTables::take(workspace, pairs, shape.keys, k_per_batch ? B : 1);
      plan.k_rotated = workspace.take_bytes(product({B, Hkv, shape.keys, shape.head_dim, size}));
    }
  }
  plan.pack = args.cache == nullptr;
  plan.clear_hidden = args.cache && problem.hides_keys && args.cache->may_hold_nonfinite();
  plan.values_in_place = plan.pack && plan.layout.pairs == 1 && !problem.hides_keys &&
                         shape.value_dim == plan.layout.head_dim &&
                         args.value.stride(2) == plan.layout.head_dim && plan.padded_keys == shape.keys;
  // Packed keys and values are read while they are in a core's cache, where many short sequences would
  // otherwise go through memory: B 512, T 15, 6 heads of 128 channels. Masks that are converted are so for
  // all batches at once.
  plan.batch_group = B;
  const int64_t batch_bytes = product({2, Hkv, plan.padded_keys, plan.layout.head_dim, size});
  if (plan.pack && !plan.keep.given() && !plan.add.given() && !plan.dense.given()) {
    constexpr int64_t kGroupBytes = 1 << 20;
    plan.batch_group = std::clamp<int64_t>(kGroupBytes / std::max<int64_t>(batch_bytes, 1), 1, B);
  }
  if (plan.clear_hidden && args.cache->format() == CacheFormat::int8) {
    // Zero scales make zeros of hidden rows.
    plan.key_scales = workspace.take<float>(product({B, Hkv, plan.padded_keys}));
    plan.value_scales = workspace.take<float>(product({B, Hkv, plan.padded_keys}));
  } else if (plan.pack || plan.clear_hidden) {
    const int64_t bytes = product({plan.batch_group, Hkv, plan.padded_keys, plan.layout.head_dim, size});
    plan.keys = workspace.take_bytes(bytes);
    if (!plan.values_in_place) plan.values = workspace.take_bytes(bytes);
  }
  if (kernels.decode) {
    const int64_t rows = product({B, Hkv, plan.splits, shape.queries, plan.row_heads});
    plan.partial_lse = workspace.take<float>(rows);
    plan.partial_out = workspace.take<float>(product({rows, shape.value_dim}));
  }
  if (args.lse.empty()) plan.lse = workspace.take<float>(product({B, Hq, shape.queries}));
  return plan;
}

}  // namespace posattn
