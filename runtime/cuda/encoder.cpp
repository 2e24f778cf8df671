#include "runtime/cuda/encoder.h"

#include "runtime/cuda/token_call.h"
#include "runtime/error.h"
#include "runtime/layers/position_rows.h"

namespace posattn::cuda {
namespace {

KernelBuffer rows_buffer(const TensorView &rows) {  // (batch, token, channel), contiguous
  return KernelBuffer(rows.data(), DType::f32)
      .dim(rows.size(2), 1)
      .dim(rows.size(1), rows.stride(1))
      .dim(rows.size(0), rows.stride(0));
}

// (rows, T, E) for all batches.
TensorView for_batches(const TensorView &rows, int64_t batch) {
  const int64_t shape[] = {batch, rows.size(1), rows.size(2)};
  const int64_t strides[] = {rows.size(0) == 1 ? 0 : rows.stride(0), rows.stride(1), 1};
  return TensorView(rows.data(), rows.dtype(), 3, shape, strides);
}

constexpr int32_t kNoActivation = -1;

}  // namespace

CudaEncoder::CudaEncoder(const PositionEncoder &encoder, const CudaStream &stream) : dim_(encoder.dim()) {
  const EncoderForm form = encoder.form();
  if (!form.table.empty()) {
    table_ = CudaTensor(form.table, stream);
    return;
  }
  if (form.frequencies.empty()) {
    fail(
        "position encoder: expected a table, sinusoids, Fourier features or a network for a layer on a GPU, "
        "got one of another kind");
  }
  const auto count = static_cast<int64_t>(form.frequencies.size());
  frequencies_ = CudaTensor(TensorView(form.frequencies.data(), DType::f64, {count}), stream);
  waves_ = CudaTensor(TensorView(form.waves.data(), DType::boolean, {count}), stream);
  scale_ = form.scale;
  if (!form.network) return;
  activation_ = form.network->activation();
  for (const SmallMlp::Layer &layer : form.network->layers()) {
    const TensorView bias = layer.bias.empty() ? TensorView() : TensorView(layer.bias.view());
    maps_.emplace_back(std::vector<CudaLinear::Part>{{layer.weight.view(), bias}}, DType::f32, stream);
  }
}

TensorView CudaEncoder::encode(const TokenArgs &tokens, int64_t batch, int64_t count, LayerSteps &steps,
                               const Scope &scope, void *blas_workspace, Launch *launch,
                               const void *unused) const {
  const int64_t batches = std::max(rows_of(tokens.positions), rows_of(tokens.mask));
  if (!table_.empty()) {
    if (tokens.positions.empty() && tokens.mask.empty()) {
      const int64_t shape[] = {batch, count, dim_}, strides[] = {0, dim_, 1};
      return TensorView(table_.view().as<float>() + tokens.first * dim_, DType::f32, 3, shape, strides);
    }
    const MutableTensorView rows = steps.take(DType::f32, {batches, count, dim_});
    if (launch && rows.num_elements() > 0) {
      KernelCall call(simt_kernel("table_rows"), *launch);
      set_positions(call, tokens.positions, tokens.mask, batches, tokens.first, unused);
      call.set("table", kernel_buffer(table_.view())).set("out", rows_buffer(rows)).run();
    }
    return for_batches(rows, batch);
  }

  MutableTensorView rows = steps.take(DType::f32, {batches, count, frequencies_.view().size(0)});
  const bool any = rows.num_elements() > 0;
  if (launch && any) {
    KernelCall call(simt_kernel("waves"), *launch);
    set_positions(call, tokens.positions, tokens.mask, batches, tokens.first, unused);
    call.set("scale", scale_).set("frequencies", kernel_buffer(frequencies_.view()));
    call.set("wave", kernel_buffer(waves_.view())).set("out", rows_buffer(rows)).run();
  }
  for (size_t i = 0; i < maps_.size(); ++i) {
    const int64_t out = maps_[i].out_features();
    const MutableTensorView next = steps.take(DType::f32, {batches, count, out});
    const MutableTensorView split =
        steps.take(DType::boolean, {maps_[i].split_size(batches * count, 0, out)});
    if (launch && any) {
      maps_[i].forward(rows, next, 0, out, scope, blas_workspace, split.data());
      const bool last = i + 1 == maps_.size();
      const TensorView mask = last ? tokens.mask : TensorView();
      KernelCall call(simt_kernel("activation"), *launch);
      call.set("form", last ? kNoActivation : static_cast<int32_t>(activation_));
      call.set("has_mask", !mask.empty()).set("mask", of_tokens(mask, DType::boolean, batches, unused));
      call.set("in", rows_buffer(next)).set("out", rows_buffer(next)).run();
    }
    rows = next;
  }
  return for_batches(rows, batch);
}

}  // namespace posattn::cuda
