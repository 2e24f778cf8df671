// Hands out pieces of a caller's memory, or counts how much that will take.
#pragma once

#include <cstddef>
#include <cstdint>

#include "runtime/tensor.h"

namespace posattn {

class Workspace {
 public:
  static constexpr int64_t kAlignment = 64;

  // Null: only counts, and take() returns null.
  explicit Workspace(void *memory) : memory_(static_cast<char *>(memory)) {}

  template <typename T>
  T *take(int64_t count) {
    return static_cast<T *>(take_bytes(checked_product(count, sizeof(T), "workspace")));
  }
  void *take_bytes(int64_t bytes) {
    char *piece = memory_ ? memory_ + size_ : nullptr;
    const int64_t blocks = bytes / kAlignment + (bytes % kAlignment != 0);
    size_ += checked_product(blocks, kAlignment, "workspace");
    if (size_ > kMost) fail_too_large();
    return piece;
  }
  int64_t size() const { return size_; }

 private:
  static constexpr int64_t kMost = INT64_MAX / 2;  // sums of what was checked stay in range
  [[noreturn]] static void fail_too_large() {
    checked_product(INT64_MAX, 2, "workspace");
    __builtin_unreachable();
  }

  char *memory_;
  int64_t size_ = 0;
};

}  // namespace posattn
