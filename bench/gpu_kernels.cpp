// Attention kernels for tensor cores as functions that gpu_attention.py calls on PyTorch's tensors: a kernel
// by its kind, target and head dimension, without the choice that attend() makes.
#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <string>

#include "runtime/cuda/context.h"
#include "runtime/cuda/launch.h"
#include "runtime/cuda/targets.h"
#include "runtime/cuda/tensor_map.h"
#include "runtime/dispatch.h"
#include "runtime/error.h"
#include "runtime/kernel_call.h"

using namespace posattn;

namespace {

thread_local std::string last_error;

}  // namespace

extern "C" {

// A tensor (batch, head, token, channel) or part of such dimensions, the last one first; data is null if
// absent.
struct GpuTensor {
  void *data;
  int64_t size[4], stride[4];
};

struct GpuAttention {
  const char *kind, *target;
  int32_t is_bfloat, head_dim;
  GpuTensor q, k, v, out, lse;  // lse: (batch, head, token)
  GpuTensor offsets;            // (head, offset), padded by 256 at both ends; optional
  GpuTensor dense;  // (batch, head, query, key) float32, of q's type for prefill_dense_16; optional
  void *zeros;      // some KB on the GPU, in place of what is absent
  float scale;
  int32_t is_causal, blocks, offset_zero;
  void *stream;
};

// Null, or what went wrong.
const char *gpu_attention(const GpuAttention *a) {
  try {
    const auto buffer = [a](const GpuTensor &t, DType type, int dims) {
      KernelBuffer b(t.data ? t.data : a->zeros, type);
      for (int d = 0; d < dims; ++d) b.dim(t.data ? t.size[d] : 1, t.data ? t.stride[d] : d == 0);
      return b;
    };
    const DType type = a->is_bfloat ? DType::bf16 : DType::f16;
    KernelQuery query;
    query.kind = a->kind;
    query.type = type;
    query.target = find_target(a->target);
    query.head_dim = a->head_dim;
    query.queries = a->q.size[1], query.keys = a->k.size[1];
    const Kernel &kernel = require_kernel(query);
    const cuda::Scope scope({a->stream, 0});
    cuda::Launch launch{&scope.context(), scope.stream(), "", {}};
    KernelCall call(kernel, launch);
    const GpuTensor none = {};
    const KernelBuffer q = buffer(a->q, type, 4), k = buffer(a->k, type, 4), v = buffer(a->v, type, 4);
    std::array<cuda::TensorMap, 4> maps;
    const bool dense_tiles = kernel.find("dense_map") >= 0;
    KernelBuffer bias = buffer(a->dense, type, 4);
    for (int d = 2; d < 4; ++d) {
      if (bias.stride[d] == 0) bias.extent[d] = 1;  // shared
    }
    int count = 0;
    for (const auto &[name, tensor] : {std::pair("q_map", q), std::pair("k_map", k), std::pair("v_map", v),
                                       std::pair("dense_map", bias)}) {
      if (kernel.find(name) < 0) continue;
      maps[count] = cuda::tensor_map(tensor, kernel.estimate(name, 0, 0));
      call.set(name, maps[count++]);
    }
    const int64_t queries = a->q.size[1], keys = a->k.size[1], unbounded = queries + keys;
    const auto number = [](int64_t value) { return static_cast<int32_t>(value); };
    call.set("q", q).set("k", k).set("v", v).set("out", buffer(a->out, type, 4));
    call.set("lse", buffer(a->lse, DType::f32, 3));
    call.set("scale", a->scale).set("softcap", 0.f).set("row_heads", 1).set("split_blocks", 1);
    call.set("group", number(a->q.size[2] / a->k.size[2])).set("blocks", a->blocks);
    call.set("diagonal", number(keys - queries)).set("window_left", number(unbounded));
    call.set("window_right", a->is_causal ? 0 : number(unbounded)).set("first_query", 0);
    call.set("has_lengths", false).set("lengths", buffer(none, DType::i32, 1)).set("has_positions", false);
    call.set("has_visible", false).set("visible", buffer(none, DType::boolean, 2));
    call.set("has_offsets", a->offsets.data != nullptr).set("offsets", buffer(a->offsets, DType::f32, 2));
    call.set("offset_zero", a->offset_zero);
    call.set("has_masks", a->dense.data != nullptr).set("has_dense", a->dense.data != nullptr);
    call.set("dense_bias", buffer(dense_tiles ? none : a->dense, DType::f32, 4));
    call.set("dense_of_head", number(bias.extent[2] > 1)).set("dense_of_batch", number(bias.extent[3] > 1));
    call.set("has_add", false).set("has_keep", false);
    call.set("add_mask", buffer(none, DType::f32, 4)).set("keep_mask", buffer(none, DType::boolean, 4));
    call.set("keep_value", true).set("has_key_bias", false).set("key_bias", buffer(none, DType::f32, 2));
    for (const char *name : {"q_positions", "k_positions", "q_positions_low", "k_positions_low"}) {
      call.set(name, buffer(none, DType::f32, 2));
    }
    call.run();
    return nullptr;
  } catch (const std::exception &error) {
    last_error = error.what();
    return last_error.c_str();
  }
}

}  // extern "C"
