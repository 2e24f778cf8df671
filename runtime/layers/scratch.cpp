#include "runtime/layers/scratch.h"

#include <algorithm>
#include <cstdlib>
#include <new>

namespace posattn {
namespace {

constexpr size_t kAlign = 64;
constexpr size_t kFirstBlock = 1 << 16;

}  // namespace

void Scratch::Free::operator()(void *memory) const { std::free(memory); }

void Scratch::add_block(size_t bytes) {
  char *memory = static_cast<char *>(std::aligned_alloc(kAlign, bytes));
  if (!memory) throw std::bad_alloc();
  blocks_.emplace_back(memory);
  block_ = bytes;
  used_ = 0;
}

void Scratch::reset() {
  // After a call that needed several blocks, one of their total size: the next such call finds it all there.
  if (blocks_.size() > 1) {
    blocks_.clear();
    add_block(capacity_);
  }
  used_ = 0;
}

void *Scratch::take_bytes(size_t bytes) {
  bytes = (bytes + kAlign - 1) / kAlign * kAlign;
  if (blocks_.empty() || bytes > block_ - used_) {
    const size_t block = std::max({bytes, capacity_, kFirstBlock});  // at least doubles: few blocks
    add_block(block);
    capacity_ += block;
  }
  void *piece = blocks_.back().get() + used_;
  used_ += bytes;
  return piece;
}

MutableTensorView Scratch::take(DType type, std::initializer_list<int64_t> shape) {
  int64_t bytes = size_of(type);
  for (int64_t size : shape) bytes = checked_product(bytes, size, "scratch");
  return MutableTensorView(take_bytes(static_cast<size_t>(bytes)), type, shape);
}

}  // namespace posattn
