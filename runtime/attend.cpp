#include "runtime/attend.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "runtime/attend_plan.h"
#include "runtime/error.h"
#include "runtime/packed_buffers.h"

namespace posattn {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// Inputs that a call does not use. Their tensors have one element.
alignas(64) constexpr float kUnused[64] = {};
KernelBuffer unused(DType type, int dimensions) {
  KernelBuffer buffer(kUnused, type);
  for (int d = 0; d < dimensions; ++d) buffer.dim(1, d == 0 ? 1 : 0);
  return buffer;
}

// Every tensor of one range of batches and queries. Dimensions that all batches or queries share have step 0.
struct Buffers : ResultBuffers {
  KernelBuffer q, keys, values, key_scales, value_scales, row_begin, row_end, key_bias, add, dense, keep;
  KernelBuffer q_positions, q_positions_low, k_positions, k_positions_low;
  int64_t first_query = 0;

  template <typename Visit>
  void for_each(const Visit &visit) {  // buffer, dimension of queries or -1, dimension of batches
    visit(q, 1, 3), visit(keys, -1, 4), visit(values, -1, 3), visit(row_begin, 0, 1), visit(row_end, 0, 1);
    visit(key_scales, -1, 2), visit(value_scales, -1, 2);
    visit(key_bias, -1, 1), visit(add, 1, 3), visit(dense, 1, 3), visit(keep, 1, 3);
    visit(q_positions, 0, 1), visit(q_positions_low, 0, 1), visit(k_positions, -1, 1),
        visit(k_positions_low, -1, 1), visit(out, 1, 3), visit(lse, 0, 2);
    visit(partial_out, -1, 4), visit(partial_lse, -1, 3), visit(weights, 1, 3);
  }
  Buffers part(int64_t b0, int64_t b1, int64_t q0, int64_t q1) const {
    Buffers result = *this;
    result.for_each([&](KernelBuffer &buffer, int query_dim, int batch_dim) {
      if (buffer.dimensions == 0 || buffer.data == kUnused) return;
      if (query_dim >= 0) buffer = slice(buffer, query_dim, q0, q1);
      buffer = slice(buffer, batch_dim, b0, b1);
    });
    result.first_query += q0;
    return result;
  }
  bool fit() {
    bool result = true;
    for_each([&](KernelBuffer &buffer, int, int) { result &= fits_kernel(buffer); });
    return result;
  }
};

class Attend {
 public:
  Attend(const AttendArgs &args, const AttendProblem &problem, const AttendPlan &plan, float first_offset,
         const TokenPositions &queries, const TokenPositions &keys)
      : args_(args),
        problem_(problem),
        shape_(problem.shape),
        plan_(plan),
        first_offset_(first_offset),
        queries_(queries),
        keys_(keys) {
    for (int i = 0; i < problem.branches.size; ++i) problem.by_name[i]->bind(inputs_);
  }

  void run() {
    fill_tables();
    const Buffers all = whole();
    const KernelBuffer k = rotate(all);
    if (plan_.key_scales) {
      copy_cleared_scales();
    } else if (plan_.clear_hidden) {
      copy_cleared();
    }
    for (int64_t b0 = 0; b0 < shape_.batch; b0 += plan_.batch_group) {
      const int64_t b1 = std::min(b0 + plan_.batch_group, shape_.batch);
      Buffers group = all.part(b0, b1, 0, shape_.queries);
      if (plan_.pack) pack(k, b0, b1, group);
      for (int64_t q0 = 0; q0 < shape_.queries; q0 += plan_.chunk) {
        const int64_t q1 = std::min(q0 + plan_.chunk, shape_.queries);
        Buffers chunk = group.part(0, b1 - b0, q0, q1);
        if (plan_.keep.given()) chunk.keep = mask_rows(plan_.keep, b0, b1, q0, q1, plan_.keep_copy);
        if (plan_.add.given()) chunk.add = mask_rows(plan_.add, b0, b1, q0, q1, plan_.add_copy);
        if (plan_.dense.given()) chunk.dense = mask_rows(plan_.dense, b0, b1, q0, q1, plan_.dense_copy);
        attend(chunk, b1 - b0, q1 - q0);
      }
    }
  }

