#include "runtime/cuda/layer_call.h"

#include <algorithm>

#include "runtime/cuda/attend_unchecked.h"
#include "runtime/cuda/copy_rows.h"
#include "runtime/cuda/kv_cache.h"
#include "runtime/cuda/rotary.h"
#include "runtime/cuda/token_call.h"
#include "runtime/error.h"

namespace posattn::cuda {
namespace {

constexpr int64_t kAlignment = 256;
// In place of memory while it is measured: no two pieces have one address.
void *nowhere() { return reinterpret_cast<void *>(uintptr_t{kAlignment}); }

// (channel, token, batch)
KernelBuffer stream_buffer(const TensorView &x) {
  KernelBuffer buffer(x.data(), x.dtype());
  for (int d = 2; d >= 0; --d) buffer.dim(x.size(d), d == 2 ? 1 : x.size(d) > 1 ? x.stride(d) : 0);
  return buffer;
}

// Calls run(some batches) for all batches at once, as far as grids go, or for one after the other where
// 32-bit offsets demand it.
template <typename Run>
void by_batches(bool fits, int64_t batch, const Run &run) {
  constexpr int64_t kMostBatches = 65535;
  const int64_t step = fits ? kMostBatches : 1;
  for (int64_t b = 0; b < batch; b += step) run(b, std::min(b + step, batch));
}

}  // namespace

CudaSteps::CudaSteps(const PlacedLayer &layer, const LayerMemory &weights, const CudaStream &stream,
                     const Scope &scope, void *memory)
    : layer_(layer),
      weights_(weights),
      stream_(stream),
      scope_(scope),
      runs_(memory != nullptr),
      workspace_(memory ? memory : nowhere()),
      launch_{&scope.context(), scope.stream(), {}, {}},
      blas_workspace_(workspace_.take_bytes(CudaLinear::kWorkspace)) {}

void CudaSteps::check_memory(const char *name, const TensorView &view) const {
  if (runs_) check_address(name, view.data(), scope_);
}

void CudaSteps::check_cache(const KvCacheBase &cache) const {
  const auto *const own = dynamic_cast<const CudaKvCache *>(&cache);
  if (!own) fail("cache: expected one on the GPU, as make_cache() of this layer makes");
  if (runs_ && cache.batch() > 0 && cache.capacity() > 0) {
    check_address("cache", own->keys().data(), scope_);
  }
}

MutableTensorView CudaSteps::take(DType type, std::initializer_list<int64_t> shape) {
  int64_t bytes = size_of(type);
  for (int64_t size : shape) bytes = checked_product(bytes, size, "workspace");
  return MutableTensorView(workspace_.take_bytes(bytes), type, shape);
}

TensorView CudaSteps::counting(int64_t first, int64_t count) {
  const MutableTensorView both = take(DType::f32, {2, count});  // numbers, and what float32 lacks of them: 0
  if (runs_ && count > 0) {
    KernelCall call(simt_kernel("positions"), launch_);
    set_positions(call, {}, {}, 1, first, weights_.unused.view().data());
    KernelBuffer out(both.data(), DType::f32);
    call.set("out", out.dim(count, 1).dim(1, count).dim(2, count)).run();
  }
  return both.select(0, 0);
}

TensorView CudaSteps::encode(const TokenArgs &tokens, int64_t batch, int64_t count, const char *what) {
  const PositionEncoder &encoder = *layer_.positions().encoder();
  if (tokens.positions.empty() && tokens.mask.empty() && count > 0) {
    encoder.check(static_cast<double>(tokens.first), what);
    encoder.check(static_cast<double>(tokens.first + count - 1), what);
  }
  return weights_.encoder->encode(tokens, batch, count, *this, scope_, blas_workspace_,
                                  runs_ ? &launch_ : nullptr, weights_.unused.view().data());
}

// cuBLASLt wants columns that do not overlap, and no steps backwards.
TensorView CudaSteps::spread_out(const TensorView &x) {
  const bool tokens = x.size(1) <= 1 || x.stride(1) >= x.size(2);
  const bool batches = x.size(0) <= 1 || x.stride(0) >= x.size(2);
  if (tokens && batches) return x;
  const MutableTensorView copied = take(x.dtype(), {x.size(0), x.size(1), x.size(2)});
  if (runs_) copy_rows(x.heads(1), {}, copied.heads(1), scope_);
  return copied;
}

void CudaSteps::project(int first, int last, const TensorView &x, const TensorView &addend,
                        const MutableTensorView &y) {
  TensorView in;
  if (addend.empty()) {
    in = spread_out(x);
  } else {
    const MutableTensorView sum = take(x.dtype(), {x.size(0), x.size(1), x.size(2)});
    if (runs_) {
      const KernelBuffer from = stream_buffer(x), rows = stream_buffer(addend), to = stream_buffer(sum);
      const bool fits = fits_kernel(from) && fits_kernel(rows) && fits_kernel(to);
      by_batches(fits, x.size(0), [&](int64_t begin, int64_t end) {
        KernelCall call(simt_kernel("add_rows", x.dtype()), launch_);
        call.set("x", slice(from, 2, begin, end)).set("rows", slice(rows, 2, begin, end));
        call.set("out", slice(to, 2, begin, end)).run();
      });
    }
    in = sum;
  }
  const LayerMemory::PartOfMap &begin = weights_.parts[first], &end = weights_.parts[last - 1];
  multiply(weights_.in[static_cast<size_t>(begin.map)], begin.begin, end.end, in, y);
}

void CudaSteps::project_out(const TensorView &x, const MutableTensorView &y) {
  multiply(*weights_.out, 0, weights_.out->out_features(), x, y);
}

void CudaSteps::multiply(const CudaLinear &map, int64_t begin, int64_t end, const TensorView &x,
                         const MutableTensorView &y) {
  const int64_t size = map.split_size(x.size(0) * x.size(1), begin, end);
  if (size > split_size_) split_ = workspace_.take_bytes(split_size_ = size);
  if (runs_) map.forward(x, y, begin, end, scope_, blas_workspace_, split_);
}

void CudaSteps::rotate(const TensorView &x, const TokenArgs &tokens, const MutableTensorView &y) {
  const auto varies = [](const TensorView &view) { return view.rank() == 2 && view.size(0) > 1; };
  Rotation rotation;
  rotation.batches = varies(tokens.positions) || varies(tokens.mask) ? x.size(0) : 1;
  const int64_t size = rotation_table_size(*weights_.rope, x.size(2), rotation.batches);
  rotation.tables = take(DType::f32, {size}).as<float>();
  if (!runs_ || x.num_elements() == 0) return;
  const RotaryKernels kernels{&simt_kernel("rotation"), &simt_kernel("rotary", x.dtype())};
  run_rotary(kernels, *weights_.rope, rotation, tokens.positions, tokens.mask, tokens.first, kernel_buffer(x),
             kernel_buffer(y), weights_.unused.view().data(), launch_);
}

void CudaSteps::append(KvCacheBase &cache, const TensorView &key, const TensorView &value,
                       const TokenArgs *rotation) {
  CudaKvCache &own = static_cast<CudaKvCache &>(cache);
  const CudaKvCache::Rows next = own.next_rows(key.size(2));
  if (rotation) {
    rotate(key, *rotation, next.key);
  } else if (runs_) {
    copy_rows(key, {}, next.key, scope_);
  }
  if (!runs_) return;
  copy_rows(value, {}, next.value, scope_);
  own.advance(key.size(2));
}

void CudaSteps::attend(AttendArgs &args, const KvCacheBase *cache, int64_t length) {
  if (cache) {
    const CudaKvCache &own = static_cast<const CudaKvCache &>(*cache);
    args.key = own.keys(length);
    args.value = own.values(length);
  }
  const auto size = static_cast<int64_t>(attend_workspace_size(args, stream_));
  void *memory = blas_workspace_;  // products are done, or come later
  if (size > CudaLinear::kWorkspace) {
    const auto at = reinterpret_cast<uintptr_t>(workspace_.take_bytes(size + kAlignment));
    memory = reinterpret_cast<void *>((at + kAlignment - 1) / kAlignment * kAlignment);
  }
  if (runs_) attend_unchecked(args, stream_, memory, static_cast<size_t>(size));
}

void CudaSteps::merge_extra_keys(const AttendArgs &args, float scale, const MutableTensorView &weights,
                                 const MutableTensorView &mean) {
  const TensorView &query = args.query;
  const DType type = query.dtype();
  const int64_t batch = query.size(0), heads = query.size(1), queries = query.size(2);
  const MutableTensorView factors = take(DType::f32, {3, batch, heads, queries});
  const MutableTensorView lse = take(DType::f32, {batch, heads, queries});
  if (!runs_ || lse.num_elements() == 0) return;
  const LayerFacts &facts = layer_.facts();
  const auto group = static_cast<int32_t>(facts.dims.heads / facts.dims.kv_heads);
  const void *const unused = weights_.unused.view().data();
  const auto bias = [&](const CudaTensor &tensor) {
    return weights_.has_bias_key ? kernel_buffer(tensor.view()) : unused_buffer(unused, DType::f32, 2);
  };
  const KernelBuffer shares = kernel_buffer(factors), q = kernel_buffer(query), out = kernel_buffer(args.out);
  const KernelBuffer token_lse = kernel_buffer(args.lse), all_lse = kernel_buffer(lse);
  bool fits = fits_kernel(q) && fits_kernel(out) && fits_kernel(token_lse);
  by_batches(fits, batch, [&](int64_t b0, int64_t b1) {
    const KernelBuffer some_shares = slice(shares, 2, b0, b1), some_out = slice(out, 3, b0, b1);
    KernelCall call(simt_kernel("extra_factors", type), launch_);
    call.set("scale", scale).set("softcap", args.softcap).set("group", group);
    call.set("has_bias", weights_.has_bias_key).set("has_zero", weights_.has_zero_key);
    call.set("query", slice(q, 3, b0, b1)).set("key", bias(weights_.bias_key));
    call.set("token_lse", slice(token_lse, 2, b0, b1)).set("factors", some_shares);
    call.set("lse", slice(all_lse, 2, b0, b1)).run();
    KernelCall merge(simt_kernel("extra_out", type), launch_);
    merge.set("group", group).set("has_bias", weights_.has_bias_key).set("factors", some_shares);
    merge.set("value", bias(weights_.bias_value)).set("in", some_out).set("out", some_out).run();
  });
  // Rows of sums as rows of one token.
  const auto as_rows = [](const TensorView &view) { return view.split(2, 1, view.size(2)); };
  const TensorView to = as_rows(args.lse);
  int64_t shape[4], strides[4];
  for (int d = 0; d < 4; ++d) shape[d] = to.size(d), strides[d] = to.stride(d);
  copy_rows(as_rows(lse), {}, MutableTensorView(args.lse.data(), DType::f32, 4, shape, strides), scope_);

  if (weights.empty()) return;
  const KernelBuffer all = kernel_buffer(weights), means = mean.empty() ? all : kernel_buffer(mean);
  fits = fits_kernel(all) && fits_kernel(means);
  by_batches(fits, batch, [&](int64_t b0, int64_t b1) {
    const KernelBuffer some = slice(all, 3, b0, b1);
    KernelCall call(simt_kernel("extra_weights", type), launch_);
    call.set("has_bias", weights_.has_bias_key);
    call.set("keys", static_cast<int32_t>(weights.size(3) - facts.extra_keys));
    call.set("factors", slice(shares, 2, b0, b1)).set("in", some).set("out", some).run();
    if (mean.empty()) return;
    KernelCall average(simt_kernel("mean_weights", type), launch_);
    average.set("in", some).set("out", slice(means, 2, b0, b1)).run();
  });
}

}  // namespace posattn::cuda
