#include "runtime/cuda/attend.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <limits>

#include "runtime/attend_masks.h"
#include "runtime/cuda/attend_plan.h"
#include "runtime/cuda/attend_unchecked.h"
#include "runtime/cuda/launch.h"
#include "runtime/cuda/targets.h"
#include "runtime/cuda/tensor_map.h"
#include "runtime/cuda/token_call.h"
#include "runtime/error.h"
#include "runtime/kv_cache.h"

namespace posattn {
namespace cuda {
namespace {

constexpr uintptr_t kVectorBytes = 16;  // that decoding, or copying a tile, loads at a time
constexpr int32_t kBlockForEachTile = 1 << 24;
// Up to so many queries a sequence is one tile, of which a multiprocessor has several at a time.
constexpr int64_t kFewestSharedQueries = 64;
// Decoding that reads so many bytes starts before the kernel before it has ended. Blocks of threads that come
// while others are still there are placed less evenly, which costs longer calls more than it saves (2 % of
// one of bfloat16 with 500 MB on an H100).
constexpr int64_t kMostBytesToStartEarly = int64_t{96} << 20;
constexpr uintptr_t kWorkspaceAlignment = 256;  // as all of the driver's memory has

Address address(const void *data) { return reinterpret_cast<Address>(data); }

// Whether rows of a tensor start at multiples of 16 bytes and are whole multiples of it, as far as shapes
// say.
bool rows_aligned(const TensorView &view) {
  const int64_t size = size_of(view.dtype()), vector = static_cast<int64_t>(kVectorBytes);
  for (int d = 0; d < view.rank() - 1; ++d) {
    if (view.size(d) > 1 && view.stride(d) * size % vector != 0) return false;
  }
  return view.size(-1) * size % vector == 0;
}
bool tiles_aligned(const TensorView &view) {
  const int64_t vector = static_cast<int64_t>(kVectorBytes);
  for (int d = 0; d < view.rank() - 1; ++d) {
    if (view.size(d) > 1 && view.stride(d) * size_of(view.dtype()) % vector != 0) return false;
  }
  return true;
}
bool steps_positive(const TensorView &view) {
  for (int d = 0; d < view.rank(); ++d) {
    if (view.size(d) > 1 && view.stride(d) <= 0) return false;
  }
  return true;
}
bool starts_aligned(const TensorView &view) {
  return reinterpret_cast<uintptr_t>(view.data()) % kVectorBytes == 0;
}

// Tensors of a range of batches and queries. Dimensions that all batches or queries share have step 0.
struct Buffers : ResultBuffers {
  KernelBuffer q, k, v, lengths, visible, key_bias, add, dense, keep, offsets;
  KernelBuffer q_positions, q_positions_low, k_positions, k_positions_low;
  KernelBuffer part_states, row_states;  // (two numbers, part, query, head, batch), without part

  template <typename Visit>
  void for_each(const Visit &visit) {  // buffer, dimension of queries or -1, dimension of batches
    visit(q, 1, 3), visit(k, -1, 3), visit(v, -1, 3), visit(lengths, -1, 0), visit(visible, -1, 1);
    visit(key_bias, -1, 1), visit(add, 1, 3), visit(dense, 1, 3), visit(keep, 1, 3);
    visit(q_positions, 0, 1), visit(q_positions_low, 0, 1), visit(k_positions, -1, 1);
    visit(k_positions_low, -1, 1), visit(out, 1, 3), visit(lse, 0, 2);
    visit(partial_out, -1, 4), visit(partial_lse, -1, 3), visit(weights, 1, 3);
    visit(part_states, 2, 4), visit(row_states, 1, 3);
  }
  Buffers part(int64_t b0, int64_t b1, int64_t q0, int64_t q1, const void *unused) const {
    Buffers result = *this;
    result.for_each([&](KernelBuffer &buffer, int query_dim, int batch_dim) {
      if (buffer.dimensions == 0 || buffer.data == unused) return;
      if (query_dim >= 0) buffer = slice(buffer, query_dim, q0, q1);
      buffer = slice(buffer, batch_dim, b0, b1);
    });
    return result;
  }
  bool fit() {
    bool result = true;
    for_each([&](KernelBuffer &buffer, int, int) { result &= fits_kernel(buffer); });
    return result && fits_kernel(offsets);
  }
};

class Attend {
 public:
  Attend(const AttendArgs &args, const AttendProblem &problem, const Plan &plan, const BranchInputs &inputs,
         const Scope &scope)
      : args_(args),
        problem_(problem),
        shape_(problem.shape),
        plan_(plan),
        inputs_(inputs),
        driver_(driver()),
        launch_{&scope.context(), scope.stream(), {}} {}

