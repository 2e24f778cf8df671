// A tensor in memory of any layout, with sentinels around it: whatever a kernel writes outside of its output,
// or into an input, is found, and whatever it reads there is NaN.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "runtime/tensor.h"

namespace posattn::oracle {

// How the dimensions lie in memory.
struct MemoryLayout {
  std::vector<int> order;  // outermost first; empty: as they are
  std::vector<int64_t>
      front;  // unused elements before and behind each dimension (as if this were a slice of a
  std::vector<int64_t> back;   // larger tensor); empty: none
  std::vector<bool> repeated;  // dimensions of stride 0
  std::vector<bool> reversed;  // dimensions of negative stride
};

class GuardedTensor {
 public:
  static constexpr size_t kGuard = 1024;  // bytes before and behind
  // All of the memory, sentinels and unused elements included, starts as a pattern that is NaN in every float
  // type.
  GuardedTensor(std::string name, DType type, const std::vector<int64_t> &shape,
                const MemoryLayout &layout = {});

  const MutableTensorView &view() const { return view_; }
  const std::string &name() const { return name_; }

  // Remembers every byte as it is now.
  void freeze();
  // Empty if nothing changed since, apart from the elements of the view if `written`; else a line of text.
  std::string damage(bool written) const;

 private:
  struct Free {
    void operator()(void *p) const;
  };
  std::string name_;
  size_t bytes_ = 0;
  std::unique_ptr<unsigned char, Free> memory_;
  std::vector<unsigned char> frozen_;
  MutableTensorView view_;
};

// Writes one element, rounded to the tensor's type.
void set_element(const MutableTensorView &tensor, const std::vector<int64_t> &index, double value);
// Calls f(index) for every element, last dimension fastest.
template <typename F>
void for_each_index(const TensorView &tensor, const F &f) {
  if (tensor.num_elements() == 0) return;
  std::vector<int64_t> index(static_cast<size_t>(tensor.rank()), 0);
  while (true) {
    f(index);
    int d = tensor.rank() - 1;
    while (d >= 0 && ++index[static_cast<size_t>(d)] == tensor.size(d)) index[static_cast<size_t>(d--)] = 0;
    if (d < 0) return;
  }
}

}  // namespace posattn::oracle
