#include "runtime/attend_problem.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "runtime/error.h"
#include "runtime/kv_cache.h"

namespace posattn {
namespace {

constexpr int64_t kMaxHeadDim = 256;

bool is_compute_type(DType type) { return type == DType::f32 || type == DType::bf16 || type == DType::f16; }

template <typename... Sizes>
std::string shape_text(Sizes... sizes) {
  std::string text;
  ((text += (text.empty() ? "(" : ", ") + std::to_string(sizes)), ...);
  return text + ")";
}

void expect_rank(const char *argument, const TensorView &view, int rank, const char *dims) {
  if (view.empty()) fail(argument, ": expected a tensor ", dims, ", got none");
  if (view.rank() != rank) fail(argument, ": expected a tensor ", dims, ", got shape ", view.shape_text());
}

void expect_size(const char *argument, const TensorView &view, int dim, int64_t size, const char *what) {
  if (view.size(dim) != size) {
    fail(argument, ": expected ", what, " ", size, ", got ", view.size(dim), " in shape ", view.shape_text());
  }
}

void expect_type(const char *argument, const TensorView &view, DType type) {
  if (view.dtype() != type) {
    fail(argument, ": expected type ", name_of(type), ", got ", name_of(view.dtype()));
  }
}

void expect_contiguous_rows(const char *argument, const TensorView &view) {
  if (view.num_elements() > 0 && view.size(-1) > 1 && view.stride(-1) != 1) {
    fail(argument, ": expected a contiguous last dimension, got stride ", view.stride(-1));
  }
}

// A tensor of rank 1 to `rank` whose sizes are 1 or those of `sizes`, leading ones left out.
void check_broadcast(const char *argument, const TensorView &view, const int64_t *sizes, int rank) {
  bool fits = view.rank() <= rank;
  for (int d = 1; fits && d <= view.rank(); ++d) {
    fits = view.size(-d) == 1 || view.size(-d) == sizes[rank - d];
  }
  if (!fits) {
    std::string text;
    for (int d = 0; d < rank; ++d) text += (d > 0 ? ", " : "(") + std::to_string(sizes[d]);
    fail(argument, ": expected a shape that broadcasts to ", text, "), got ", view.shape_text());
  }
}

void check_float_mask(const char *argument, const TensorView &view) {
  if (!is_compute_type(view.dtype())) {
    fail(argument, ": expected type f32, bf16 or f16, got ", name_of(view.dtype()));
  }
}

void check_key_mask(const char *argument, const TensorView &view, const AttendShape &shape) {
  if (view.rank() != 2 || (view.size(0) != 1 && view.size(0) != shape.batch) || view.size(1) != shape.keys) {
    fail(argument, ": expected shape ", shape_text(shape.batch, shape.keys), " or ",
         shape_text(int64_t{1}, shape.keys), ", got ", view.shape_text());
  }
}

void check_token_shape(const char *argument, const TensorView &view, int64_t batch, int64_t tokens) {
  const bool fits =
      (view.rank() == 1 || (view.rank() == 2 && (view.size(0) == 1 || view.size(0) == batch))) &&
      view.size(-1) == tokens;
  if (!fits) {
    fail(argument, ": expected shape ", shape_text(tokens), ", ", shape_text(int64_t{1}, tokens), " or ",
         shape_text(batch, tokens), ", got ", view.shape_text());
  }
}

void check_positions(const char *argument, const TensorView &positions, const char *mask_argument,
                     const TensorView &mask, int64_t batch, int64_t tokens) {
  if (!positions.empty()) {
    check_token_shape(argument, positions, batch, tokens);
    const DType type = positions.dtype();
    if (type != DType::f32 && type != DType::f64 && type != DType::i32 && type != DType::i64) {
      fail(argument, ": expected type f32, f64, i32 or i64, got ", name_of(type));
    }
  }
  if (!mask.empty()) {
    check_token_shape(mask_argument, mask, batch, tokens);
    expect_type(mask_argument, mask, DType::boolean);
  }
}

AttendShape check_streams(const AttendArgs &args) {
  expect_rank("query", args.query, 4, "(batch, heads, queries, head_dim)");
  if (!is_compute_type(args.query.dtype())) {
    fail("query: expected type f32, bf16 or f16, got ", name_of(args.query.dtype()));
  }
  AttendShape shape{};
  shape.batch = args.query.size(0);
  shape.query_heads = args.query.size(1);
  shape.queries = args.query.size(2);
  shape.head_dim = args.query.size(3);
  if (shape.query_heads < 1) fail("query: expected at least 1 head, got shape ", args.query.shape_text());
  if (shape.head_dim < 1 || shape.head_dim > kMaxHeadDim) {
    fail("query: expected a head_dim of 1 to ", kMaxHeadDim, ", got ", shape.head_dim);
  }
  expect_contiguous_rows("query", args.query);

  if (args.cache) {
    const KvCache &cache = *args.cache;
    if (!args.key.empty() || !args.value.empty()) fail("cache: expected no key and value beside it");
    if (cache.batch() != shape.batch) fail("cache: expected batch ", shape.batch, ", got ", cache.batch());
    if (cache.head_dim() != shape.head_dim) {
      fail("cache: expected head_dim ", shape.head_dim, ", got ", cache.head_dim());
    }
    if (cache.dtype() != args.query.dtype()) {
      fail("cache: expected type ", name_of(args.query.dtype()), ", got ", name_of(cache.dtype()));
    }
    if (cache.format() == CacheFormat::int8 && args.need_weights != Weights::none) {
      fail("need_weights: expected none with a cache of 8-bit integers");
    }
    shape.kv_heads = cache.kv_heads();
    shape.keys = cache.length();
    shape.value_dim = cache.value_dim();
  } else {
    expect_rank("key", args.key, 4, "(batch, kv_heads, keys, head_dim)");
    expect_rank("value", args.value, 4, "(batch, kv_heads, keys, value_dim)");
    expect_type("key", args.key, args.query.dtype());
    expect_type("value", args.value, args.query.dtype());
    expect_size("key", args.key, 0, shape.batch, "batch");
    expect_size("key", args.key, 3, shape.head_dim, "head_dim");
    shape.kv_heads = args.key.size(1);
    shape.keys = args.key.size(2);
    shape.value_dim = args.value.size(3);
    if (shape.kv_heads < 1) fail("key: expected at least 1 head, got shape ", args.key.shape_text());
    expect_size("value", args.value, 0, shape.batch, "batch");
    expect_size("value", args.value, 1, shape.kv_heads, "heads");
    expect_size("value", args.value, 2, shape.keys, "keys");
    if (shape.value_dim < 1 || shape.value_dim > kMaxHeadDim) {
      fail("value: expected a value_dim of 1 to ", kMaxHeadDim, ", got ", shape.value_dim);
    }
    expect_contiguous_rows("key", args.key);
    expect_contiguous_rows("value", args.value);
  }
  if (shape.query_heads % shape.kv_heads != 0) {
    fail("query: expected a multiple of the ", shape.kv_heads, " key heads, got ", shape.query_heads,
         " heads");
  }
  return shape;
}

void check_outputs(const AttendArgs &args, const AttendShape &shape) {
  expect_rank("out", args.out, 4, "(batch, heads, queries, value_dim)");
  expect_type("out", args.out, args.query.dtype());
  expect_size("out", args.out, 0, shape.batch, "batch");
  expect_size("out", args.out, 1, shape.query_heads, "heads");
  expect_size("out", args.out, 2, shape.queries, "queries");
  expect_size("out", args.out, 3, shape.value_dim, "value_dim");
  expect_contiguous_rows("out", args.out);
  if (!args.lse.empty()) {
    expect_rank("lse", args.lse, 3, "(batch, heads, queries)");
    expect_type("lse", args.lse, DType::f32);
    expect_size("lse", args.lse, 0, shape.batch, "batch");
    expect_size("lse", args.lse, 1, shape.query_heads, "heads");
    expect_size("lse", args.lse, 2, shape.queries, "queries");
    expect_contiguous_rows("lse", args.lse);
  }
  if (args.need_weights == Weights::none) {
    if (!args.weights.empty()) fail("need_weights: expected mean or heads when weights is given, got none");
    return;
  }
  if (args.need_weights != Weights::mean && args.need_weights != Weights::heads) {
    fail("need_weights: expected none, mean or heads, got ", static_cast<int>(args.need_weights));
  }
  const bool mean = args.need_weights == Weights::mean;
  expect_rank("weights", args.weights, mean ? 3 : 4,
              mean ? "(batch, queries, keys)" : "(batch, heads, queries, keys)");
  expect_type("weights", args.weights, args.query.dtype());
  expect_size("weights", args.weights, 0, shape.batch, "batch");
  if (!mean) expect_size("weights", args.weights, 1, shape.query_heads, "heads");
  expect_size("weights", args.weights, -2, shape.queries, "queries");
  expect_size("weights", args.weights, -1, shape.keys, "keys");
  expect_contiguous_rows("weights", args.weights);
}

void check_masks(const AttendArgs &args, const AttendShape &shape) {
  const int64_t full[] = {shape.batch, shape.query_heads, shape.queries, shape.keys};
  const auto boolean = [&](const char *argument, const TensorView &view) {
    if (view.empty()) return;
    expect_type(argument, view, DType::boolean);
    check_broadcast(argument, view, full, 4);
  };
  const auto additive = [&](const char *argument, const TensorView &view) {
    if (view.empty()) return;
    check_float_mask(argument, view);
    check_broadcast(argument, view, full, 4);
  };
  boolean("keep_mask", args.keep_mask);
  boolean("block_mask", args.block_mask);
  additive("add_mask", args.add_mask);
  additive("dense_bias", args.dense_bias);

  if (!args.key_keep_mask.empty()) {
    expect_type("key_keep_mask", args.key_keep_mask, DType::boolean);
    check_key_mask("key_keep_mask", args.key_keep_mask, shape);
  }
  if (!args.key_block_mask.empty()) {
    expect_type("key_block_mask", args.key_block_mask, DType::boolean);
    check_key_mask("key_block_mask", args.key_block_mask, shape);
  }
  if (!args.key_add_mask.empty()) {
    check_float_mask("key_add_mask", args.key_add_mask);
    check_key_mask("key_add_mask", args.key_add_mask, shape);
  }
  if (!args.key_lengths.empty()) {
    const DType type = args.key_lengths.dtype();
    if (type != DType::i32 && type != DType::i64) {
      fail("key_lengths: expected type i32 or i64, got ", name_of(type));
    }
    if (args.key_lengths.rank() != 1 || args.key_lengths.size(0) != shape.batch) {
      fail("key_lengths: expected shape ", shape_text(shape.batch), ", got ", args.key_lengths.shape_text());
    }
  }
}

void check_options(const AttendArgs &args, const AttendShape &shape) {
  if (args.scale && !std::isfinite(*args.scale)) fail("scale: expected a finite number, got ", *args.scale);
  if (!std::isfinite(args.softcap) || args.softcap < 0) {
    fail("softcap: expected a finite number of at least 0, got ", args.softcap);
  }
  if (args.causal != Causal::none && args.causal != Causal::bottom_right && args.causal != Causal::top_left) {
    fail("causal: expected none, bottom_right or top_left, got ", static_cast<int>(args.causal));
  }
  if (args.window_left < -1) fail("window_left: expected at least -1, got ", args.window_left);
  if (args.window_right < -1) fail("window_right: expected at least -1, got ", args.window_right);
  if (args.rope) {
    const Rope &rope = *args.rope;
    if (rope.layout != Rope::Layout::interleaved && rope.layout != Rope::Layout::half) {
      fail("rope: expected layout interleaved or half, got ", static_cast<int>(rope.layout));
    }
    expect_rank("inv_freq", rope.inv_freq, 1, "(rotary_dim / 2)");
    expect_type("inv_freq", rope.inv_freq, DType::f32);
    if (rope.inv_freq.size(0) < 1 || 2 * rope.inv_freq.size(0) > shape.head_dim) {
      fail("inv_freq: expected 1 to ", shape.head_dim / 2, " frequencies for head_dim ", shape.head_dim,
           ", got ", rope.inv_freq.size(0));
    }
  }
}

struct Bytes {
  uintptr_t begin, end;
};

Bytes bytes_of(const TensorView &view) {
  int64_t forward = 0, backward = 0;
  for (int d = 0; d < view.rank(); ++d) {
    const int64_t reach = view.size(d) > 1 ? (view.size(d) - 1) * view.stride(d) : 0;
    (reach < 0 ? backward : forward) += reach;
  }
  const int64_t size = size_of(view.dtype());
  const uintptr_t data = reinterpret_cast<uintptr_t>(view.data());
  return {data + static_cast<uintptr_t>(backward * size),
          data + static_cast<uintptr_t>((forward + 1) * size)};
}

// Whether the view covers every byte between its first and last element, in any order of dimensions.
bool is_dense(const TensorView &view) {
  int64_t reach = 1;
  for (int d = 0; d < view.rank(); ++d) {
    if (view.size(d) > 1) reach += (view.size(d) - 1) * std::abs(view.stride(d));
  }
  return reach <= view.num_elements();
}

// Writing one element twice: a step of some dimension stays within what the smaller steps reach.
void check_no_self_overlap(const char *argument, const TensorView &view) {
  // Dimensions in the order of their steps, by insertion (g++ 12 warns about std::sort of so few).
  int order[kMaxRank], count = 0;
  for (int d = 0; d < view.rank(); ++d) {
    if (view.size(d) <= 1) continue;
    int at = count++;
    for (; at > 0 && std::abs(view.stride(order[at - 1])) > std::abs(view.stride(d)); --at)
      order[at] = order[at - 1];
    order[at] = d;
  }
  int64_t reach = 0;
  for (int i = 0; i < count; ++i) {
    const int64_t step = std::abs(view.stride(order[i]));
    if (step <= reach) fail(argument, ": its elements overlap in memory");
    reach += step * (view.size(order[i]) - 1);
  }
}

// Tensors whose bytes interleave without sharing any are legal (slices of one buffer). That some are shared
// is certain where one of two overlapping ranges is dense, or both start at one place.
void check_overlap(const NamedView &output, const NamedView &other) {
  if (other.view.empty() || other.view.num_elements() == 0) return;
  const Bytes a = bytes_of(output.view), b = bytes_of(other.view);
  if (a.begin >= b.end || b.begin >= a.end) return;
  if (output.view.data() == other.view.data() || is_dense(output.view) || is_dense(other.view)) {
    fail(output.name, ": expected memory of its own, got some that overlaps ", other.name);
  }
}

int64_t integer_at(const TensorView &view, int64_t index) {
  const int64_t at = index * view.stride(0);
  return view.dtype() == DType::i32 ? view.as<int32_t>()[at] : view.as<int64_t>()[at];
}

template <typename T>
void check_finite(const char *argument, const TensorView &view) {
  const int64_t rows = view.rank() == 2 ? view.size(0) : 1, step = view.rank() == 2 ? view.stride(0) : 0;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = 0; i < view.size(-1); ++i) {
      const T value = view.as<T>()[r * step + i * view.stride(-1)];
      // In float32's range, too, which is what kernels hold them in.
      if (!(std::fabs(value) <= std::numeric_limits<float>::max())) {
        fail(argument, ": expected finite numbers, got ", value, " at (", r, ", ", i, ")");
      }
    }
  }
}

