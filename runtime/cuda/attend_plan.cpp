#include "runtime/cuda/attend_plan.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <initializer_list>

#include "runtime/cuda/targets.h"

namespace posattn::cuda {
namespace {

constexpr int64_t kMostTensorDecodeRows = 16;
// Keys are split until there are about so many blocks of threads, which are warps: ten for every
// multiprocessor of a large GPU. A fixed number, so that results do not depend on the GPU's size.
constexpr int64_t kDecodeBlocks = 1320;
// On tensor cores, where a warp has several loads under way all the time. With masks and branches it has to
// compute most of the time: then as many as fit.
constexpr int64_t kTensorDecodeBlocks = 528, kTensorTermsBlocks = 792;
constexpr int64_t kDecodeKeyBlock = 32;
constexpr int64_t kMostSplits = 1024;  // the merge kernel's
// Of the keys, for the sums of weights: as many blocks of threads as there are, in memory that is bounded.
constexpr int64_t kMostParts = 64;
constexpr int64_t kFewestPartBlocks = 8;
// Elements of masks that are converted at a time, and the fewest queries for which that is worth a call.
constexpr int64_t kMaskChunkElements = int64_t{1} << 24;
constexpr int64_t kFewestChunkQueries = 64;
// Blocks of 16 queries, of which a launch takes 65535.
constexpr int64_t kMostChunkQueries = int64_t{1} << 19;
constexpr int64_t kKeyTile = 32;  // kernels read key biases and offsets in these
constexpr int64_t kTensorPad =
    256;  // tiles of kernels for tensor cores read so far beyond both ends of a table

// Kernels with few terms take scores to be no larger than 1e9: beyond, rounding one is more than any
// exponent.
constexpr float kMostSpecialScale = 1e4f;
// Of those for plain scores, which compare products before they are scaled.
bool has_plain_scale(float scale) { return scale > 0 && scale <= kMostSpecialScale; }

class Finder : public KernelFinder {
 public:
  Finder(const AttendArgs &args, const AttendProblem &problem, const TargetList &targets,
         KernelQuery &missing)
      : KernelFinder(args, problem, missing), targets_(targets) {}

  bool find(bool tabulated, const Alignment &alignment, Kernels &out) {
    out = Kernels();
    out.tabulated = tabulated;
    KernelQuery query = attention("decode", tabulated);
    const int64_t rows = checked_product(problem_.shape.queries, problem_.group, "query");
    if (fills_without_splits()) out.attention = look_for_tensor_cores(query, tabulated, alignment);
    if (!out.attention && alignment.words && rows <= kMostTensorDecodeRows) {
      out.attention = look_for_tensor_decode(query, tabulated, rows, alignment);
      if (out.attention) find_merge(out);
      out.tensor = out.decode;
      out.plain = out.decode && std::strcmp(out.attention->info->kind, "decode_plain") == 0;
      if (!out.decode && rows == 1) {
        query.kind = "decode_row";
        find_decode(query, out);
        query.kind = "decode";
      }
      if (!out.decode && rows <= kMostDecodeRows) find_decode(query, out);
    }
    if (!out.decode) {
      if (!out.attention) out.attention = look_for_tensor_cores(query, tabulated, alignment);
      out.tensor = out.attention != nullptr;
      query.kind = "prefill";
      if (!out.tensor && !(out.attention = found(query))) return false;
      // Those of float32 look at nothing behind a length, and take no other calls that hide keys.
      const bool clears = out.tensor && problem_.hides_keys && problem_.type != DType::f32;
      if (clears && !(out.clear_values = helper("clear_values"))) return false;
    }
    out.rotates_together = args_.rope && alignment.adjacent;
    if (args_.rope && (!(out.rotary = found(any("rotary"))) || !(out.rotation = helper("rotation"))))
      return false;
    if (!(out.positions = helper("positions")) || !(out.key_mask = helper("key_mask")) ||
        !(out.float_mask = helper("float_mask")) || !(out.keep_mask = helper("keep_mask"))) {
      return false;
    }
    return find_weights(out) && find_offsets(out);
  }