 private:
  void fill_tables() {
    fill_row_ranges(args_, shape_, plan_.rows_per_batch ? shape_.batch : 1, plan_.row_begin, plan_.row_end);
    if (problem_.hides_keys) {
      fill_key_masks(args_, shape_, plan_.key_masks_per_batch ? shape_.batch : 1, plan_.padded_keys,
                     plan_.key_bias, plan_.visible);
    }
    std::fill_n(plan_.zeros, plan_.num_zeros, 0.0f);
    if (plan_.q_positions.high) fill_branch_positions();
    if (plan_.kernels.tabulated) tabulate();
  }

  void fill_branch_positions() {
    const int64_t batches = plan_.positions_per_batch ? shape_.batch : 1;
    if (problem_.branches.size > 0 && !plan_.kernels.tabulated) {
      fill_positions(queries_, batches, plan_.q_positions);
      fill_positions(keys_, batches, plan_.k_positions);
      return;
    }
    // The kernel has branches that this call does not want: no token has a position.
    constexpr float kNoPosition = std::numeric_limits<float>::infinity();
    std::fill_n(plan_.q_positions.high, shape_.queries * batches, kNoPosition);
    std::fill_n(plan_.k_positions.high, shape_.keys * batches, kNoPosition);
    std::fill_n(plan_.q_positions.low, shape_.queries * batches, 0.0f);
    std::fill_n(plan_.k_positions.low, shape_.keys * batches, 0.0f);
  }

  // The sum of all branches by offset t = key - query + (queries - 1), one branch after the other.
  void tabulate() {
    const int64_t rows = plan_.num_offsets, stride = plan_.offsets_stride;
    std::fill_n(plan_.no_offsets, stride, 0.0f);
    const auto table = [&](const float *data, int64_t step) {
      return KernelBuffer(data, DType::f32).dim(rows, 1).dim(shape_.query_heads, step);
    };
    KernelBuffer in = table(plan_.no_offsets, 0);
    for (int i = 0; i < problem_.branches.size; ++i) {
      // The last one writes to `offsets`.
      const bool last = (problem_.branches.size - 1 - i) % 2 == 0;
      const KernelBuffer out = table(last ? plan_.offsets : plan_.other_offsets, stride);
      KernelCall call(*plan_.kernels.offsets[i]);
      call.set("in", in).set("out", out);
      call.set("first_offset", first_offset_ - static_cast<float>(shape_.queries - 1));
      bind_branches(call);
      call.run();
      in = out;
    }
    for (int64_t h = 0; h < shape_.query_heads; ++h) {
      std::fill_n(plan_.offsets + h * stride + rows, plan_.layout.lanes, 0.0f);
    }
  }

  void bind_branches(KernelCall &call) const {
    for (int i = 0; i < inputs_.size(); ++i) {
      const BranchInputs::Item &item = inputs_[i];
      if (!item.tensor.empty()) {
        call.set(item.name, kernel_buffer(item.tensor));
      } else if (item.is_int) {
        call.set(item.name, item.i);
      } else {
        call.set(item.name, item.f);
      }
    }
    bind_neutral_branches(call, problem_.branches, plan_.zeros, plan_.num_zeros);
  }

  KernelBuffer of_tokens(const void *data, DType type, int64_t tokens, int64_t stride, bool per_batch) const {
    return KernelBuffer(data, type).dim(tokens, 1).dim(shape_.batch, per_batch ? stride : 0);
  }