void check_finite_positions(const char *argument, const TensorView &view) {
  if (view.empty()) return;
  if (view.dtype() == DType::f32) check_finite<float>(argument, view);
  if (view.dtype() == DType::f64) check_finite<double>(argument, view);
}

}  // namespace

AttendProblem check_shapes(const AttendArgs &args) {
  AttendProblem problem{};
  problem.shape = check_streams(args);
  const AttendShape &shape = problem.shape;
  problem.type = args.query.dtype();
  problem.group = shape.query_heads / shape.kv_heads;
  check_outputs(args, shape);
  check_masks(args, shape);
  check_options(args, shape);
  check_positions("q_positions", args.q_positions, "q_position_mask", args.q_position_mask, shape.batch,
                  shape.queries);
  check_positions("k_positions", args.k_positions, "k_position_mask", args.k_position_mask, shape.batch,
                  shape.keys);
  // What kernels count in 32 bits.
  constexpr int64_t kMost = int64_t{1} << 30;
  const auto expect_at_most = [&](const char *argument, const char *what, int64_t size) {
    if (size > kMost) fail(argument, ": expected at most ", kMost, " ", what, ", got ", size);
  };
  expect_at_most("query", "batches", shape.batch);
  expect_at_most("query", "heads", shape.query_heads);
  expect_at_most("query", "queries", shape.queries);
  expect_at_most("key", "keys", shape.keys);

  problem.scale =
      args.scale ? *args.scale : static_cast<float>(1 / std::sqrt(static_cast<double>(shape.head_dim)));
  problem.hides_keys = !args.key_keep_mask.empty() || !args.key_block_mask.empty() ||
                       !args.key_add_mask.empty() || !args.key_lengths.empty();
  for (const LogitBranch *branch : args.branches) {
    if (!branch) continue;
    branch->check(shape);
    problem.branches.add(branch->name());
  }
  for (int i = 0; i < problem.branches.size; ++i) {
    for (const LogitBranch *branch : args.branches) {
      if (branch && std::strcmp(branch->name(), problem.branches.names[i]) == 0) problem.by_name[i] = branch;
    }
  }
  return problem;
}

