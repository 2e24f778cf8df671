// torch's add_bias_kv and add_zero_attn: keys and values that belong to no token, at the end, visible to
// every query whatever the masks say, and without a position.
#pragma once

#include "runtime/tensor.h"

namespace posattn {

// They are merged into the finished attention over the tokens, as one more block of the online softmax: no
// mask has to be widened and no key copied.
class ExtraKeys {
 public:
  ExtraKeys() = default;
  // bias_k, bias_v: (1, 1, kv_heads * d), rounded to `type`, or empty; zero: one key of zeros.
  ExtraKeys(const TensorView &bias_k, const TensorView &bias_v, bool zero, int64_t kv_heads, DType type);
  int count() const { return count_; }

  // query (B, H, Tq, d), as the keys see it. out (B, H, Tq, d), lse (B, H, Tq) and, unless empty, weights
  // (B, H, Tq, Tk + count()) hold the attention over the Tk tokens, and afterwards that over all keys.
  void merge(const TensorView &query, float scale, float softcap, const MutableTensorView &out,
             const MutableTensorView &lse, const MutableTensorView &weights) const;

 private:
  int count_ = 0;
  bool biased_ = false;
  int64_t kv_heads_ = 1;
  Tensor key_, value_;  // (kv_heads, d) f32
};

// mean (B, Tq, K) = the mean of heads (B, H, Tq, K) over H.
void mean_over_heads(const TensorView &heads, const MutableTensorView &mean);

}  // namespace posattn