  void run() {
    fill_tables();
    const Buffers all = whole();
    rotate();
    if (plan_.cleared) clear_values(all);
    for (int64_t q0 = 0; q0 < shape_.queries; q0 += plan_.chunk) {
      const int64_t q1 = std::min(q0 + plan_.chunk, shape_.queries);
      Buffers chunk = all.part(0, shape_.batch, q0, q1, plan_.zeros);
      chunk.keep = keep_rows(q0, q1);
      chunk.add = mask_rows(plan_.add, q0, q1);
      chunk.dense = mask_rows(plan_.dense, q0, q1);
      attend(chunk, shape_.batch, q0, q1);
    }
  }

 private:
  // Inputs that a call does not use: tensors of one element.
  KernelBuffer unused(DType type, int dimensions) const {
    return unused_buffer(plan_.zeros, type, dimensions);
  }
  KernelBuffer or_unused(const TensorView &view, DType type, int dimensions) const {
    return view.empty() ? unused(type, dimensions) : kernel_buffer(view);
  }

  void clear(void *memory, int64_t bytes) {
    check(driver_.MemsetD8Async(address(memory), 0, static_cast<size_t>(bytes), launch_.stream),
          "clearing memory");
  }

  void fill_tables() {
    // Only branches that a kernel has and a call lacks ask for zeros; other inputs that are not used are
    // never looked at.
    if (plan_.needs_zeros) clear(plan_.zeros, plan_.num_zeros * int64_t{sizeof(float)});
    for (int i = 0; i < inputs_.size(); ++i) {
      const TensorView &own = inputs_[i].tensor;
      if (!inputs_[i].own) continue;
      const size_t bytes = static_cast<size_t>(own.num_elements() * size_of(own.dtype()));
      check(driver_.MemcpyHtoDAsync(address(plan_.own[i]), own.data(), bytes, launch_.stream),
            inputs_[i].name);
    }
    if (plan_.key_bias) fill_key_masks();
    if (plan_.q_positions) {
      fill_positions(args_.q_positions, args_.q_position_mask, shape_.queries, plan_.q_position_batches,
                     plan_.q_positions);
      fill_positions(args_.k_positions, args_.k_position_mask, shape_.keys, plan_.k_position_batches,
                     plan_.k_positions);
    }
    if (plan_.kernels.tabulated) tabulate();
  }

  KernelBuffer of_tokens(const TensorView &view, DType type, int64_t batches) const {
    return cuda::of_tokens(view, type, batches, plan_.zeros);
  }

  static int32_t form_of(const TensorView &view) {
    if (view.empty()) return 0;
    return view.dtype() == DType::f32 ? 1 : view.dtype() == DType::bf16 ? 2 : 3;
  }

  void fill_key_masks() {
    const int64_t batches = plan_.key_masks_per_batch ? shape_.batch : 1;
    const TensorView &keep = args_.key_keep_mask, &block = args_.key_block_mask, &add = args_.key_add_mask;
    const int32_t form = form_of(add);
    KernelCall call(*plan_.kernels.key_mask, launch_);
    call.set("has_keep", !keep.empty()).set("has_block", !block.empty()).set("form", form);
    call.set("keep", of_tokens(keep, DType::boolean, batches));
    call.set("block", of_tokens(block, DType::boolean, batches));
    call.set("add_32", of_tokens(form == 1 ? add : TensorView(), DType::f32, batches));
    call.set("add_16", of_tokens(form > 1 ? add : TensorView(), DType::bf16, batches));
    call.set("keys", static_cast<int32_t>(shape_.keys));
    const auto table = [&](void *data, DType type) {
      return KernelBuffer(data, type).dim(plan_.key_stride, 1).dim(batches, plan_.key_stride);
    };
    call.set("bias", table(plan_.key_bias, DType::f32))
        .set("visible", table(plan_.visible, DType::boolean))
        .run();
  }

  void fill_positions(const TensorView &positions, const TensorView &mask, int64_t tokens, int64_t batches,
                      float *to) {
    KernelCall call(*plan_.kernels.positions, launch_);
    set_positions(call, positions, mask, batches, 0, plan_.zeros);
    KernelBuffer out(to, DType::f32);
    call.set("out", out.dim(tokens, 1).dim(batches, tokens).dim(2, tokens * batches)).run();
  }

  // The sum of all branches by offset t = key - query + (queries - 1), one branch after the other.
  void tabulate() {
    const int64_t rows = plan_.num_offsets, stride = plan_.offsets_stride;
    clear(plan_.no_offsets, stride * int64_t{sizeof(float)});
    clear(plan_.offsets, stride * shape_.query_heads * int64_t{sizeof(float)});
    const auto table = [&](const float *data, int64_t step) {
      return KernelBuffer(data, DType::f32).dim(rows, 1).dim(shape_.query_heads, step);
    };
    KernelBuffer in = table(plan_.no_offsets, 0);
    const int64_t front = plan_.offsets_front;
    for (int i = 0; i < problem_.branches.size; ++i) {
      // The last one writes to `offsets`.
      const bool last = (problem_.branches.size - 1 - i) % 2 == 0;
      const KernelBuffer out = table((last ? plan_.offsets : plan_.other_offsets) + front, stride);
      KernelCall call(*plan_.kernels.offsets[i], launch_);
      call.set("in", in).set("out", out).set("first_offset", -static_cast<float>(shape_.queries - 1));
      bind_branches(call);
      call.run();
      in = out;
    }
  }