  Buffers whole() const {
    const int64_t B = shape_.batch, Hq = shape_.query_heads, Hkv = shape_.kv_heads, Tq = shape_.queries;
    Buffers all;
    static_cast<ResultBuffers &>(all) = result_buffers(args_, shape_, plan_.kernels.decode, plan_);
    all.q = plan_.q_rotated ? dense(plan_.q_rotated, shape_.head_dim, Tq, Hq) : kernel_buffer(args_.query);
    const PackedLayout &layout = plan_.layout;
    const int64_t head_size = plan_.blocks * layout.tile_size();
    const bool int8 = args_.cache && args_.cache->format() == CacheFormat::int8;
    PackedMemory keys{plan_.keys,     int8 ? DType::boolean : problem_.type, plan_.blocks, Hkv, head_size, B,
                      Hkv * head_size};
    if (args_.cache && !plan_.keys) {
      const TensorView in_cache = args_.cache->packed_keys();  // a head's memory is for all of its capacity
      keys.data = in_cache.data();
      keys.head_stride = in_cache.stride(1), keys.batch_stride = in_cache.stride(0);
    }
    PackedMemory values = keys;
    values.data = args_.cache && !plan_.keys ? args_.cache->packed_values().data() : plan_.values;
    all.keys = packed_keys(layout, keys);
    all.values = packed_values(layout, values);
    if (plan_.values_in_place) all.values = kernel_buffer(args_.value);
    if (int8) {
      const auto scales = [&](const TensorView &in_cache, const float *cleared) {
        const int64_t padded = plan_.padded_keys;
        KernelBuffer buffer(cleared ? cleared : in_cache.data(), DType::f32);
        return buffer.dim(padded, 1)
            .dim(Hkv, cleared ? padded : in_cache.stride(1))
            .dim(B, cleared ? Hkv * padded : in_cache.stride(0));
      };
      all.key_scales = scales(args_.cache->key_scales(), plan_.key_scales);
      all.value_scales = scales(args_.cache->value_scales(), plan_.value_scales);
    }

    all.row_begin = of_tokens(plan_.row_begin, DType::i32, Tq, Tq, plan_.rows_per_batch);
    all.row_end = of_tokens(plan_.row_end, DType::i32, Tq, Tq, plan_.rows_per_batch);
    all.key_bias = unused(DType::f32, 2);
    if (plan_.key_bias) {
      all.key_bias = of_tokens(plan_.key_bias, DType::f32, plan_.padded_keys, plan_.padded_keys,
                               plan_.key_masks_per_batch);
    }
    all.add = all.dense = unused(DType::f32, 4);
    all.keep = unused(DType::boolean, 4);
    all.q_positions = all.k_positions = all.q_positions_low = all.k_positions_low = unused(DType::f32, 2);
    if (plan_.q_positions.high) {
      const auto positions = [&](float *data, int64_t tokens) {
        return of_tokens(data, DType::f32, tokens, tokens, plan_.positions_per_batch);
      };
      all.q_positions = positions(plan_.q_positions.high, Tq);
      all.q_positions_low = positions(plan_.q_positions.low, Tq);
      all.k_positions = positions(plan_.k_positions.high, shape_.keys);
      all.k_positions_low = positions(plan_.k_positions.low, shape_.keys);
    }
    return all;
  }

  KernelBuffer dense(const void *data, int64_t d, int64_t tokens, int64_t heads) const {
    KernelBuffer buffer(data, problem_.type);
    return buffer.dim(d, 1).dim(tokens, d).dim(heads, d * tokens).dim(shape_.batch, d * tokens * heads);
  }

  static KernelBuffer mask_rows(const AttendMask &mask, int64_t b0, int64_t b1, int64_t q0, int64_t q1,
                                void *copy) {
    return slice(mask.rows(q0, q1, copy), 3, b0, b1);
  }

  // Queries and keys by their positions; the keys to pack.
  KernelBuffer rotate(const Buffers &all) const {
    KernelBuffer k = args_.cache ? KernelBuffer() : kernel_buffer(args_.key);
    if (!args_.rope) return k;
    run_rotary(*plan_.kernels.rotary, *args_.rope, queries_, queries_.per_batch() ? shape_.batch : 1,
               plan_.q_rotation, kernel_buffer(args_.query), all.q);
    if (!plan_.pack) return k;
    const KernelBuffer rotated = dense(plan_.k_rotated, shape_.head_dim, shape_.keys, shape_.kv_heads);
    run_rotary(*plan_.kernels.rotary, *args_.rope, keys_, keys_.per_batch() ? shape_.batch : 1,
               plan_.k_rotation, k, rotated);
    return rotated;
  }

