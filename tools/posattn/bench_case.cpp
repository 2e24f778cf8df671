#include "tools/posattn/bench_case.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "runtime/attend.h"
#include "runtime/cuda/staged.h"
#include "runtime/kv_cache.h"
#include "runtime/linear.h"
#include "runtime/rotary.h"
#include "tests/random.h"
#include "tools/posattn/kernel_filter.h"

namespace posattn::cli {
namespace {

constexpr int64_t kUsualHeadDim = 64;  // for kernels of any head dimension
constexpr int64_t kCachedKeys = 8192;  // where no number is given
constexpr const char *kOperations = "GFLOP/s", *kBytes = "GB/s";

// A million numbers, again and again: making them all would take longer than what is timed.
Tensor random_tensor(DType type, std::initializer_list<int64_t> shape) {
  constexpr int64_t kNumbers = 1 << 20;
  Tensor tensor(type, shape);
  const int64_t count = tensor.view().num_elements(), some = std::min(count, kNumbers);
  oracle::Random random(1);
  Tensor numbers(DType::f32, {some});
  for (int64_t i = 0; i < some; ++i) numbers.as<float>()[i] = static_cast<float>(2 * random.uniform() - 1);
  const Tensor stored = numbers.to(type);
  char *const to = static_cast<char *>(tensor.as<void>());
  for (int64_t at = 0; at < count; at += some) {
    std::memcpy(to + at * size_of(type), stored.view().data(),
                static_cast<size_t>(std::min(some, count - at) * size_of(type)));
  }
  return tensor;
}

int64_t head_dim(const KernelInfo &kernel) { return kernel.head_dim ? kernel.head_dim : kUsualHeadDim; }

// A call of attend() with all the memory that it uses.
struct Attention {
  AttendArgs args;
  Tensor query, key, value, out, weights, slopes, relative, t5, dense, workspace;
  std::unique_ptr<KvCache> cache;
  std::vector<std::unique_ptr<LogitBranch>> branches;
  // On a GPU.
  CudaStream stream;
  std::unique_ptr<StagedAttend> staged;
  CudaMemory gpu_workspace;

  Attention(const KernelInfo &kernel, const BenchSizes &sizes, int64_t queries, int64_t keys, bool cached,
            CacheFormat format) {
    const DType type = type_of(kernel);
    const int64_t dim = head_dim(kernel);
    query = random_tensor(type, {sizes.batch, sizes.heads, queries, dim});
    key = random_tensor(type, {sizes.batch, sizes.heads, keys, dim});
    value = random_tensor(type, {sizes.batch, sizes.heads, keys, dim});
    out = Tensor(type, {sizes.batch, sizes.heads, queries, dim});
    args.query = query.view();
    args.out = out;
    if (sizes.causal) args.causal = Causal::bottom_right;
    if (cached) {
      cache = std::make_unique<KvCache>(sizes.batch, sizes.heads, dim, dim, keys, type, format);
      cache->append(key.view(), value.view());
      if (format == CacheFormat::int8) key = cache->key_rows(), value = cache->value_rows();
      args.cache = cache.get();
    } else {
      args.key = key.view();
      args.value = value.view();
    }
    if (is_kind(kernel, "weights")) {
      weights = Tensor(type, {sizes.batch, sizes.heads, queries, keys});
      args.weights = weights;
      args.need_weights = Weights::heads;
    }
    const bool in_tiles = is_kind(kernel, "prefill_dense_16");
    if (in_tiles || is_kind(kernel, "prefill_dense")) {
      dense = random_tensor(in_tiles ? type : DType::f32, {1, 1, queries, keys});
      args.dense_bias = dense.view();
    }
    // Any branch that can be tabulated makes a table.
    add_branches(
        is_kind(kernel, "prefill_offsets") ? std::vector<std::string>{"relative"} : branch_names(kernel),
        sizes.heads);
    if (runs_on_gpu(kernel.target)) {
      staged = std::make_unique<StagedAttend>(args, stream);
      gpu_workspace = CudaMemory(attend_workspace_size(staged->args(), stream), stream);
    } else {
      const auto bytes = static_cast<int64_t>(attend_workspace_size(args));
      workspace = Tensor(DType::f32, {bytes / size_of(DType::f32) + 1});
    }
  }

