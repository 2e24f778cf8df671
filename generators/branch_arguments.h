// The inputs that branches declare, as arguments of a kernel.
#pragma once

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "Halide.h"
#include "generators/branch.h"

namespace posattn {

class BranchArguments {
 public:
  // Adds them to a generator, in its configure(); `branches` is a set joined by '+'.
  template <typename G>
  void declare(G &generator, const std::string &branches) {
    using Tensor = Halide::Buffer<>;
    for (const std::string &name : split_branches(branches)) {
      for (const BranchInput &input : find_branch(name).inputs) {
        if (input.dimensions > 0) {
          auto *tensor = generator.template add_input<Tensor>(input.name, input.type, input.dimensions);
          readers_.emplace_back(input.name, [=](const std::vector<Halide::Expr> &index) -> Halide::Expr {
            for (size_t i = 0; i < index.size(); i++) tensor->dim(i).set_min(0);
            return Halide::Func(*tensor)(index);
          });
        } else if (input.type.is_float()) {
          auto *number = generator.template add_input<float>(input.name);
          readers_.emplace_back(input.name,
                                [=](const std::vector<Halide::Expr> &) { return Halide::Expr(*number); });
        } else {
          auto *number = generator.template add_input<int>(input.name);
          readers_.emplace_back(input.name,
                                [=](const std::vector<Halide::Expr> &) { return Halide::Expr(*number); });
        }
      }
    }
  }

  // Whether a call asks for the branch.
  Halide::Expr is_used(const std::string &branch) const {
    for (const auto &[name, read] : readers_) {
      if (name == branch + "_used") return read({}) != 0;
    }
    return Halide::Internal::const_true();
  }

  // For the branch's expression, once the generator has its inputs.
  BranchTables tables() const {
    BranchTables in;
    for (const auto &[name, read] : readers_) in.readers_[name] = read;
    return in;
  }

 private:
  std::vector<std::pair<std::string, std::function<Halide::Expr(const std::vector<Halide::Expr> &)>>>
      readers_;
};

}  // namespace posattn