  void bind_branches(KernelCall &call) const {
    for (int i = 0; i < inputs_.size(); ++i) {
      const BranchInputs::Item &item = inputs_[i];
      if (!item.tensor.empty()) {
        KernelBuffer buffer = kernel_buffer(item.tensor);
        if (item.own) {
          int64_t stride = 1;
          for (int d = 0; d < buffer.dimensions; stride *= buffer.extent[d++]) buffer.stride[d] = stride;
          buffer.data = plan_.own[i];
        }
        call.set(item.name, buffer);
      } else if (item.is_int) {
        call.set(item.name, item.i);
      } else {
        call.set(item.name, item.f);
      }
    }
    bind_neutral_branches(call, problem_.branches, plan_.zeros, plan_.num_zeros);
  }

  KernelBuffer rotated(const Rotated &at, int64_t tokens, int64_t heads) const {
    const int64_t d = shape_.head_dim;
    KernelBuffer buffer(at.data, problem_.type);
    return buffer.dim(d, 1).dim(tokens, d).dim(heads, d * tokens).dim(shape_.batch, at.batch_step);
  }

  Buffers whole() const {
    const int64_t B = shape_.batch, Hq = shape_.query_heads, Hkv = shape_.kv_heads, Tq = shape_.queries;
    Buffers all;
    static_cast<ResultBuffers &>(all) = result_buffers(args_, shape_, plan_.kernels.decode, plan_);
    all.q = args_.rope ? rotated(plan_.q_rotated, Tq, Hq) : kernel_buffer(args_.query);
    all.k = args_.rope ? rotated(plan_.k_rotated, shape_.keys, Hkv) : kernel_buffer(args_.key);
    all.v = kernel_buffer(args_.value);
    if (plan_.cleared) {
      const int64_t row = plan_.cleared_row, head = row * shape_.keys;
      all.v = KernelBuffer(plan_.cleared, problem_.type).dim(shape_.value_dim, 1).dim(shape_.keys, row);
      all.v.dim(Hkv, head).dim(B, head * Hkv);
    }
    all.lengths = unused(DType::i32, 1);
    if (!args_.key_lengths.empty()) {
      // The low half of 64 bits: lengths are small, or clamped anyway.
      const int64_t step = args_.key_lengths.stride(0) * (args_.key_lengths.dtype() == DType::i64 ? 2 : 1);
      all.lengths = KernelBuffer(args_.key_lengths.data(), DType::i32).dim(B, step);
    }
    all.visible = unused(DType::boolean, 2);
    all.key_bias = unused(DType::f32, 2);
    if (plan_.key_bias) {
      const int64_t step = plan_.key_masks_per_batch ? plan_.key_stride : 0;
      all.visible = KernelBuffer(plan_.visible, DType::boolean).dim(plan_.key_stride, 1).dim(B, step);
      all.key_bias = KernelBuffer(plan_.key_bias, DType::f32).dim(plan_.key_stride, 1).dim(B, step);
    }
    all.q_positions = all.k_positions = all.q_positions_low = all.k_positions_low = unused(DType::f32, 2);
    if (plan_.q_positions) {
      const auto positions = [&](const float *data, int64_t tokens, int64_t batches, int64_t part) {
        KernelBuffer buffer(data + part * tokens * batches, DType::f32);
        return buffer.dim(tokens, 1).dim(B, batches > 1 ? tokens : 0);
      };
      all.q_positions = positions(plan_.q_positions, Tq, plan_.q_position_batches, 0);
      all.q_positions_low = positions(plan_.q_positions, Tq, plan_.q_position_batches, 1);
      all.k_positions = positions(plan_.k_positions, shape_.keys, plan_.k_position_batches, 0);
      all.k_positions_low = positions(plan_.k_positions, shape_.keys, plan_.k_position_batches, 1);
    }
    if (plan_.kernels.weights) {
      const auto states = [&](const float *data, int64_t parts) {
        KernelBuffer buffer = KernelBuffer(data, DType::f32).dim(2, 1);
        if (parts > 0) buffer.dim(parts, 2);
        const int64_t row = 2 * std::max<int64_t>(parts, 1);
        return buffer.dim(Tq, row).dim(Hq, row * Tq).dim(B, row * Tq * Hq);
      };
      all.part_states = states(plan_.part_states, plan_.key_parts);
      all.row_states = states(plan_.row_states, 0);
    }
    all.offsets = unused(DType::f32, 2);
    if (plan_.kernels.tabulated) {
      all.offsets =
          KernelBuffer(plan_.offsets, DType::f32).dim(plan_.offsets_stride, 1).dim(Hq, plan_.offsets_stride);
    }
    return all;
  }