  void add_branches(const std::vector<std::string> &names, int64_t heads) {
    constexpr int64_t kRelativeRows = 257, kT5Buckets = 32;
    for (const std::string &name : names) {
      if (name == "relative") {
        relative = random_tensor(DType::f32, {heads, kRelativeRows});
        branches.push_back(std::make_unique<Relative>(relative.view()));
      } else if (name == "alibi") {
        slopes = Tensor(DType::f32, {heads});
        Alibi::default_slopes(heads, slopes.as<float>());
        branches.push_back(std::make_unique<Alibi>(slopes.view()));
      } else if (name == "t5") {
        t5 = random_tensor(DType::f32, {kT5Buckets, heads});
        branches.push_back(std::make_unique<T5>(t5.view()));
      }
    }
    for (size_t i = 0; i < branches.size(); ++i) args.branches.at(i) = branches[i].get();
  }

  // The first and, where positions do not matter, the last rows of the first batch. A causal call that ends
  // with row n sees the keys up to it.
  oracle::Comparison check() const {
    if (staged) staged->download();
    constexpr int64_t kRows = 3;
    const int64_t rows = query.view().size(2), keys = key.view().size(2);
    const int64_t heads = branches.empty() ? 1 : query.view().size(1);
    const auto check_rows = [&](int64_t begin, int64_t end) {
      AttendArgs part = args;
      const auto some = [&](const auto &view) { return view.slice(0, 0, 1).slice(1, 0, heads); };
      part.query = some(query.view()).slice(2, begin, end);
      const int64_t last_key = args.causal == Causal::none ? keys : keys - rows + end;
      part.cache = nullptr;
      part.key = some(key.view()).slice(2, 0, last_key);
      part.value = some(value.view()).slice(2, 0, last_key);
      part.out = some(args.out).slice(2, begin, end);
      if (!dense.empty()) part.dense_bias = dense.view().slice(2, begin, end).slice(3, 0, last_key);
      if (!weights.empty()) part.weights = some(args.weights).slice(2, begin, end).slice(3, 0, last_key);
      return oracle::compare_outputs(part);
    };
    const oracle::Comparison first = check_rows(0, std::min(rows, kRows));
    return first.ok && branches.empty() && rows > kRows ? check_rows(rows - kRows, rows) : first;
  }