 private:
  // Of the best target that has one, but for attention on tensor cores. Those targets have little else, so
  // all else comes from the other one, even where one of them is forced.
  const Kernel *look(KernelQuery &query) const override {
    const bool merges = std::strcmp(query.kind, "merge") == 0;
    for (int i = 0; i < targets_.size; ++i) {
      query.target = targets_.targets[i];
      if (is_tensor(query.target) && !merges) continue;
      if (const Kernel *kernel = find_kernel(query)) return kernel;
    }
    if (targets_.size == 0 || !is_tensor(targets_.targets[0])) return nullptr;
    query.target = find_target("simt");
    return find_kernel(query);
  }
  static bool is_tensor(int target) { return std::strcmp(target_name(target), "simt") != 0; }

  // Short sequences in large batches are enough blocks of threads as they are, and share no keys: a tile of
  // prefill does each in one kernel, without partial results (512 x 6 heads of 15 tokens, a layer in bfloat16
  // on an H100: 120 us; with decoding's two kernels 525 us).
  bool fills_without_splits() const {
    const AttendShape &shape = problem_.shape;
    return shape.queries > 1 && problem_.group == 1 && shape.batch * shape.kv_heads >= kTensorDecodeBlocks;
  }

  bool masked() const {
    return !args_.add_mask.empty() || !args_.keep_mask.empty() || !args_.block_mask.empty() ||
           has_key_bias(args_) || args_.softcap != 0;
  }

  // Lengths are fine: it looks at nothing behind them. Keys that a mask of keys hides may be anything, which
  // CUDA cores leave out. With masks or branches these are faster for a single row, too (16384 keys, 32 heads
  // of D 128, ALiBi on an H100: 111 against 134 us, and 155 against 57 with 64 heads on 8 key heads).
  const Kernel *look_for_tensor_decode(KernelQuery query, bool tabulated, int64_t rows,
                                       const Alignment &alignment) const {
    if (!alignment.tiles || tabulated || has_key_bias(args_)) return nullptr;
    const bool plain = !masked() && args_.dense_bias.empty() && query.branches.size == 0;
    const char *special = plain && has_plain_scale(problem_.scale) ? "decode_plain" : nullptr;
    return look_for_tensor({special, rows > 1 ? "decode" : nullptr}, query, alignment);
  }

  // The kernel with the fewest terms compiled in that does what is asked for.
  const Kernel *look_for_tensor_cores(KernelQuery query, bool tabulated, const Alignment &alignment) const {
    const bool hides_keys = problem_.type == DType::f32 && has_key_bias(args_);
    if (!alignment.tiles || hides_keys) return nullptr;
    const bool dense = !args_.dense_bias.empty(), branches = query.branches.size > 0;
    const char *special = nullptr, *in_tiles = nullptr;
    if (!masked() && !branches) {
      if (!dense && !tabulated && has_plain_scale(problem_.scale)) special = "prefill_plain";
      if (!dense && tabulated && std::abs(problem_.scale) <= kMostSpecialScale) special = "prefill_offsets";
      if (dense && !tabulated) special = "prefill_dense";
      // Weights' kernel reads the bias in float32.
      const bool alone = args_.need_weights == Weights::none;
      if (dense && !tabulated && alignment.dense && alone) in_tiles = "prefill_dense_16";
    }
    return look_for_tensor({in_tiles, special, "prefill"}, query, alignment);
  }

  // Of the best target that has one of these kinds, the first of them. Kinds may be null.
  const Kernel *look_for_tensor(std::initializer_list<const char *> kinds, KernelQuery &query,
                                const Alignment &alignment) const {
    for (int i = 0; i < targets_.size; ++i) {
      query.target = targets_.targets[i];
      if (!is_tensor(query.target)) continue;
      for (const char *kind : kinds) {
        query.kind = kind;
        const Kernel *kernel = kind ? find_kernel(query) : nullptr;
        if (kernel && (alignment.maps || kernel->find("q_map") < 0)) return kernel;
      }
    }
    return nullptr;
  }
  const Kernel *helper(const char *kind) {
    KernelQuery query = any(kind);
    query.type = DType::f32;
    return found(query);
  }

