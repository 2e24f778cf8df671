// Additive positions: a vector of E numbers for each position, added to the query and key streams before
// their projections.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/tensor.h"

namespace posattn {

enum class Activation { gelu, relu, silu, tanh };

// Linear layers with an activation between them, evaluated in f32 for a few numbers at a time.
class SmallMlp {
 public:
  struct Layer {
    Tensor weight;  // (out, in) f32
    Tensor bias;    // (out) f32, or empty
  };
  SmallMlp() = default;
  SmallMlp(std::vector<Layer> layers, Activation activation);
  bool empty() const { return layers_.empty(); }
  const std::vector<Layer> &layers() const { return layers_; }
  Activation activation() const { return activation_; }
  int64_t in_features() const { return layers_.front().weight.size(1); }
  int64_t out_features() const { return layers_.back().weight.size(0); }
  void forward(const float *x, float *y) const;  // one row

 private:
  std::vector<Layer> layers_;
  Activation activation_ = Activation::gelu;
};

// What an encoder computes, as data, for those who compute it elsewhere: rows of a table, or for each channel
// a wave of the position, all times a scale, and a network behind them.
struct EncoderForm {
  TensorView table;                 // (max_len, E) f32; a position outside of it is an Error
  std::vector<double> frequencies;  // one a channel
  std::vector<uint8_t> waves;       // 0 sine, 1 cosine, 2 the position itself
  float scale = 1;
  const SmallMlp *network = nullptr;
};

class PositionEncoder {
 public:
  virtual ~PositionEncoder() = default;
  virtual int64_t dim() const = 0;
  // Throws Error if this position has no encoding. `what` names the argument.
  virtual void check(double position, const char *what) const;
  // out[i * dim() ..] = phi(positions[i]) for i in [0, count).
  virtual void encode(const double *positions, int64_t count, float *out) const = 0;
  // phi of the positions first, first + 1, ... as rows (count, dim) f32 that already lie in memory; empty if
  // they do not.
  virtual TensorView rows(int64_t first, int64_t count) const;
  // Views into the encoder; without table and frequencies: it has no such form.
  virtual EncoderForm form() const { return {}; }
};

// A learned table (max_len, E), e.g. symm-learning's pos_emb. A position that is no integer is truncated
// toward zero, as there; one that is then outside [0, max_len) is an Error (there, negative ones wrap).
class TableEncoder : public PositionEncoder {
 public:
  // projector: optional (E, E), multiplies every row once, here: row <- projector * row (the
  // invariant_projector of the group-equivariant layers).
  explicit TableEncoder(const TensorView &table, const TensorView &projector = {});
  int64_t dim() const override { return table_.size(1); }
  void check(double position, const char *what) const override;
  void encode(const double *positions, int64_t count, float *out) const override;
  EncoderForm form() const override;
  TensorView rows(int64_t first, int64_t count) const override;

 private:
  Tensor table_;
};

// sin(p * w_i), cos(p * w_i) with w_i geometric from 1 down to 1 / base.
class SinusoidalEncoder : public PositionEncoder {
 public:
  enum class Layout {
    interleaved,  // sin, cos, sin, cos, ...; w_i = base^(-2i / E) (Vaswani et al. 2017)
    halves,       // all sines, then all cosines; w_i = base^(-i / (E / 2 - 1)) (Whisper, tensor2tensor)
  };
  explicit SinusoidalEncoder(int64_t dim, Layout layout = Layout::interleaved, double base = 10000);
  int64_t dim() const override { return 2 * static_cast<int64_t>(frequencies_.size()); }
  void encode(const double *positions, int64_t count, float *out) const override;
  EncoderForm form() const override;

 private:
  std::vector<double> frequencies_;
  Layout layout_;
};

// Learned Fourier features (Li et al. 2021, arXiv:2106.02795): (cos(p * f), sin(p * f)) / sqrt(2 * F) for the
// F learned frequencies f, through an MLP when there is one.
class FourierEncoder : public PositionEncoder {
 public:
  explicit FourierEncoder(const TensorView &frequencies /*(F) or (F, 1)*/, SmallMlp mlp = {});
  int64_t dim() const override;
  void encode(const double *positions, int64_t count, float *out) const override;
  EncoderForm form() const override;

 private:
  std::vector<double> frequencies_;
  SmallMlp mlp_;
};

// An MLP of the position itself: 1 -> ... -> E.
class MlpEncoder : public PositionEncoder {
 public:
  explicit MlpEncoder(SmallMlp mlp);
  int64_t dim() const override { return mlp_.out_features(); }
  void encode(const double *positions, int64_t count, float *out) const override;
  EncoderForm form() const override;

 private:
  SmallMlp mlp_;
};

}  // namespace posattn
