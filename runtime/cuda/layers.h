// Layers on a GPU: any class of runtime/layers, made with a device.
//
//   const CudaDevice gpu;
//   LayerOptions options;
//   options.num_heads = 8;
//   options.device = &gpu;
//   const RopeAttention layer = RopeAttention::load(file, "blocks.3.attn.", options);
//   CudaCall call;
//   call.stream = {stream, 0};
//   ForwardArgs args;  // of tensors on the GPU
//   args.cuda = &call;
//   layer.forward_into(args, outputs);
#pragma once

#include "runtime/cuda/kv_cache.h"
#include "runtime/cuda/stream.h"
#include "runtime/layers/layer_steps.h"

namespace posattn {

// Copies the weights to a GPU, once, and waits for that. Products are cuBLASLt's (libcublasLt.so.13 or .12),
// which is looked for here: an Error says that it is missing. All sums are made in float32.
//
// Float32 keeps its accuracy. On cards whose tensor cores are far ahead of CUDA cores (compute
// capability 8.0, 9.0, 10.0 and 10.3), a product of 256 tokens or more, of at least 128 channels to at least
// 384, is one of bfloat16: each float32 is the sum of three such numbers, exactly, and six products of these
// have errors like those of float32 on CUDA cores (split_float.h). Weights are kept in both forms, four times
// float32's memory. Inputs below 1e-30 lose digits there; weights with a row whose largest number is below
// 5e-20 or above 1e19 are multiplied on CUDA cores, as is all else. No tf32.
class CudaDevice : public LayerDevice {
 public:
  explicit CudaDevice(const CudaStream &stream = {}) : stream_(stream) {}
  std::shared_ptr<const PlacedLayer> place(const LayerWeights &weights, const LayerDims &dims,
                                           bool add_zero_attn, PositionSet positions) const override;

 private:
  CudaStream stream_;
};

// How forward_into() of a layer on a GPU runs: it puts the call onto the stream and returns. Nothing is
// copied or waited for, and a stream under capture records it. Every tensor of the call is on the GPU, and so
// is its cache (a CudaKvCache, which the layer's make_cache() makes). What tensors hold is not looked at:
// positions must be finite, lengths are clamped, and a position outside of a learned table makes its row NaN.
struct CudaCall {
  CudaStream stream;
  // On the GPU, 256-byte aligned, workspace_size(args) bytes at least, for this call alone until the stream
  // is done with it. Null: from the stream's memory pool.
  void *workspace = nullptr;
  size_t workspace_size = 0;
};

}  // namespace posattn