  void rotate() {
    if (!args_.rope) return;
    const RotaryKernels kernels{plan_.kernels.rotation, plan_.kernels.rotary};
    const KernelBuffer q = kernel_buffer(args_.query), k = kernel_buffer(args_.key);
    KernelBuffer rotated_q = rotated(plan_.q_rotated, shape_.queries, shape_.query_heads);
    if (plan_.kernels.rotates_together) {
      KernelBuffer both = q;
      both.extent[2] = rotated_q.extent[2] = shape_.query_heads + shape_.kv_heads;
      run_rotary(kernels, *args_.rope, plan_.q_rotation, args_.q_positions, args_.q_position_mask, 0, both,
                 rotated_q, plan_.zeros, launch_);
      return;
    }
    run_rotary(kernels, *args_.rope, plan_.q_rotation, args_.q_positions, args_.q_position_mask, 0, q,
               rotated_q, plan_.zeros, launch_);
    run_rotary(kernels, *args_.rope, plan_.k_rotation, args_.k_positions, args_.k_position_mask, 0, k,
               rotated(plan_.k_rotated, shape_.keys, shape_.kv_heads), plan_.zeros, launch_);
  }

  // (key, query, head, batch) of the queries [q0, q1), sizes of 1 where the mask is broadcast.
  static KernelBuffer mask_source(const TensorView &mask, int64_t q0, int64_t q1) {
    const TensorView rows = mask.size(2) == 1 ? mask : mask.slice(2, q0, q1);
    KernelBuffer buffer(rows.data(), rows.dtype());
    for (int d = 3; d >= 0; --d) buffer.dim(rows.size(d), rows.size(d) > 1 ? rows.stride(d) : 0);
    return buffer;
  }
  // The converted rows, dense but for broadcast dimensions.
  static KernelBuffer mask_copy(const Mask &mask, DType type, int64_t queries) {
    const int64_t sizes[] = {mask.size[3], mask.size[2] == 1 ? 1 : queries, mask.size[1], mask.size[0]};
    KernelBuffer buffer(mask.copy, type);
    int64_t stride = 1;
    for (int64_t size : sizes) {
      buffer.dim(size, stride);
      stride *= size;
    }
    return buffer;
  }
  // For attention: all dimensions but keys in full.
  KernelBuffer broadcast(const KernelBuffer &mask, int64_t queries) const {
    const int64_t full[] = {mask.extent[0], queries, shape_.query_heads, shape_.batch};
    KernelBuffer buffer(mask.data, mask.type);
    for (int d = 0; d < 4; ++d) buffer.dim(full[d], d == 0 ? 1 : mask.extent[d] == 1 ? 0 : mask.stride[d]);
    return buffer;
  }

  KernelBuffer mask_rows(const Mask &mask, int64_t q0, int64_t q1) {
    if (!mask.given) return unused(DType::f32, 4);
    const KernelBuffer source = mask_source(mask.view, q0, q1);
    if (!mask.convert) return broadcast(source, q1 - q0);
    const KernelBuffer copy = mask_copy(mask, DType::f32, q1 - q0);
    const int32_t form = form_of(mask.view);
    KernelCall call(*plan_.kernels.float_mask, launch_);
    call.set("form", form).set("out", copy);
    call.set("in_32", form == 1 ? source : unused(DType::f32, 4));
    call.set("in_16", form > 1 ? source : unused(DType::bf16, 4)).run();
    return broadcast(copy, q1 - q0);
  }

  KernelBuffer keep_rows(int64_t q0, int64_t q1) {
    const Mask &mask = plan_.keep;
    if (!mask.given) return unused(DType::boolean, 4);
    const bool has_keep = !mask.view.empty(), has_block = !mask.block.empty();
    if (!mask.convert) return broadcast(mask_source(has_keep ? mask.view : mask.block, q0, q1), q1 - q0);
    const KernelBuffer copy = mask_copy(mask, DType::boolean, q1 - q0);
    // Each may be broadcast where the other is not.
    const auto source = [&](const TensorView &view) {
      if (view.empty()) return unused(DType::boolean, 4);
      KernelBuffer buffer = mask_source(view, q0, q1);
      for (int d = 0; d < 4; ++d) buffer.extent[d] = copy.extent[d];
      return buffer;
    };
    KernelCall call(*plan_.kernels.keep_mask, launch_);
    call.set("has_keep", has_keep).set("has_block", has_block);
    call.set("keep", source(mask.view)).set("block", source(mask.block)).set("out", copy).run();
    return broadcast(copy, q1 - q0);
  }

