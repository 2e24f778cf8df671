// A branch whose tensors are elsewhere than those it was made with.
#pragma once

#include <vector>

#include "runtime/positions.h"

namespace posattn {

// upload: of a tensor on the host, the view of one on a GPU. The branch must live as long.
class MovedBranch : public LogitBranch {
 public:
  template <typename Upload>
  MovedBranch(const LogitBranch &host, const Upload &upload) : host_(host) {
    host.bind(inputs_);
    for (int i = 0; i < inputs_.size(); ++i) {
      const BranchInputs::Item &item = inputs_[i];
      tensors_.push_back(item.own || item.tensor.empty() ? item.tensor : upload(item.tensor));
    }
  }
  const char *name() const override { return host_.name(); }
  void check(const AttendShape &shape) const override { host_.check(shape); }
  void bind(BranchInputs &inputs) const override {
    for (int i = 0; i < inputs_.size(); ++i) {
      const BranchInputs::Item &item = inputs_[i];
      const TensorView &tensor = tensors_[static_cast<size_t>(i)];
      if (item.own) {
        inputs.add_own(item.name, tensor);
      } else if (!tensor.empty()) {
        inputs.add(item.name, tensor);
      } else if (item.is_int) {
        inputs.add(item.name, item.i);
      } else {
        inputs.add(item.name, item.f);
      }
    }
  }

 private:
  const LogitBranch &host_;
  BranchInputs inputs_;
  std::vector<TensorView> tensors_;
};

}  // namespace posattn
