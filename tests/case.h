// One call of attend() with everything it reads and writes in guarded memory: described by a CaseSpec, built
// from a seed.
#pragma once

#include <array>
#include <memory>
#include <string>
#include <vector>

#include "runtime/attend.h"
#include "tests/guarded_tensor.h"
#include "tests/random.h"

namespace posattn::oracle {

enum class Layout {
  bhtd,      // contiguous
  bthd,      // (B, T, H, D) seen as (B, H, T, D)
  packed,    // query, key and value of one projection; key and value alone if query differs in length
  padded,    // a slice of something larger in every dimension
  reversed,  // tokens backwards in memory: a negative stride
  repeated,  // one batch's keys and values for all: a stride of 0
};

enum class PositionKind {
  none,        // not given
  arange,      // 0, 1, 2, ..
  shifted,     // consecutive from somewhere else, also negative
  fractional,  // eighths, not in order
  scattered,   // integers, not in order, with repeats
  times,       // any fraction: only where no offset is truncated to an integer
  far,         // consecutive, beyond what float32 holds
  islands,     // consecutive runs, more than 2^24 apart
};

// A mask or bias that broadcasts to (B, Hq, Tq, Tk).
struct MaskSpec {
  bool given = false;
  int rank = 4;
  std::array<bool, 4> broadcast = {};  // of b, h, i, j
  DType type = DType::f32;             // of a float mask
  bool transposed = false;             // queries fastest in memory
};

struct CaseSpec {
  uint64_t seed = 1;
  DType type = DType::f32;
  int64_t batch = 2, query_heads = 4, kv_heads = 2, queries = 33, keys = 65, head_dim = 64, value_dim = 64;
  Layout layout = Layout::bhtd, out_layout = Layout::bhtd;

  std::vector<std::string> branches;  // of relative, alibi, t5
  int64_t relative_max_distance = 16;
  bool relative_per_head = true, relative_plus = false;
  int64_t t5_buckets = 32, t5_max_distance = 128;
  bool t5_bidirectional = true;
  int64_t rotary_dim = 0;  // 0: no rope
  Rope::Layout rope_layout = Rope::Layout::interleaved;

  PositionKind positions = PositionKind::none;
  DType position_type = DType::f32;
  int position_rank = 1;  // 1: (P), 2: (1, P), 3: (B, P)
  bool q_position_mask = false, k_position_mask = false;

  MaskSpec keep, block, add, dense;
  bool hidden_rows = false;  // some rows of the masks hide everything
  bool key_keep = false, key_block = false, key_add = false, key_lengths = false;
  bool shared_key_masks = false;  // (1, Tk)
  Causal causal = Causal::none;
  int64_t window_left = -1, window_right = -1;

  std::optional<float> scale;
  float softcap = 0;
  double logit_std = 1, value_offset = 0;
  Weights weights = Weights::none;
  bool lse = true;
};

// One line.
std::string describe(const CaseSpec &spec);

// Draws a case. branch_sets: what may be drawn of logit branches, e.g. {{}, {"alibi"}, {"alibi",
// "relative"}}.
CaseSpec random_spec(uint64_t seed, const std::vector<std::vector<std::string>> &branch_sets);

// Owns what args() points at. Outputs and unused memory are NaN; so are keys and values that key masks hide.
class Case {
 public:
  explicit Case(const CaseSpec &spec);
  Case(const Case &) = delete;
  Case &operator=(const Case &) = delete;

  const CaseSpec &spec() const { return spec_; }
  const AttendArgs &args() const { return args_; }
  AttendArgs &args() { return args_; }

  // Computes with a guarded workspace of just the size that is asked for.
  void attend();
  // Fills the outputs with NaN again.
  void clear_outputs();
  // Empty, or what was written that should not have been.
  std::string damage() const;

 private:
  MutableTensorView tensor(const std::string &name, DType type, const std::vector<int64_t> &shape,
                           const MemoryLayout &layout = {}, bool written = false);
  MutableTensorView attention_tensor(const std::string &name, const std::vector<int64_t> &shape,
                                     Layout layout, bool written = false);
  MutableTensorView mask_tensor(const std::string &name, const MaskSpec &mask, DType type);
  TensorView float_mask(const std::string &name, const MaskSpec &mask);
  TensorView boolean_mask(const std::string &name, const MaskSpec &mask, bool hides);
  TensorView positions(const std::string &name, int64_t count);
  TensorView position_mask(const std::string &name, int64_t count);
  void make_query_key_value();
  void make_branches();
  void make_masks();
  void hide_keys();

  struct Owned {
    std::unique_ptr<GuardedTensor> tensor;
    bool written;
  };
  CaseSpec spec_;
  Random random_;
  AttendArgs args_;
  MutableTensorView query_, key_, value_;
  std::vector<Owned> tensors_;
  std::vector<std::unique_ptr<LogitBranch>> branches_;
  Rope rope_;
};

}  // namespace posattn::oracle