  // Batches [b0, b1) of keys and values, to the beginning of the packed memory, where `group` will read them.
  void pack(const KernelBuffer &k, int64_t b0, int64_t b1, Buffers &group) const {
    group.keys.data = plan_.keys;
    pack(*plan_.kernels.pack_keys, "k", slice(k, 3, b0, b1), "keys", group.keys, b0);
    if (plan_.values_in_place) return;
    group.values.data = plan_.values;
    pack(*plan_.kernels.pack_values, "v", slice(kernel_buffer(args_.value), 3, b0, b1), "values",
         group.values, b0);
  }

  void pack(const Kernel &kernel, ArgumentName from, const KernelBuffer &in, ArgumentName to,
            const KernelBuffer &out, int64_t first_batch) const {
    KernelBuffer visible = unused(DType::boolean, 2);
    if (plan_.visible) {
      visible = of_tokens(plan_.visible, DType::boolean, shape_.keys, shape_.keys, plan_.key_masks_per_batch);
    }
    const int64_t batches = out.extent[out.dimensions - 1];
    const int64_t step = fits_kernel(in) && fits_kernel(out) && fits_kernel(visible) ? batches : 1;
    for (int64_t b = 0; b < batches; b += step) {
      KernelCall call(kernel);
      call.set(from, slice(in, in.dimensions - 1, b, b + step));
      call.set(to, slice(out, out.dimensions - 1, b, b + step));
      call.set("has_visible", plan_.visible != nullptr);
      const int64_t v = first_batch + b;
      call.set("visible", plan_.visible ? slice(visible, 1, v, v + step) : visible).run();
    }
  }

  // A cache that may hold NaN: its rows once more, zero where a key is hidden.
  void copy_cleared() const {
    const TensorView keys = args_.cache->packed_keys(), values = args_.cache->packed_values();
    const size_t size = static_cast<size_t>(size_of(problem_.type));
    const PackedLayout &layout = plan_.layout;
    const size_t head_elements = static_cast<size_t>(plan_.padded_keys * layout.head_dim);
    for (int64_t b = 0; b < shape_.batch; ++b) {
      const uint8_t *visible = plan_.visible + (plan_.key_masks_per_batch ? b * shape_.keys : 0);
      for (int64_t h = 0; h < shape_.kv_heads; ++h) {
        const size_t at = static_cast<size_t>(b * shape_.kv_heads + h) * head_elements * size;
        char *k = static_cast<char *>(plan_.keys) + at, *v = static_cast<char *>(plan_.values) + at;
        const auto from = [&](const TensorView &view) {
          return view.as<char>() + static_cast<size_t>(b * view.stride(0) + h * view.stride(1)) * size;
        };
        std::memcpy(k, from(keys), head_elements * size);
        std::memcpy(v, from(values), head_elements * size);
        for (int64_t j = 0; j < shape_.keys; ++j) {
          if (visible[j]) continue;
          for (int64_t d = 0; d < layout.head_dim; ++d) {
            std::memset(k + static_cast<size_t>(layout.key_index(j, d)) * size, 0, size);
            std::memset(v + static_cast<size_t>(layout.value_index(j, d)) * size, 0, size);
          }
        }
      }
    }
  }

  // The same for a cache of 8-bit integers, which are finite themselves.
  void copy_cleared_scales() const {
    const auto copy_one = [&](const TensorView &from, float *to) {
      for (int64_t b = 0; b < shape_.batch; ++b) {
        const uint8_t *visible = plan_.visible + (plan_.key_masks_per_batch ? b * shape_.keys : 0);
        for (int64_t h = 0; h < shape_.kv_heads; ++h, to += plan_.padded_keys) {
          const float *scales = from.as<float>() + b * from.stride(0) + h * from.stride(1);
          for (int64_t j = 0; j < plan_.padded_keys; ++j)
            to[j] = j < shape_.keys && visible[j] ? scales[j] : 0.0f;
        }
      }
    };
    copy_one(args_.cache->key_scales(), plan_.key_scales);
    copy_one(args_.cache->value_scales(), plan_.value_scales);
  }

