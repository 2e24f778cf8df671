// Attention in float64, written from the definition and for reading: what every kernel is held against. Also
// the plain three-step formula in the storage type, whose error is the measure of what may be asked of a
// kernel.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "runtime/attend.h"

namespace posattn::oracle {

// An application's own branch: the new logit of query i of head h in batch b against key j at positions p_q,
// p_k.
struct BranchFormula {
  std::string name;  // LogitBranch::name()
  std::function<double(double logit, int64_t b, int64_t h, int64_t i, int64_t j, double p_q, double p_k)>
      logit;
};

// Contiguous, in the order of AttendArgs' tensors.
struct AttentionResult {
  std::vector<double> out;      // (B, Hq, Tq, Dv)
  std::vector<double> lse;      // (B, Hq, Tq), -inf where nothing is visible
  std::vector<double> weights;  // (B, Hq, Tq, Tk), or (B, Tq, Tk) for the mean, or empty if not asked for
};

// Reads query, key, value, options, masks, positions and branches of `args`; not its outputs, nor a cache.
AttentionResult reference_attention(const AttendArgs &args, const std::vector<BranchFormula> &own = {});

// softmax(q k' + bias) v the plain way: query and key rounded to the storage type after their rotation,
// logits and softmax in float32, results rounded to the storage type (lse: float32). Angles and position
// differences are taken in float64, as far positions ask for.
AttentionResult naive_attention(const AttendArgs &args, const std::vector<BranchFormula> &own = {});

// max|actual - reference| <= 2 * max|naive - reference| + 1e-6. Infinities must agree, and NaN only match
// NaN.
struct Comparison {
  bool ok = true;
  double error = 0, naive_error = 0, bound = 0;
  std::string text;  // for people: the worst element, what it is and what it should be
};
Comparison compare(const std::string &what, const TensorView &actual, const std::vector<double> &reference,
                   const std::vector<double> &naive);

// The rule for one call's outputs. How close the formula comes for a few numbers is a matter of luck, and of
// what it leaves open: the order of sums, whether the query is scaled or the product, and whether weights are
// rounded to the type when values are multiplied by them, as they are where they are a tensor. So before
// outputs are found wrong, some variants of it are tried, and of each element the value farthest from the
// reference counts.
class AccuracyRule {
 public:
  // Reads what reference_attention() reads; `args` must outlive this.
  explicit AccuracyRule(const AttendArgs &args, const std::vector<BranchFormula> &own = {});
  // The outputs that `outputs` holds: out, and lse and weights if given. The worst of them.
  Comparison compare(const AttendArgs &outputs);
  const AttentionResult &reference() const { return reference_; }

 private:
  Comparison compare_once(const AttendArgs &outputs) const;

  const AttendArgs &args_;
  const std::vector<BranchFormula> own_;
  AttentionResult reference_, naive_;
  int variants_ = 1;
};

// Both at once, where inputs and outputs are one call's.
Comparison compare_outputs(const AttendArgs &args, const std::vector<BranchFormula> &own = {});

// Any tensor as doubles, contiguous.
std::vector<double> values_of(const TensorView &tensor);

// `x` (B, H, T, D) rotated by the positions (P), (1, P) or (B, P) (default 0, 1, ..), where the mask is not
// false; rounded to x's type.
Tensor reference_rotated(const TensorView &x, const Rope &rope, const TensorView &positions = {},
                         const TensorView &position_mask = {});

}  // namespace posattn::oracle