  void run() const {
    if (staged) {
      attend(staged->args(), stream, gpu_workspace.data(), gpu_workspace.size());
    } else {
      attend(args, workspace.as<void>(),
             static_cast<size_t>(workspace.view().num_elements() * size_of(DType::f32)));
    }
  }
};

std::string heads_text(const BenchSizes &sizes) {
  return std::to_string(sizes.batch) + "x" + std::to_string(sizes.heads) + " heads, ";
}

BenchWork attention_work(const KernelInfo &kernel, const BenchSizes &sizes, bool decode,
                         CacheFormat format = CacheFormat::exact) {
  const int64_t queries = decode ? 1 : sizes.queries;
  const int64_t keys = sizes.keys ? sizes.keys : decode ? kCachedKeys : queries;
  const bool weights = is_kind(kernel, "weights"), on_gpu = runs_on_gpu(kernel.target);
  const bool int8 = format == CacheFormat::int8;
  // A GPU has no packed cache.
  const auto call =
      std::make_shared<Attention>(kernel, sizes, queries, keys, (decode || int8) && !on_gpu, format);
  const double row = static_cast<double>(sizes.batch * sizes.heads * keys * head_dim(kernel));
  BenchWork work;
  work.run = [call] { call->run(); };
  if (on_gpu) work.finish = [call] { synchronize(call->stream); };
  work.check = [call] { return call->check(); };
  // A product is a multiplication and an addition; the weights are computed from the keys once more. Decoding
  // reads every key and value once.
  const double products = weights ? 3 : 2;
  const int64_t bytes = int8 ? 1 : size_of(type_of(kernel));
  work.amount =
      decode ? 2 * row * static_cast<double>(bytes) : 2 * products * row * static_cast<double>(queries);
  work.unit = decode ? kBytes : kOperations;
  work.sizes = heads_text(sizes) + std::to_string(queries) + "x" + std::to_string(keys) +
               (sizes.causal ? " causal" : "") + (weights ? ", attention included" : "");
  return work;
}

// Filling a cache: pack_keys and pack_values.
BenchWork packing_work(const KernelInfo &kernel, const BenchSizes &sizes) {
  struct Packing {
    Tensor key, value;
    KvCache cache;
  };
  const DType type = type_of(kernel);
  const int64_t dim = kernel.head_dim, keys = sizes.keys ? sizes.keys : kCachedKeys;
  const auto call =
      std::make_shared<Packing>(Packing{random_tensor(type, {sizes.batch, sizes.heads, keys, dim}),
                                        random_tensor(type, {sizes.batch, sizes.heads, keys, dim}),
                                        KvCache(sizes.batch, sizes.heads, dim, dim, keys, type)});
  BenchWork work;
  work.run = [call] {
    call->cache.clear();
    call->cache.append(call->key.view(), call->value.view());
  };
  work.amount = 2 * static_cast<double>(call->key.view().num_elements() * size_of(type));
  work.unit = kBytes;
  work.sizes = heads_text(sizes) + std::to_string(keys) + " keys and values";
  return work;
}

BenchWork rotary_work(const KernelInfo &kernel, const BenchSizes &sizes) {
  struct Rotation {
    Tensor x, y, inv_freq;
    Rope rope;
  };
  const DType type = type_of(kernel);
  const auto call = std::make_shared<Rotation>(
      Rotation{random_tensor(type, {sizes.batch, sizes.heads, sizes.queries, kUsualHeadDim}),
               Tensor(type, {sizes.batch, sizes.heads, sizes.queries, kUsualHeadDim}),
               Tensor(DType::f32, {kUsualHeadDim / 2}),
               {}});
  Rope::default_inv_freq(kUsualHeadDim, 10000, call->inv_freq.as<float>());
  call->rope.inv_freq = call->inv_freq.view();
  BenchWork work;
  work.run = [call] { rotate(call->rope, call->x.view(), {}, {}, call->y); };
  work.check = [call] {
    const std::vector<double> exact =
        oracle::values_of(oracle::reference_rotated(call->x.to(DType::f32).view(), call->rope).view());
    const Tensor plain = oracle::reference_rotated(call->x.view(), call->rope);
    return oracle::compare("y", call->y.view(), exact, oracle::values_of(plain.view()));
  };
  work.amount = static_cast<double>(call->x.view().num_elements() * size_of(type));
  work.unit = kBytes;
  work.sizes = heads_text(sizes) + std::to_string(sizes.queries) + " tokens";
  return work;
}

// The first and the last row of y = x W^T.
oracle::Comparison check_rows(const Tensor &x, const Tensor &weight, const Tensor &y, DType type) {
  const int64_t rows = x.view().size(0), in = x.view().size(1), out = weight.view().size(0);
  const Tensor w32 = weight.to(DType::f32), x32 = x.to(DType::f32);
  oracle::Comparison comparison;
  for (const int64_t row : {int64_t{0}, rows - 1}) {
    std::vector<double> exact;
    Tensor plain(DType::f32, {1, out});
    for (int64_t n = 0; n < out; ++n) {
      double sum = 0;
      float sum32 = 0;
      for (int64_t k = 0; k < in; ++k) {
        const float a = x32.as<float>()[row * in + k], b = w32.as<float>()[n * in + k];
        sum += double{a} * double{b};
        sum32 += a * b;
      }
      exact.push_back(sum);
      plain.as<float>()[n] = sum32;
    }
    comparison = oracle::compare("y", y.view().slice(0, row, row + 1), exact,
                                 oracle::values_of(plain.to(type).view()));
    if (!comparison.ok) break;
  }
  return comparison;
}

BenchWork projection_work(const KernelInfo &kernel, const BenchSizes &sizes) {
  struct Projection {
    Tensor x, weight, y;
    Linear linear;
  };
  const DType type = type_of(kernel);
  Tensor weight = random_tensor(type, {sizes.features, sizes.features});
  Linear linear(weight.view(), {}, type);
  const auto call = std::make_shared<Projection>(
      Projection{random_tensor(type, {sizes.rows, sizes.features}), std::move(weight),
                 Tensor(type, {sizes.rows, sizes.features}), std::move(linear)});
  BenchWork work;
  work.run = [call] { call->linear.forward(call->x.view(), call->y); };
  work.check = [call, type] { return check_rows(call->x, call->weight, call->y, type); };
  work.amount = 2.0 * static_cast<double>(sizes.rows * sizes.features * sizes.features);
  work.unit = kOperations;
  work.sizes = std::to_string(sizes.rows) + " rows, " + std::to_string(sizes.features) + "x" +
               std::to_string(sizes.features);
  return work;
}

}  // namespace

BenchWork make_work(const KernelInfo &kernel, const BenchSizes &sizes) {
  if (is_kind(kernel, "prefill_i8")) return attention_work(kernel, sizes, false, CacheFormat::int8);
  if (is_kind(kernel, "decode_i8")) return attention_work(kernel, sizes, true, CacheFormat::int8);
  if (is_prefill(kernel) || is_kind(kernel, "weights")) return attention_work(kernel, sizes, false);
  if (is_decode(kernel)) return attention_work(kernel, sizes, true);
  if (runs_on_gpu(kernel.target)) return {};
  if (is_kind(kernel, "pack_keys")) return packing_work(kernel, sizes);
  if (is_kind(kernel, "rotary")) return rotary_work(kernel, sizes);
  if (is_kind(kernel, "projection")) return projection_work(kernel, sizes);
  return {};
}

}  // namespace posattn::cli
