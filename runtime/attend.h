// The operator: scaled dot-product attention with positional branches and masks that
// all compose, on strided views, in memory proportional to the sequence lengths.
#pragma once

#include <array>
#include <cstddef>
#include <optional>

#include "runtime/positions.h"
#include "runtime/tensor.h"

namespace posattn {

class KvCache;

enum class Causal {
  none,
  bottom_right,  // key j is visible to query i iff j <= i + (Tk - Tq): a chunk or a decode step sees its past
  top_left,      // iff j <= i
};

enum class Weights { none, mean, heads };

// Everything that attend() reads and writes. B batch, Hq query heads, Hkv key heads (a divisor of Hq; query
// head h reads key head h / (Hq / Hkv)), Tq queries, Tk keys, D and Dv up to 256.
struct AttendArgs {
  TensorView query;  // (B, Hq, Tq, D); f32, bf16 or f16, the same for query, key, value and out
  TensorView key;    // (B, Hkv, Tk, D)
  TensorView value;  // (B, Hkv, Tk, Dv)
  // In place of key and value: the cache's rows (already packed, and rotated when rope is used).
  const KvCache *cache = nullptr;

  MutableTensorView out;  // (B, Hq, Tq, Dv); last dimension contiguous, as for all of the above
  MutableTensorView lse;  // optional, (B, Hq, Tq) f32; -inf for a row with nothing visible
  MutableTensorView
      weights;  // optional, (B, Hq, Tq, Tk), or (B, Tq, Tk) for the mean over heads; query's type
  Weights need_weights = Weights::none;

  std::optional<float> scale;  // 1 / sqrt(D) by default
  float softcap = 0;           // 0: none
  Causal causal = Causal::none;
  // -left <= j - (i + Tk - Tq) <= right, or -left <= j - i <= right with Causal::top_left; -1 is unbounded.
  int64_t window_left = -1, window_right = -1;

  // Broadcast to (B, Hq, Tq, Tk): any dimension may be 1, leading ones may be missing. All that are given
  // apply.
  TensorView keep_mask;   // boolean, true = attend
  TensorView block_mask;  // boolean, true = hidden
  TensorView add_mask;    // added to the logit; -inf hides; f32, bf16 or f16
  TensorView dense_bias;  // the dense positional branch: the same form as add_mask
  // What these hide has no influence at all, whatever the keys and values hold (NaN included).
  TensorView key_keep_mask;   // (B, Tk) or (1, Tk) boolean
  TensorView key_block_mask;  // (B, Tk) or (1, Tk) boolean
  TensorView key_add_mask;    // (B, Tk) or (1, Tk) float
  TensorView key_lengths;     // (B) i32 or i64, each in [0, Tk]: keys from there on are hidden

  // Positions default to 0, 1, 2, ... for queries and keys separately. (P), (1, P) or (B, P); finite; f32,
  // f64, i32 or i64. Position masks have the same shapes; false = the token gets no positional treatment.
  TensorView q_positions, k_positions, q_position_mask, k_position_mask;

  static constexpr int kMaxBranches = 8;
  std::array<const LogitBranch *, kMaxBranches> branches =
      {};                      // null entries are skipped; the rest all apply
  const Rope *rope = nullptr;  // rotates query (and key, unless cached)
};

// Bytes of workspace that attend(args) needs: O(B * Hkv * Tk * D + B * Hq * Tq * D), never O(Tq * Tk). (Masks
// that must be converted, 16-bit ones or a keep and a block mask at once, are, for some rows at a time.)
// Checks the arguments as attend does. Pointers are not looked at, only shapes and which arguments are there.
size_t attend_workspace_size(const AttendArgs &args);

// Checks every argument, then computes. Throws Error before anything is written; allocates nothing.
// workspace: 64-byte aligned, at least attend_workspace_size(args) bytes.
void attend(const AttendArgs &args, void *workspace, size_t workspace_size);

// The same with a workspace of its own.
void attend(const AttendArgs &args);

}  // namespace posattn
