#include "runtime/attend_plan.h"

#include <algorithm>

#include "runtime/cpu.h"
#include "runtime/error.h"
#include "runtime/packed_buffers.h"

namespace posattn {
namespace {

// Keys are split until there are about so many tasks: a fixed number, so that results do not depend on
// threads.
constexpr int64_t kDecodeTasks = 64;
constexpr int64_t kDecodeKeyBlock = 256;
// Elements of masks that are converted at a time, and the fewest queries for which that is worth a call.
constexpr int64_t kMaskChunkElements = int64_t{1} << 22;
constexpr int64_t kFewestChunkQueries = 64;

// Finds kernels of one target.
class Finder : public KernelFinder {
 public:
  Finder(const AttendArgs &args, const AttendProblem &problem, int target, KernelQuery &missing)
      : KernelFinder(args, problem, missing), target_(target) {}

  bool find(bool tabulated, AttendKernels &out) {
    out = AttendKernels();
    out.target = target_;
    out.tabulated = tabulated && problem_.branches.size > 0;
    // Kernels add a table to the product as they store it: too early for a softcap.
    if (out.tabulated && args_.softcap > 0) return false;
    const AttendShape &shape = problem_.shape;

    const bool int8 = args_.cache && args_.cache->format() == CacheFormat::int8;
    KernelQuery query = attention(int8 ? "decode_i8" : "decode", out.tabulated);
    if (args_.cache) {
      query.head_dim = args_.cache->layout().head_dim;
      query.exact_head_dim = true;
    }
    if (shape.queries == 1 || shape.queries * problem_.group <= kMostDecodeRows) find_decode(query, out);
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
    return find_weights(out) && find_offsets(out);
  }

 private:
  const Kernel *look(KernelQuery &query) const override {
    query.target = target_;
    return find_kernel(query);
  }

  int target_;
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
    return workspace.take_bytes(
        workspace_product({mask.copy_elements(plan.chunk), size_of(mask.copy_type())}));
  };
  plan.keep_copy = copy_of(plan.keep);
  plan.add_copy = copy_of(plan.add);
  plan.dense_copy = copy_of(plan.dense);
}

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
  const int64_t row_count = workspace_product({shape.queries, plan.rows_per_batch ? B : 1});
  plan.row_begin = workspace.take<int32_t>(row_count);
  plan.row_end = workspace.take<int32_t>(row_count);
  if (problem.hides_keys) {
    plan.key_masks_per_batch = !args.key_lengths.empty() || varies_by_batch(args.key_keep_mask) ||
                               varies_by_batch(args.key_block_mask) || varies_by_batch(args.key_add_mask);
    const int64_t count = workspace_product({plan.padded_keys, plan.key_masks_per_batch ? B : 1});
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
      float *high = workspace.take<float>(workspace_product({tokens, batches}));
      return PositionArrays{high, workspace.take<float>(workspace_product({tokens, batches}))};
    };
    plan.q_positions = take(shape.queries);
    plan.k_positions = take(shape.keys);
  }
  if (kernels.tabulated) {
    plan.num_offsets = shape.queries + shape.keys - 1;
    plan.offsets_stride = plan.num_offsets + plan.layout.lanes;  // kernels read a whole tile of keys
    const int64_t count = workspace_product({plan.offsets_stride, Hq});
    plan.offsets = workspace.take<float>(count);
    if (problem.branches.size > 1) plan.other_offsets = workspace.take<float>(count);
    plan.no_offsets = workspace.take<float>(plan.offsets_stride);
  }

  const int64_t size = size_of(problem.type);
  if (args.rope) {
    const int64_t pairs = args.rope->inv_freq.size(0);
    const bool q_per_batch = varies_by_batch(args.q_positions) || varies_by_batch(args.q_position_mask);
    plan.q_rotation = RotationTables::take(workspace, pairs, shape.queries, q_per_batch ? B : 1);
    plan.q_rotated = workspace.take_bytes(workspace_product({B, Hq, shape.queries, shape.head_dim, size}));
    if (!args.cache) {
      const bool k_per_batch = varies_by_batch(args.k_positions) || varies_by_batch(args.k_position_mask);
      plan.k_rotation = RotationTables::take(workspace, pairs, shape.keys, k_per_batch ? B : 1);
      plan.k_rotated = workspace.take_bytes(workspace_product({B, Hkv, shape.keys, shape.head_dim, size}));
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
  const int64_t batch_bytes = workspace_product({2, Hkv, plan.padded_keys, plan.layout.head_dim, size});
  if (plan.pack && !plan.keep.given() && !plan.add.given() && !plan.dense.given()) {
    constexpr int64_t kGroupBytes = 1 << 20;
    plan.batch_group = std::clamp<int64_t>(kGroupBytes / std::max<int64_t>(batch_bytes, 1), 1, B);
  }
  if (plan.clear_hidden && args.cache->format() == CacheFormat::int8) {
    // Zero scales make zeros of hidden rows.
    plan.key_scales = workspace.take<float>(workspace_product({B, Hkv, plan.padded_keys}));
    plan.value_scales = workspace.take<float>(workspace_product({B, Hkv, plan.padded_keys}));
  } else if (plan.pack || plan.clear_hidden) {
    const int64_t bytes =
        workspace_product({plan.batch_group, Hkv, plan.padded_keys, plan.layout.head_dim, size});
    plan.keys = workspace.take_bytes(bytes);
    if (!plan.values_in_place) plan.values = workspace.take_bytes(bytes);
  }
  take_results(args, problem, kernels.decode, plan, workspace);
  return plan;
}

}  // namespace posattn