  const TargetList &targets_;
};

// Whether a kernel has branches that the call does not ask for, or that are tabulated.
bool has_unused_branches(const Kernels &kernels, const AttendProblem &problem) {
  for (const Kernel *kernel : {kernels.attention, kernels.weights}) {
    if (!kernel || kernel->branches == 0) continue;
    const int used = kernels.tabulated ? 0 : problem.branches.size;
    if (__builtin_popcountll(kernel->branches) != used) return true;
  }
  return false;
}

Mask float_mask(const TensorView &view) {
  Mask mask;
  if (view.empty()) return mask;
  mask.given = true;
  mask.view = mask_with_four_dims(view);
  for (int d = 0; d < 4; ++d) mask.size[d] = mask.view.size(d);
  const bool contiguous_keys = mask.size[3] == 1 || mask.view.stride(3) == 1;
  mask.convert = mask.view.dtype() != DType::f32 || !contiguous_keys;
  return mask;
}

Mask keep_mask(const TensorView &keep, const TensorView &block) {
  Mask mask;
  for (const TensorView *view : {&keep, &block}) {
    if (view->empty()) continue;
    mask.given = true;
    TensorView &here = view == &keep ? mask.view : mask.block;
    here = mask_with_four_dims(*view);
    for (int d = 0; d < 4; ++d) mask.size[d] = std::max(mask.size[d], here.size(d));
    mask.convert |= here.size(3) > 1 && here.stride(3) != 1;
  }
  mask.convert |= !keep.empty() && !block.empty();
  return mask;
}

void plan_masks(const AttendArgs &args, const AttendShape &shape, Plan &plan, Workspace &workspace) {
  plan.keep = keep_mask(args.keep_mask, args.block_mask);
  plan.add = float_mask(args.add_mask);
  plan.dense = float_mask(args.dense_bias);
  if (plan.kernels.attention->find("dense_map") >= 0) plan.dense.convert = false;
  Mask *const masks[] = {&plan.keep, &plan.add, &plan.dense};
  int64_t per_query = 0;
  for (const Mask *mask : masks) {
    if (mask->convert && mask->size[2] > 1) per_query = std::max(per_query, mask->elements(1));
  }
  plan.chunk = std::min(shape.queries, kMostChunkQueries);
  if (per_query > 0) {
    plan.chunk = std::min(plan.chunk, std::max(kFewestChunkQueries, kMaskChunkElements / per_query));
  }
  for (Mask *mask : masks) {
    if (!mask->convert) continue;
    const int64_t rows = mask->size[2] == 1 ? 1 : plan.chunk;
    const int64_t bytes = mask == &plan.keep ? 1 : int64_t{sizeof(float)};
    mask->copy =
        workspace.take_bytes(workspace_product({mask->size[0], mask->size[1], rows, mask->size[3], bytes}));
  }
}

}  // namespace

bool find_kernels(const AttendArgs &args, const AttendProblem &problem, int capability,
                  const Alignment &aligned, Kernels &kernels, KernelQuery &missing) {
  missing = KernelQuery();
  const TargetList targets = usable_cuda_targets(capability);
  Finder finder(args, problem, targets, missing);
  const bool branches = problem.branches.size > 0;
  // Positions on the GPU are not looked at, so only those that are not given are known to be consecutive. A
  // softcap comes between a product and its bias.
  const bool can_tabulate = branches && default_positions(args) && args.softcap == 0;
  // A table pays where many queries share it.
  const bool prefer_table = can_tabulate && problem.shape.queries > kMostDecodeRows;
  return finder.find(prefer_table, aligned, kernels) ||
         (can_tabulate && finder.find(!prefer_table, aligned, kernels)) ||
         (prefer_table && finder.find(false, aligned, kernels));
}

Plan make_plan(const AttendArgs &args, const AttendProblem &problem, const Kernels &kernels,
               const BranchInputs &inputs, Workspace &workspace) {
  const AttendShape &shape = problem.shape;
  const int64_t B = shape.batch, Hq = shape.query_heads, Hkv = shape.kv_heads;
  Plan plan{};
  plan.kernels = kernels;
  plan.row_heads = kernels.decode ? problem.group : 1;
  const int64_t block = kernels.attention->estimate("split_blocks", 0, kDecodeKeyBlock);
  const int64_t blocks = ceil_div(shape.keys, block);
  const int64_t most_blocks = !kernels.tensor ? kDecodeBlocks
                              : kernels.plain ? kTensorDecodeBlocks
                                              : kTensorTermsBlocks;
  const int64_t wanted =
      kernels.decode ? std::clamp<int64_t>(most_blocks / (B * Hkv), 1, std::min(blocks, kMostSplits)) : 1;
  plan.split_blocks = ceil_div(blocks, wanted);
  plan.splits = ceil_div(blocks, plan.split_blocks);

  plan.needs_zeros = has_unused_branches(kernels, problem);
  plan.num_zeros = std::max<int64_t>(Hq, 64);
  plan.zeros = workspace.take<float>(plan.num_zeros);
  plan.key_stride = ceil_div(shape.keys, kKeyTile) * kKeyTile;
  if (has_key_bias(args)) {
    plan.key_masks_per_batch = varies_by_batch(args.key_keep_mask) || varies_by_batch(args.key_block_mask) ||
                               varies_by_batch(args.key_add_mask);
    const int64_t count = workspace_product({plan.key_stride, plan.key_masks_per_batch ? B : 1});
    plan.key_bias = workspace.take<float>(count);
    plan.visible = workspace.take<uint8_t>(count);
  }
  plan_masks(args, shape, plan, workspace);

  const bool q_varies = varies_by_batch(args.q_positions) || varies_by_batch(args.q_position_mask);
  const bool k_varies = varies_by_batch(args.k_positions) || varies_by_batch(args.k_position_mask);
  if (problem.branches.size > 0 && !default_positions(args)) {
    plan.q_position_batches = q_varies ? B : 1;
    plan.k_position_batches = k_varies ? B : 1;
    plan.q_positions = workspace.take<float>(workspace_product({2, shape.queries, plan.q_position_batches}));
    plan.k_positions = workspace.take<float>(workspace_product({2, shape.keys, plan.k_position_batches}));
  }
  for (int i = 0; i < inputs.size(); ++i) {
    const BranchInputs::Item &item = inputs[i];
    if (item.own)
      plan.own[i] = workspace.take_bytes(item.tensor.num_elements() * size_of(item.tensor.dtype()));
  }
  if (kernels.tabulated) {
    plan.num_offsets = shape.queries + shape.keys - 1;
    // Kernels read whole tiles of keys; those for tensor cores, of queries, too.
    plan.offsets_front = kernels.tensor ? kTensorPad : 0;
    plan.offsets_stride = plan.num_offsets + (kernels.tensor ? 2 * kTensorPad : kKeyTile);
    const int64_t count = workspace_product({plan.offsets_stride, Hq});
    plan.offsets = workspace.take<float>(count);
    if (problem.branches.size > 1) plan.other_offsets = workspace.take<float>(count);
    plan.no_offsets = workspace.take<float>(plan.offsets_stride);
  }
  if (args.rope) {
    const int64_t size = size_of(problem.type), d = shape.head_dim;
    const auto take = [&](int64_t heads, int64_t tokens, bool varies, Rotation &rotation, Rotated &rotated) {
      rotation.batches = varies ? B : 1;
      rotation.tables = workspace.take<float>(rotation_table_size(*args.rope, tokens, rotation.batches));
      rotated.data = workspace.take_bytes(workspace_product({B, heads, tokens, d, size}));
      rotated.batch_step = heads * tokens * d;
    };
    if (kernels.rotates_together) {
      take(Hq + Hkv, shape.keys, q_varies, plan.q_rotation, plan.q_rotated);
      plan.k_rotated = plan.q_rotated;
      plan.k_rotated.data = static_cast<char *>(plan.q_rotated.data) + Hq * shape.keys * d * size;
    } else {
      take(Hq, shape.queries, q_varies, plan.q_rotation, plan.q_rotated);
      take(Hkv, shape.keys, k_varies, plan.k_rotation, plan.k_rotated);
    }
  }
  if (kernels.clear_values) {
    constexpr int64_t kRowElements = 8;  // of 16 bytes
    plan.cleared_row = ceil_div(shape.value_dim, kRowElements) * kRowElements;
    plan.cleared = workspace.take_bytes(
        workspace_product({B, Hkv, shape.keys, plan.cleared_row, size_of(problem.type)}));
  }
  if (kernels.weights) {
    const int64_t rows = workspace_product({2, shape.queries, Hq, B});
    const int64_t key_blocks = ceil_div(shape.keys, kernels.weights->estimate("split_blocks", 0, 1));
    plan.part_blocks = std::max(kFewestPartBlocks, ceil_div(key_blocks, kMostParts));
    plan.key_parts = ceil_div(key_blocks, plan.part_blocks);
    plan.part_states = workspace.take<float>(workspace_product({rows, plan.key_parts}));
    plan.row_states = workspace.take<float>(rows);
  }
  take_results(args, problem, kernels.decode, plan, workspace);
  // The merge kernel reads whole heads of its own size.
  if (kernels.decode) workspace.take<float>(kernels.merge->info->head_dim);
  return plan;
}

}  // namespace posattn::cuda