  // Batches and queries in as few calls as 32-bit offsets allow.
  void attend(Buffers &all, int64_t batches, int64_t queries) {
    if (!all.fit() && batches > 1) {
      for (int64_t b = 0; b < batches; ++b) {
        Buffers one = all.part(b, b + 1, 0, queries);
        attend(one, 1, queries);
      }
    } else if (!all.fit() && queries > 1 && !plan_.kernels.decode) {
      const int64_t half = queries / 2;
      Buffers first = all.part(0, batches, 0, half), second = all.part(0, batches, half, queries);
      attend(first, batches, half);
      attend(second, batches, queries - half);
    } else {
      call_attention(all);
      if (plan_.kernels.decode) call_merge(all);
      if (plan_.kernels.weights) call_weights(all);
    }
  }

  void bind_scores(KernelCall &call, const Buffers &all, int64_t row_heads) const {
    const bool has_masks = plan_.key_bias || plan_.add.given() || plan_.dense.given() || plan_.keep.given();
    call.set("scale", problem_.scale).set("softcap", args_.softcap);
    call.set("row_heads", static_cast<int32_t>(row_heads)).set("group", static_cast<int32_t>(problem_.group));
    call.set("split_blocks", static_cast<int32_t>(plan_.split_blocks));
    call.set("q", all.q).set("keys", all.keys).set("values", all.values);
    if (all.key_scales.data) call.set("key_scales", all.key_scales).set("value_scales", all.value_scales);
    call.set("row_begin", all.row_begin).set("row_end", all.row_end);
    call.set("has_masks", has_masks).set("has_key_bias", plan_.key_bias != nullptr);
    call.set("has_add", plan_.add.given()).set("has_dense", plan_.dense.given());
    call.set("has_keep", plan_.keep.given()).set("keep_value", !args_.keep_mask.empty());
    call.set("key_bias", all.key_bias).set("add_mask", all.add).set("dense_bias", all.dense);
    call.set("keep_mask", all.keep);
    call.set("q_positions", all.q_positions).set("q_positions_low", all.q_positions_low);
    call.set("k_positions", all.k_positions).set("k_positions_low", all.k_positions_low);
    call.set("has_offsets", plan_.kernels.tabulated);
    call.set("offset_zero", static_cast<int32_t>(shape_.queries - 1 - all.first_query));
    KernelBuffer offsets = unused(DType::f32, 2);
    if (plan_.kernels.tabulated) {
      offsets = KernelBuffer(plan_.offsets, DType::f32).dim(plan_.offsets_stride, 1);
      offsets.dim(shape_.query_heads, plan_.offsets_stride);
      bind_neutral_branches(call, BranchSet(), plan_.zeros, plan_.num_zeros);
    } else {
      bind_branches(call);
    }
    call.set("offsets", offsets);
  }

  void call_attention(const Buffers &all) const {
    KernelCall call(*plan_.kernels.attention);
    bind_scores(call, all, plan_.row_heads);
    if (plan_.kernels.decode) {
      call.set("out", all.partial_out).set("lse", all.partial_lse).run();
      return;
    }
    call.set("out", with_one_split(all.out, 2)).set("lse", with_one_split(all.lse, 1)).run();
  }

  void call_merge(const Buffers &all) const {
    KernelCall call(*plan_.kernels.merge);
    call.set("row_heads", static_cast<int32_t>(plan_.row_heads));
    call.set("partial_out", all.partial_out).set("partial_lse", all.partial_lse);
    call.set("out", all.out).set("lse", all.lse).run();
  }

