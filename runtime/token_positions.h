// Positions of queries or keys, whatever form they came in.
#pragma once

#include <cstdint>
#include <optional>

#include "runtime/positions.h"
#include "runtime/tensor.h"

namespace posattn {

class TokenPositions {
 public:
  // Either may be empty: 0, 1, 2, ..., and a position for every token. Shapes (P), (1, P) or (B, P), checked.
  TokenPositions(const TensorView &positions, const TensorView &mask, int64_t tokens);

  int64_t tokens() const { return tokens_; }
  bool per_batch() const { return per_batch_; }
  bool has(int64_t batch, int64_t token) const {
    return !mask_ || mask_[batch * mask_batch_stride_ + token * mask_stride_] != 0;
  }
  double at(int64_t batch, int64_t token) const;

  bool all_have() const;     // no token is masked
  bool consecutive() const;  // in every batch, each is the one before plus 1

 private:
  int64_t batches() const { return per_batch_ ? batches_ : 1; }

  const void *data_ = nullptr;
  DType type_ = DType::f32;
  int64_t batch_stride_ = 0, stride_ = 0;
  const uint8_t *mask_ = nullptr;
  int64_t mask_batch_stride_ = 0, mask_stride_ = 0;
  int64_t tokens_, batches_ = 1;
  bool per_batch_ = false;
};

// p_k - p_q of key 0 and query 0, if the offset of every pair is that plus (key - query), in all batches, in
// floats that are exact: then a shift-invariant branch is a table of offsets.
std::optional<float> uniform_offset(const TokenPositions &queries, const TokenPositions &keys, int64_t batch);

// Positions as kernels read them: (token, batch), `batches` rows, each the sum of two floats, +inf where the
// token has none.
struct PositionArrays {
  float *high, *low;
};
void fill_positions(const TokenPositions &positions, int64_t batches, const PositionArrays &to);

// cos and sin of p * inv_freq, (pair, token, batch) f32, rounded once, from double; cos is +inf for a token
// without position. `scratch`: rotation_scratch(pairs) doubles.
int64_t rotation_scratch(int64_t pairs);
void fill_rotation(const TokenPositions &positions, const TensorView &inv_freq, int64_t batches,
                   double *scratch, float *cos_out, float *sin_out);

}  // namespace posattn
