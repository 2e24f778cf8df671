// What a positional branch on the logits is. The built-in ones in positions/ and an application's own are
// written against this file and nothing else.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "Halide.h"

namespace posattn {

// One score: query i of head h in batch b against key j. Positions are floats; logit is in natural units,
// scaled.
struct Score {
  Halide::Expr logit;
  Halide::Expr batch, head, query, key;
  Halide::Expr q_position, k_position;
};

// The inputs that a branch declared, by name.
class BranchTables {
 public:
  Halide::Expr operator()(const std::string &name, const std::vector<Halide::Expr> &index = {}) const {
    return readers_.at(name)(index);
  }
  std::map<std::string, std::function<Halide::Expr(const std::vector<Halide::Expr> &)>> readers_;
};

struct BranchInput {
  std::string name;   // of the kernel's argument; start it with the branch's name
  Halide::Type type;  // Float(32) or Int(32)
  int dimensions =
      0;  // 0: a number. A tensor's last dimension in C++ is the first index here, as in all of Halide
};

struct Branch {
  std::string name;
  // One that the branch's own expression need not read: Int(32) NAME_used, 1 where the branch is asked for. A
  // kernel skips the branch otherwise.
  std::vector<BranchInput> inputs;
  // The new logit. Tokens without a position never get here: the kernel keeps their logit as it is.
  std::function<Halide::Expr(const Score &, const BranchTables &)> logit;
  // True if what is added depends on head and k_position - q_position only. Then consecutive positions cost
  // one contiguous load from a table of Tq + Tk - 1 numbers instead of an evaluation for each score.
  bool shift_invariant = false;
};

// Branches by name; a global object of this type adds one.
class RegisterBranch {
 public:
  explicit RegisterBranch(Branch branch);
};
const Branch &find_branch(const std::string &name);  // a Halide user error if there is none
std::vector<std::string> split_branches(
    const std::string &set);  // "alibi+relative" -> both; "none" -> nothing

}  // namespace posattn
