// The interface of every attention layer: one forward for all positional branches, so that encoder and
// decoder layers call each of them alike.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "runtime/attend.h"
#include "runtime/kv_cache.h"
#include "runtime/layers/scratch.h"
#include "runtime/tensor.h"

namespace posattn {

struct CudaCall;  // runtime/cuda/layers.h

// What may be asked of any layer, besides the streams. Tk counts all keys, cached ones included. Everything
// composes; a layer ignores the arguments that its branches do not use.
struct ForwardOptions {
  // (P), (1, P) or (B, P), finite, f32, f64, i32 or i64. Default: 0, 1, 2, ... for keys, and for queries too,
  // but with a cache that this call appends to, queries continue where it ended. Not padding masks: where a
  // position mask is false the token takes part in attention without positional treatment.
  TensorView q_positions, k_positions;          // P = Tq, P = Tk
  TensorView q_position_mask, k_position_mask;  // boolean

  TensorView keep_mask;   // boolean, true = attend (PyTorch's SDPA, ESPnet); broadcast to (B, H, Tq, Tk)
  TensorView block_mask;  // boolean, true = hidden (torch.nn.MultiheadAttention)
  TensorView add_mask;    // added to the logits; -inf hides
  TensorView dense_bias;  // the same, as a positional branch of this call

  TensorView key_keep_mask;   // (B, Tk) boolean, true = attend
  TensorView key_block_mask;  // (B, Tk) boolean, true = padding (key_padding_mask of torch)
  TensorView key_add_mask;    // (B, Tk) float
  TensorView key_lengths;     // (B) i32 or i64

  Causal causal = Causal::none;
  int64_t window_left = -1, window_right = -1;  // -1: unbounded
  float softcap = 0;                            // 0: none
  std::optional<float> scale;                   // 1 / sqrt(head_dim) by default
  Weights need_weights = Weights::none;
  bool need_lse = false;

  // New keys and values are appended to the cache, then all of it is attended to. If anything is wrong, a
  // full cache for one, an Error leaves it as it was.
  KvCacheBase *cache = nullptr;
  Scratch *scratch = nullptr;  // optional; keeps intermediate memory from call to call
  // Of layers on a GPU: the stream and workspace of forward_into(). None: the default stream of the layer's
  // GPU, and a workspace from its memory pool.
  const CudaCall *cuda = nullptr;
};

struct ForwardArgs : ForwardOptions {
  TensorView query;  // (B, Tq, E); the layer's dtype, as key and value
  // (B, T, kdim) and (B, T, vdim). Both may be left out when a cache is given: it is attended to as it is
  // (cross-attention that was projected before).
  TensorView key, value;
};

struct ForwardResult {
  Tensor out;      // (B, Tq, E), the layer's dtype
  Tensor weights;  // when asked for: (B, H, Tq, Tk + extra_keys()), or (B, Tq, ..) for the mean over heads
  Tensor lse;      // when asked for: (B, H, Tq) f32
};

// The same, into memory of the caller's; weights and lse are written when given, and must be when asked for.
struct ForwardOutputs {
  MutableTensorView out, weights, lse;
};

class PositionalAttentionBase {
 public:
  virtual ~PositionalAttentionBase() = default;

  // Throws Error, before anything is written, for every argument that does not fit. All tensors are where the
  // layer is; on a GPU the call is put onto its stream, as runtime/cuda/layers.h says.
  virtual void forward_into(const ForwardArgs &args, const ForwardOutputs &outputs) const = 0;
  // With all tensors on the host, wherever the layer is. With one on a GPU they are copied there and back.
  ForwardResult forward(const ForwardArgs &args) const;
  virtual void forward_from_host(const ForwardArgs &args, const ForwardOutputs &outputs) const {
    forward_into(args, outputs);
  }
  // Bytes of workspace that such a call of a layer on a GPU needs.
  virtual size_t workspace_size(const ForwardArgs &) const { return 0; }

  virtual int64_t embed_dim() const = 0;
  virtual int64_t key_dim() const { return embed_dim(); }    // kdim: channels of the key stream
  virtual int64_t value_dim() const { return embed_dim(); }  // vdim
  virtual int64_t num_heads() const = 0;
  virtual int64_t num_kv_heads() const { return num_heads(); }
  virtual DType dtype() const = 0;                  // of the streams
  virtual int64_t extra_keys() const { return 0; }  // bias_k and add_zero_attn of torch: columns at the end
  virtual std::string branches() const { return "none"; }  // for people, e.g. "relative+rope"

  int64_t head_dim() const { return embed_dim() / num_heads(); }
  // Where the layer is. CacheFormat::int8: see KvCache.
  virtual std::unique_ptr<KvCacheBase> make_cache(int64_t batch, int64_t capacity,
                                                  CacheFormat format = CacheFormat::exact) const;
};

}  // namespace posattn
