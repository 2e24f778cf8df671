// Memory for the intermediate results of a layer, kept from one call to the next.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "runtime/tensor.h"

namespace posattn {

// Hands out pieces of memory, all of which are free again after reset(). A second pass over the same sizes
// allocates nothing. Not to be shared by calls that run at the same time.
class Scratch {
 public:
  void reset();
  // 64-byte aligned, contiguous, not initialised.
  MutableTensorView take(DType type, std::initializer_list<int64_t> shape);
  void *take_bytes(size_t bytes);
  size_t capacity() const { return capacity_; }  // bytes held

 private:
  struct Free {
    void operator()(void *memory) const;
  };
  void add_block(size_t bytes);

  std::vector<std::unique_ptr<char, Free>> blocks_;
  size_t block_ = 0, used_ = 0;  // bytes of the last block, and how many of them are taken
  size_t capacity_ = 0;
};

}  // namespace posattn