  // Batches and queries in as few calls as 32-bit offsets allow.
  void attend(Buffers &all, int64_t batches, int64_t q0, int64_t q1) {
    const int64_t queries = q1 - q0;
    // Batches are the third dimension of a grid, which takes no more.
    constexpr int64_t kMostBatches = 65535;
    const int64_t step = all.fit() ? kMostBatches : 1;
    if (batches > step) {
      for (int64_t b = 0; b < batches; b += step) {
        const int64_t end = std::min(b + step, batches);
        Buffers part = all.part(b, end, 0, queries, plan_.zeros);
        attend(part, end - b, q0, q1);
      }
    } else if (!all.fit() && queries > 1 && !plan_.kernels.decode) {
      const int64_t half = queries / 2;
      Buffers first = all.part(0, batches, 0, half, plan_.zeros);
      Buffers second = all.part(0, batches, half, queries, plan_.zeros);
      attend(first, batches, q0, q0 + half);
      attend(second, batches, q0 + half, q1);
    } else {
      call_attention(all, q0);
      if (plan_.kernels.decode) call_merge(all);
      if (plan_.kernels.weights) call_weights(all, q0);
    }
  }

  void bind_scores(KernelCall &call, const Buffers &all, int64_t first_query, int64_t row_heads) const {
    const bool has_masks = plan_.key_bias || plan_.add.given || plan_.dense.given || plan_.keep.given;
    const auto number = [](int64_t value) { return static_cast<int32_t>(value); };
    call.set("scale", problem_.scale).set("softcap", args_.softcap);
    call.set("row_heads", number(row_heads)).set("group", number(problem_.group));
    call.set("split_blocks", number(plan_.split_blocks));
    call.set("q", all.q);
    // A window is as wide as it gets at keys + queries.
    const int64_t most =
        std::min<int64_t>(shape_.keys + shape_.queries, std::numeric_limits<int32_t>::max() / 4);
    const auto reach = [&](int64_t window) { return number(window < 0 ? most : std::min(window, most)); };
    const int64_t right = args_.causal != Causal::none ? 0 : args_.window_right;
    const int64_t shift = args_.causal == Causal::top_left ? 0 : shape_.keys - shape_.queries;
    call.set("diagonal", number(shift + first_query)).set("window_left", reach(args_.window_left));
    call.set("window_right", reach(right));
    call.set("has_lengths", !args_.key_lengths.empty()).set("lengths", all.lengths);
    call.set("has_visible", plan_.visible != nullptr).set("visible", all.visible);
    call.set("has_masks", has_masks).set("has_key_bias", plan_.key_bias != nullptr);
    call.set("has_add", plan_.add.given).set("has_dense", plan_.dense.given);
    const bool only_block = plan_.keep.given && !plan_.keep.convert && plan_.keep.view.empty();
    call.set("has_keep", plan_.keep.given).set("keep_value", !only_block);
    // One of 16 bits is read in tiles.
    const bool in_tiles = all.dense.type != DType::f32;
    call.set("key_bias", all.key_bias).set("add_mask", all.add);
    call.set("dense_bias", in_tiles ? unused(DType::f32, 4) : all.dense);
    call.set("keep_mask", all.keep);
    call.set("has_positions", plan_.q_positions != nullptr).set("first_query", number(first_query));
    call.set("q_positions", all.q_positions).set("q_positions_low", all.q_positions_low);
    call.set("k_positions", all.k_positions).set("k_positions_low", all.k_positions_low);
    call.set("has_offsets", plan_.kernels.tabulated).set("offsets", all.offsets);
    call.set("offset_zero", number(plan_.offsets_front + shape_.queries - 1 - first_query));
    if (plan_.kernels.tabulated) {
      bind_neutral_branches(call, BranchSet(), plan_.zeros, plan_.num_zeros);
    } else {
      bind_branches(call);
    }
  }

  // Rows of 32-bit words, of tensors that are aligned to more than that.
  static KernelBuffer as_words(const KernelBuffer &buffer) {
    const int64_t per_word = 4 / size_of(buffer.type);
    KernelBuffer words(buffer.data, DType::i32);
    words.dim(buffer.extent[0] / per_word, 1);
    for (int d = 1; d < buffer.dimensions; ++d) words.dim(buffer.extent[d], buffer.stride[d] / per_word);
    return words;
  }

  // All at once, or batch by batch where that is what 32-bit offsets reach.
  void clear_values(const Buffers &all) {
    const KernelBuffer values = kernel_buffer(args_.value);
    const int64_t step = fits_kernel(values) && fits_kernel(all.v) ? shape_.batch : 1;
    for (int64_t b = 0; b < shape_.batch; b += step) {
      const auto some = [&](const KernelBuffer &buffer, int dim) {
        return buffer.data == plan_.zeros ? buffer : slice(buffer, dim, b, b + step);
      };
      KernelCall call(*plan_.kernels.clear_values, launch_);
      call.set("has_lengths", !args_.key_lengths.empty()).set("lengths", some(all.lengths, 0));
      call.set("has_visible", plan_.visible != nullptr).set("visible", some(all.visible, 1));
      call.set("values", some(values, 3)).set("out", some(all.v, 3)).run();
    }
  }

