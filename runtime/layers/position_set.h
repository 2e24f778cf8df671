// The positional branches of one layer, with the memory of their tables.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "runtime/layers/position_encoder.h"
#include "runtime/positions.h"
#include "runtime/safetensors.h"
#include "runtime/tensor.h"

namespace posattn {

// How branches that are named in text read a checkpoint, and the numbers that no checkpoint holds.
struct PositionOptions {
  Relative::Sign relative_sign = Relative::Sign::minus;
  Rope::Layout rope_layout = Rope::Layout::interleaved;
  double rope_base = 10000;
  int64_t rope_dim = 0;  // 0: the whole head
  int64_t t5_max_distance = 128;
  bool t5_bidirectional = true;
  SinusoidalEncoder::Layout sinusoidal_layout = SinusoidalEncoder::Layout::interleaved;
  double sinusoidal_base = 10000;
  Activation mlp_activation = Activation::gelu;
};

// Branches combine: all that are added apply. Tables are copied, converted to f32. Copies of a set share
// them.
class PositionSet {
 public:
  // On the query and key streams, before the projections; at most one.
  PositionSet &add_encoder(std::shared_ptr<const PositionEncoder> encoder);
  // On the logits.
  PositionSet &add_relative(const TensorView &table, Relative::Sign sign = Relative::Sign::minus);
  PositionSet &add_alibi(const TensorView &slopes);
  PositionSet &add_alibi(int64_t num_heads);  // the paper's slopes
  PositionSet &add_t5(const TensorView &table, int64_t max_distance = 128, bool bidirectional = true);
  PositionSet &add_dense(const TensorView &bias);               // broadcasts to (B, Hq, Tq, Tk); at most one
  PositionSet &add(std::shared_ptr<const LogitBranch> branch);  // an application's own
  // Rotation of projected queries and keys; at most one.
  PositionSet &add_rope(const TensorView &inv_freq, Rope::Layout layout = Rope::Layout::interleaved);
  PositionSet &add_rope(int64_t rotary_dim, double base = 10000,
                        Rope::Layout layout = Rope::Layout::interleaved);

  const PositionEncoder *encoder() const { return encoder_.get(); }
  const Rope *rope() const { return rope_.get(); }
  TensorView dense() const { return dense_ ? TensorView(dense_->view()) : TensorView(); }
  const std::vector<std::shared_ptr<const LogitBranch>> &logit_branches() const { return logit_; }
  std::string names() const;  // "additive+relative", "none"

 private:
  std::shared_ptr<const PositionEncoder> encoder_;
  std::vector<std::shared_ptr<const LogitBranch>> logit_;
  std::shared_ptr<const Rope> rope_;
  std::shared_ptr<const Tensor> dense_;
};

// What a named branch is checked against.
struct PositionContext {
  int64_t embed_dim, num_heads, head_dim;
};

// Branches by name, with their tensors from a layer's checkpoint. Names, and the tensors that each one reads
// (under prefix, looked for in `inputs` first when that is given):
//   none
//   additive    pos_emb (max_len, E), or pos_emb.weight; invariant_projector (E, E) if there
//   sinusoidal  -
//   fourier     pos_fourier.weight (F, 1); pos_mlp.0.weight, pos_mlp.0.bias, pos_mlp.2.weight, ... if there
//   mlp         pos_mlp.0.weight (hidden, 1), pos_mlp.0.bias, pos_mlp.2.weight, ...
//   relative    rel_bias or relative_bias, (2M + 1) or (H, 2M + 1)
//   alibi       alibi_slopes (H) if there, the paper's otherwise
//   t5          t5_bias or relative_attention_bias.weight, (buckets, H)
//   rope        inv_freq or rotary_emb.inv_freq if there, options.rope_base otherwise
//   dense       dense_bias
PositionSet load_positions(const std::vector<std::string> &names, const SafeTensors &layer,
                           const std::string &prefix, const PositionContext &context,
                           const PositionOptions &options = {}, const SafeTensors *inputs = nullptr);

}  // namespace posattn