  void call_weights(const Buffers &all) const {
    KernelCall call(*plan_.kernels.weights);
    bind_scores(call, all, 1);
    const bool mean = args_.need_weights == Weights::mean;
    call.set("mean_of", static_cast<int32_t>(mean ? shape_.query_heads : 1));
    call.set("out", all.weights).run();
  }

  const AttendArgs &args_;
  const AttendProblem &problem_;
  const AttendShape &shape_;
  const AttendPlan &plan_;
  float first_offset_;
  const TokenPositions &queries_, &keys_;
  BranchInputs inputs_;
};

void fill_zero(const MutableTensorView &view) {
  static constexpr uint64_t kZero = 0;
  const int64_t strides[kMaxRank] = {};
  int64_t shape[kMaxRank];
  for (int d = 0; d < view.rank(); ++d) shape[d] = view.size(d);
  copy(TensorView(&kZero, view.dtype(), view.rank(), shape, strides), view);
}

// No batches or queries: nothing to write. No keys: zeros, and an empty sum's logarithm.
void attend_to_nothing(const AttendArgs &args) {
  fill_zero(args.out);
  if (args.lse.empty()) return;
  for (int64_t b = 0; b < args.lse.size(0); ++b) {
    for (int64_t h = 0; h < args.lse.size(1); ++h) {
      std::fill_n(args.lse.as<float>() + b * args.lse.stride(0) + h * args.lse.stride(1), args.lse.size(2),
                  kMinusInfinity);
    }
  }
}

}  // namespace

size_t attend_workspace_size(const AttendArgs &args) {
  const AttendProblem problem = check_shapes(args);
  if (problem.is_empty()) return 0;
  // Whether positions are consecutive is not known yet: enough for both ways.
  int64_t size = -1;
  KernelQuery missing;
  AttendKernels kernels;
  const auto measure = [&](bool tabulated) {
    if (!find_attend_kernels(args, problem, tabulated, kernels, missing)) return;
    Workspace workspace(nullptr);
    make_attend_plan(args, problem, kernels, workspace);
    size = std::max(size, workspace.size());
  };
  if (problem.branches.size > 0) measure(true);
  if (size < 0 || !default_positions(args)) measure(false);
  if (size < 0) fail_no_kernel(missing);
  return static_cast<size_t>(size);
}

void attend(const AttendArgs &args, void *workspace, size_t workspace_size) {
  const AttendProblem problem = check_shapes(args);
  check_memory(args);
  check_values(args, problem);
  if (problem.is_empty()) return attend_to_nothing(args);

  const TokenPositions queries(args.q_positions, args.q_position_mask, problem.shape.queries);
  const TokenPositions keys(args.k_positions, args.k_position_mask, problem.shape.keys);
  std::optional<float> offset;
  if (problem.branches.size > 0) offset = uniform_offset(queries, keys, problem.shape.batch);
  AttendKernels kernels;
  KernelQuery missing;
  if (!(offset && find_attend_kernels(args, problem, true, kernels, missing)) &&
      !find_attend_kernels(args, problem, false, kernels, missing)) {
    fail_no_kernel(missing);
  }

  Workspace measure(nullptr);
  make_attend_plan(args, problem, kernels, measure);
  if (workspace_size < static_cast<size_t>(measure.size())) {
    fail("workspace: expected at least ", measure.size(), " bytes, got ", workspace_size);
  }
  if (workspace == nullptr) fail("workspace: expected ", measure.size(), " bytes, got null");
  if (reinterpret_cast<uintptr_t>(workspace) % Workspace::kAlignment != 0) {
    fail("workspace: expected memory aligned to ", Workspace::kAlignment, " bytes");
  }
  Workspace memory(workspace);
  const AttendPlan plan = make_attend_plan(args, problem, kernels, memory);
  Attend(args, problem, plan, offset.value_or(0), queries, keys).run();
}

void attend(const AttendArgs &args) {
  const size_t size = attend_workspace_size(args);
  if (size == 0) return attend(args, nullptr, 0);
  const Tensor workspace(DType::boolean, {static_cast<int64_t>(size)});
  attend(args, workspace.view().data(), size);
}

}  // namespace posattn