  void call_tensor_cores(const Buffers &all, int64_t first_query) {
    const Kernel &kernel = *plan_.kernels.attention;
    KernelCall call(kernel, launch_);
    bind_scores(call, all, first_query, 1);
    const bool short_rows = shape_.queries <= kFewestSharedQueries;
    call.set("blocks", short_rows ? kBlockForEachTile : launch_.context->multiprocessors());
    call.set("k", all.k).set("v", all.v).set("out", all.out).set("lse", all.lse);
    TensorMap maps[4];
    int count = 0;
    std::fill(std::begin(launch_.maps), std::end(launch_.maps), nullptr);
    const auto map = [&](const char *name, const KernelBuffer &buffer) {
      if (kernel.find(name) < 0) return;
      maps[count] = tensor_map(buffer, kernel.estimate(name, 0, 0));
      call.set(name, maps[count++]);
    };
    map("q_map", all.q), map("k_map", all.k), map("v_map", all.v);
    if (kernel.find("dense_map") >= 0) {
      KernelBuffer bias = all.dense;
      for (int d = 2; d < 4; ++d) {
        if (bias.stride[d] == 0) bias.extent[d] = 1;
      }
      map("dense_map", bias);
      call.set("dense_of_head", int32_t{bias.extent[2] > 1});
      call.set("dense_of_batch", int32_t{bias.extent[3] > 1});
    }
    call.run();
  }

  // Partial results as the kernel sees them: (d, row, split of a head, batch), and without d.
  void call_tensor_decode(const Buffers &all, int64_t first_query) {
    KernelCall call(*plan_.kernels.attention, launch_);
    const int64_t bytes = shape_.batch * shape_.kv_heads * shape_.keys *
                          (shape_.head_dim + shape_.value_dim) * size_of(problem_.type);
    // Only keys and values are waited for in the kernel, not what masks and branches read.
    start_early(*plan_.kernels.attention, call, plan_.kernels.plain && bytes <= kMostBytesToStartEarly);
    bind_scores(call, all, first_query, plan_.row_heads);
    const auto joined = [](const KernelBuffer &b) {
      const int last = b.dimensions - 1;
      KernelBuffer result(b.data, b.type);
      for (int d = 0; d < last - 2; ++d) result.dim(b.extent[d], b.stride[d]);
      return result.dim(b.extent[last - 2] * b.extent[last - 1], b.stride[last - 2])
          .dim(b.extent[last], b.stride[last]);
    };
    call.set("blocks", 1).set("k", all.k).set("v", all.v);
    call.set("out", joined(all.partial_out)).set("lse", joined(all.partial_lse)).run();
    launch_.starts_early = false;
  }

  // Kernels that wait by themselves for those before them have an argument of this name.
  void start_early(const Kernel &kernel, KernelCall &call, bool pays) {
    launch_.starts_early = pays && kernel.find("starts_early") >= 0;
    call.set("starts_early", 1);
  }

  void call_attention(const Buffers &all, int64_t first_query) {
    if (plan_.kernels.tensor && plan_.kernels.decode) return call_tensor_decode(all, first_query);
    if (plan_.kernels.tensor) return call_tensor_cores(all, first_query);
    KernelCall call(*plan_.kernels.attention, launch_);
    bind_scores(call, all, first_query, plan_.row_heads);
    if (plan_.kernels.decode) {
      call.set("k", as_words(all.k)).set("v", as_words(all.v));
      call.set("out", all.partial_out).set("lse", all.partial_lse).run();
      return;
    }
    call.set("k", all.k).set("v", all.v);
    call.set("out", with_one_split(all.out, 2)).set("lse", with_one_split(all.lse, 1)).run();
  }

  void call_merge(const Buffers &all) {
    KernelCall call(*plan_.kernels.merge, launch_);
    start_early(*plan_.kernels.merge, call, true);
    call.set("row_heads", static_cast<int32_t>(plan_.row_heads));
    call.set("partial_out", all.partial_out).set("partial_lse", all.partial_lse);
    call.set("out", all.out).set("lse", all.lse).run();
    launch_.starts_early = false;
  }

  void call_weights(const Buffers &all, int64_t first_query) {
    KernelCall call(*plan_.kernels.weights, launch_);
    bind_scores(call, all, first_query, 1);
    const bool mean = args_.need_weights == Weights::mean;
    call.set("k", all.k).set("v", all.v);
    call.set("split_blocks", static_cast<int32_t>(plan_.part_blocks));
    call.set("parts", all.part_states).set("whole", all.row_states);
    call.set("mean_of", static_cast<int32_t>(mean ? shape_.query_heads : 1));
    call.set("out", all.weights).run();
  }