std::array<NamedView, kNumTensors> tensors_of(const AttendArgs &args) {
  return {{
      {"out", args.out},
      {"lse", args.lse},
      {"weights", args.weights},
      {"query", args.query},
      {"key", args.key},
      {"value", args.value},
      {"keep_mask", args.keep_mask},
      {"block_mask", args.block_mask},
      {"add_mask", args.add_mask},
      {"dense_bias", args.dense_bias},
      {"key_keep_mask", args.key_keep_mask},
      {"key_block_mask", args.key_block_mask},
      {"key_add_mask", args.key_add_mask},
      {"key_lengths", args.key_lengths},
      {"q_positions", args.q_positions},
      {"k_positions", args.k_positions},
      {"q_position_mask", args.q_position_mask},
      {"k_position_mask", args.k_position_mask},
      {"inv_freq", args.rope ? args.rope->inv_freq : TensorView()},
  }};
}

void check_memory(const AttendArgs &args) {
  const std::array<NamedView, kNumTensors> tensors = tensors_of(args);
  const auto check_pointer = [](const NamedView &tensor) {
    if (tensor.view.empty() || tensor.view.num_elements() == 0) return;
    if (tensor.view.data() == nullptr) fail(tensor.name, ": expected data, got null");
    if (reinterpret_cast<uintptr_t>(tensor.view.data()) %
            static_cast<uintptr_t>(size_of(tensor.view.dtype())) !=
        0) {
      fail(tensor.name, ": expected data aligned to its type ", name_of(tensor.view.dtype()));
    }
  };
  for (const NamedView &tensor : tensors) check_pointer(tensor);
  for (size_t i = 0; i < kNumOutputs; ++i) {
    const NamedView &output = tensors[i];
    if (output.view.empty() || output.view.num_elements() == 0) continue;
    check_no_self_overlap(output.name, output.view);
    for (size_t j = kNumOutputs; j < kNumTensors; ++j) check_overlap(output, tensors[j]);
    for (size_t j = 0; j < i; ++j) check_overlap(output, tensors[j]);
  }
}

void check_values(const AttendArgs &args, const AttendProblem &problem) {
  for (int64_t b = 0; b < (args.key_lengths.empty() ? 0 : problem.shape.batch); ++b) {
    const int64_t length = integer_at(args.key_lengths, b);
    if (length < 0 || length > problem.shape.keys) {
      fail("key_lengths: expected 0 to ", problem.shape.keys, ", got ", length, " at ", b);
    }
  }
  check_finite_positions("q_positions", args.q_positions);
  check_finite_positions("k_positions", args.k_positions);
  if (args.rope) check_finite<float>("inv_freq", args.rope->inv_freq);
}

}  // namespace posattn
