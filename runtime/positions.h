// Positional branches as the caller sees them: what each one is, and the tensors that it reads.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/tensor.h"

namespace posattn {

// What a branch can check its tensors against.
struct AttendShape {
  int64_t batch, query_heads, kv_heads, queries, keys, head_dim, value_dim;
};

// Collects the tensors and numbers that a branch's compiled expression reads, by the names that the branch
// gave them in generators/positions. Fixed capacity: binding allocates nothing.
class BranchInputs {
 public:
  static constexpr int kCapacity = 24;
  // f32 or i32, last dimension contiguous, at most 4 dimensions. The memory must outlive the call of attend.
  void add(const char *name, const TensorView &tensor);
  // The same for memory of the branch's own, on the host even where all of a call's tensors are on a GPU.
  void add_own(const char *name, const TensorView &tensor);
  void add(const char *name, float value);
  void add(const char *name, int32_t value);

  struct Item {
    const char *name;
    TensorView tensor;  // empty for a number
    float f;
    int32_t i;
    bool is_int;
    bool own;  // see add_own
  };
  int size() const { return size_; }
  const Item &operator[](int index) const { return items_[index]; }

 private:
  Item items_[kCapacity];
  int size_ = 0;
};

// A branch that acts on the logits. name() is the one that its kernels were compiled under; any branch that
// an application compiles itself is used through a subclass like these.
class LogitBranch {
 public:
  virtual ~LogitBranch() = default;
  virtual const char *name() const = 0;
  virtual void check(const AttendShape &shape) const = 0;  // throws Error
  virtual void bind(BranchInputs &inputs) const = 0;
};

// table[h][clamp(p_q - p_k, -M, M) truncated toward zero, + M], subtracted (symm-learning's AdditiveRel) or
// added. table: (2M + 1) or (Hq, 2M + 1), f32. Nothing where either position is masked.
class Relative : public LogitBranch {
 public:
  enum class Sign { minus, plus };
  explicit Relative(TensorView table, Sign sign = Sign::minus);
  const char *name() const override { return "relative"; }
  void check(const AttendShape &shape) const override;
  void bind(BranchInputs &inputs) const override;
  const TensorView &table() const { return table_; }
  Sign sign() const { return sign_; }

 private:
  TensorView table_;
  Sign sign_;
};

// - slope_h * abs(p_q - p_k). slopes: (Hq), f32. Press et al. 2022 (arXiv:2108.12409).
class Alibi : public LogitBranch {
 public:
  explicit Alibi(TensorView slopes);
  const char *name() const override { return "alibi"; }
  void check(const AttendShape &shape) const override;
  void bind(BranchInputs &inputs) const override;
  const TensorView &slopes() const { return slopes_; }
  // The paper's slopes, also for numbers of heads that are no power of two. Fills slopes[0 .. heads).
  static void default_slopes(int64_t heads, float *slopes);

 private:
  TensorView slopes_;
};

// The T5 model's bucket of p_k - p_q. table: (num_buckets, Hq), f32. Raffel et al. 2020 (arXiv:1910.10683).
// Half of the buckets are exact distances, so max_distance must be above that many.
class T5 : public LogitBranch {
 public:
  explicit T5(TensorView table, int64_t max_distance = 128, bool bidirectional = true);
  const char *name() const override { return "t5"; }
  void check(const AttendShape &shape) const override;
  void bind(BranchInputs &inputs) const override;
  const TensorView &table() const { return table_; }
  int64_t max_distance() const { return max_distance_; }
  bool bidirectional() const { return bidirectional_; }

 private:
  TensorView table_;
  int64_t max_distance_;
  bool bidirectional_;
  std::vector<int32_t> bucket_;  // of every distance in [0, max_distance], before the half for the future
};

// Rotation of projected queries and keys by p * inv_freq[i]. Su et al. 2021 (arXiv:2104.09864).
struct Rope {
  enum class Layout { interleaved, half };  // pairs (x0, x1), (x2, x3), ... or (x_i, x_{i + rotary_dim / 2})
  TensorView inv_freq;  // (rotary_dim / 2), f32; linear, NTK and YaRN scaling are such vectors
  Layout layout = Layout::interleaved;
  // base^(-2i / rotary_dim) for i in [0, rotary_dim / 2).
  static void default_inv_freq(int64_t rotary_dim, double base, float *inv_freq);
};

}  // namespace posattn