  const AttendArgs &args_;
  const AttendProblem &problem_;
  const AttendShape &shape_;
  const Plan &plan_;
  const BranchInputs &inputs_;
  const Driver &driver_;
  mutable Launch launch_;
};

// No batches or queries: nothing to write. No keys: zeros, and an empty sum's logarithm.
void attend_to_nothing(const AttendArgs &args, const Scope &scope) {
  const Driver &d = driver();
  const auto rows = [&](const MutableTensorView &view, const auto &fill) {
    if (view.empty() || view.num_elements() == 0) return;
    const int64_t size = size_of(view.dtype());
    int64_t index[kMaxRank] = {};
    const int last = view.rank() - 1;
    while (true) {
      int64_t at = 0;
      for (int i = 0; i < last; ++i) at += index[i] * view.stride(i);
      fill(address(view.as<char>() + at * size), static_cast<size_t>(view.size(last)));
      int i = last - 1;
      while (i >= 0 && ++index[i] == view.size(i)) index[i--] = 0;
      if (i < 0) return;
    }
  };
  const size_t size = static_cast<size_t>(size_of(args.out.dtype()));
  if (args.out.contiguous()) {
    const size_t bytes = static_cast<size_t>(args.out.num_elements()) * size;
    if (bytes > 0) check(d.MemsetD8Async(address(args.out.data()), 0, bytes, scope.stream()), "out");
  } else {
    rows(args.out, [&](Address row, size_t count) {
      check(d.MemsetD8Async(row, 0, count * size, scope.stream()), "out");
    });
  }
  rows(args.lse, [&](Address row, size_t count) {
    constexpr unsigned kMinusInfinity = 0xff800000u;
    check(d.MemsetD32Async(row, kMinusInfinity, count, scope.stream()), "lse");
  });
}

void check_addresses(const AttendArgs &args, const BranchInputs &inputs, const Scope &scope) {
  for (const NamedView &tensor : tensors_of(args)) {
    if (!tensor.view.empty() && tensor.view.num_elements() > 0) {
      check_address(tensor.name, tensor.view.data(), scope);
    }
  }
  for (int i = 0; i < inputs.size(); ++i) {
    const BranchInputs::Item &item = inputs[i];
    if (!item.own && !item.tensor.empty() && item.tensor.num_elements() > 0) {
      check_address(item.name, item.tensor.data(), scope);
    }
  }
}

// Shapes alone: what a call may need whatever its addresses are.
bool could_be_aligned(const AttendArgs &args) {
  return rows_aligned(args.value) && (args.rope || rows_aligned(args.key)) &&
         args.key.size(-1) * size_of(args.key.dtype()) % static_cast<int64_t>(kVectorBytes) == 0;
}

bool same_tokens(const TensorView &a, const TensorView &b) {
  if (a.empty() || b.empty()) return a.empty() && b.empty();
  bool same = a.data() == b.data() && a.dtype() == b.dtype() && a.rank() == b.rank();
  for (int d = 0; same && d < a.rank(); ++d) same = a.size(d) == b.size(d) && a.stride(d) == b.stride(d);
  return same;
}

// As a layer's product leaves them: (B, T, heads of queries, then of keys, then of values).
bool are_adjacent(const AttendArgs &args) {
  const TensorView &q = args.query, &k = args.key;
  const int64_t heads = q.size(1) * q.stride(1) * size_of(q.dtype());
  bool result = k.data() == q.as<char>() + heads && q.size(2) == k.size(2);
  for (const int d : {0, 1, 2}) result &= q.stride(d) == k.stride(d);
  return result && same_tokens(args.q_positions, args.k_positions) &&
         same_tokens(args.q_position_mask, args.k_position_mask);
}

// Whether the dense bias is read in tiles, as it is.
bool has_dense_tiles(const AttendArgs &args, const AttendProblem &problem, bool with_addresses) {
  if (args.dense_bias.empty() || args.dense_bias.dtype() != problem.type) return false;
  const TensorView bias = mask_with_four_dims(args.dense_bias);
  const bool is_whole = bias.size(2) == problem.shape.queries && bias.size(3) == problem.shape.keys;
  return is_whole && bias.stride(3) == 1 && tiles_aligned(bias) && steps_positive(bias) &&
         (!with_addresses || starts_aligned(bias));
}

// The same for tiles of queries, keys and values on tensor cores. Rotated queries and keys are dense, and so
// are values that are cleared.
Alignment alignment_of(const AttendArgs &args, const AttendProblem &problem, bool with_addresses) {
  Alignment result;
  result.words = could_be_aligned(args) &&
                 (!with_addresses || (starts_aligned(args.value) && (args.rope || starts_aligned(args.key))));
  result.tiles = result.maps = true;
  if (args.rope) {
    result.tiles = problem.shape.head_dim * size_of(problem.type) % static_cast<int64_t>(kVectorBytes) == 0;
  }
  const auto add = [&](const TensorView &view) {
    result.tiles &= tiles_aligned(view) && (!with_addresses || starts_aligned(view));
    result.maps &= steps_positive(view);
  };
  if (with_addresses && args.rope) result.adjacent = are_adjacent(args);
  if (!args.rope) add(args.query), add(args.key);
  if (!problem.hides_keys) add(args.value);
  result.dense = has_dense_tiles(args, problem, with_addresses);
  return result;
}

AttendProblem checked_shapes(const AttendArgs &args) {
  if (args.cache) fail("cache: expected none on a GPU: its rows, up to its length, are key and value");
  return check_shapes(args);
}

BranchInputs inputs_of(const AttendProblem &problem) {
  BranchInputs inputs;
  for (int i = 0; i < problem.branches.size; ++i) problem.by_name[i]->bind(inputs);
  return inputs;
}

void expect_capability(const Scope &scope) {
  if (usable_cuda_targets(scope.context().capability()).size > 0) return;
  const int capability = scope.context().capability();
  fail("cuda: no kernel of this program runs on ", scope.context().name(), ", compute capability ",
       capability / 10, ".", capability % 10,
       forced_cuda_target() >= 0
           ? std::string(" (target ") + target_name(forced_cuda_target()) + " is forced)"
           : "");
}

}  // namespace
}  // namespace cuda

size_t attend_workspace_size(const AttendArgs &args, const CudaStream &stream) {
  using namespace cuda;
  const AttendProblem problem = checked_shapes(args);
  if (problem.is_empty()) return 0;
  const Scope scope(stream);
  expect_capability(scope);
  const BranchInputs inputs = inputs_of(problem);
  int64_t size = -1;
  KernelQuery missing;
  const Alignment possible = alignment_of(args, problem, false);
  for (int i = 0; i < 8; ++i) {
    Kernels kernels;
    Alignment aligned = possible;
    aligned.words &= (i & 1) != 0;
    aligned.tiles &= (i & 2) != 0;
    aligned.dense &= (i & 4) != 0;
    if (!find_kernels(args, problem, scope.context().capability(), aligned, kernels, missing)) continue;
    Workspace workspace(nullptr);
    make_plan(args, problem, kernels, inputs, workspace);
    size = std::max(size, workspace.size());
  }
  if (size < 0) fail_no_kernel(missing);
  return static_cast<size_t>(size);
}

namespace cuda {
namespace {

void attend(const AttendArgs &args, const CudaStream &stream, void *workspace, size_t workspace_size,
            bool check_tensors, bool check_workspace) {
  const AttendProblem problem = checked_shapes(args);
  check_memory(args);
  const Scope scope(stream);
  const BranchInputs inputs = inputs_of(problem);
  if (check_tensors) check_addresses(args, inputs, scope);
  if (problem.is_empty()) return attend_to_nothing(args, scope);
  expect_capability(scope);

  const Alignment aligned = alignment_of(args, problem, true);
  Kernels kernels;
  KernelQuery missing;
  if (!find_kernels(args, problem, scope.context().capability(), aligned, kernels, missing))
    fail_no_kernel(missing);

  Workspace measure(nullptr);
  make_plan(args, problem, kernels, inputs, measure);
  if (workspace_size < static_cast<size_t>(measure.size())) {
    fail("workspace: expected at least ", measure.size(), " bytes, got ", workspace_size);
  }
  if (workspace == nullptr) fail("workspace: expected ", measure.size(), " bytes, got null");
  if (reinterpret_cast<uintptr_t>(workspace) % kWorkspaceAlignment != 0) {
    fail("workspace: expected memory aligned to ", kWorkspaceAlignment, " bytes");
  }
  if (check_workspace) check_address("workspace", workspace, scope);
  Workspace memory(workspace);
  const Plan plan = make_plan(args, problem, kernels, inputs, memory);
  Attend(args, problem, plan, inputs, scope).run();
}

}  // namespace

void attend_unchecked(const AttendArgs &args, const CudaStream &stream, void *workspace,
                      size_t workspace_size) {
  attend(args, stream, workspace, workspace_size, false, false);
}

}  // namespace cuda

void attend(const AttendArgs &args, const CudaStream &stream, void *workspace, size_t workspace_size) {
  cuda::attend(args, stream, workspace, workspace_size, true, true);
}

void attend(const AttendArgs &args, const CudaStream &stream) {
  using namespace cuda;
  const size_t size = attend_workspace_size(args, stream);
  if (size == 0) return attend(args, stream, nullptr, 0);
  const Scope scope(stream);
  const Driver &d = driver();
  Address memory = 0;
  check(d.MemAllocAsync(&memory, size, scope.stream()), "workspace");
  try {
    cuda::attend(args, stream, reinterpret_cast<void *>(memory), size, true, false);
  } catch (...) {
    d.MemFreeAsync(memory, scope.stream());
    throw;
  }
  check(d.MemFreeAsync(memory, scope.stream()), "workspace");
}

}  // namespace posattn
