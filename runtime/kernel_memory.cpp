#include "runtime/kernel_memory.h"

#include <HalideRuntime.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>

// A program without kernels links no Halide runtime either.
#pragma weak halide_set_custom_malloc
#pragma weak halide_set_custom_free
#pragma weak halide_default_free

namespace posattn {
namespace {

constexpr size_t kAlignment = 128;         // as Halide's own
constexpr size_t kLargestKept = 4u << 20;  // bytes of a block
constexpr int kBlocks = 4;

// Lies right before what the kernel gets. The mark tells our memory from what was allocated before we came:
// there is at least as much readable memory before that, too.
struct Block {
  uint64_t mark;
  size_t capacity;
};
constexpr uint64_t kMark = 0x6b65726e656c206dull;

void *memory_of(Block *block) { return block + 1; }
Block *block_of(void *memory) { return static_cast<Block *>(memory) - 1; }
void *start_of(Block *block) { return static_cast<uint8_t *>(memory_of(block)) - kAlignment; }
void give_back(Block *block) {
  if (block) std::free(start_of(block));
}

// Set when the thread's blocks are gone, as it ends: a kernel that runs even later keeps none.
thread_local bool closed = false;

// A thread's free blocks.
struct Kept {
  Block *blocks[kBlocks] = {};

  ~Kept() {
    closed = true;
    for (Block *block : blocks) give_back(block);
  }
  // The smallest that is large enough.
  Block *take(size_t size) {
    Block **best = nullptr;
    for (Block *&block : blocks) {
      if (block && block->capacity >= size && (!best || block->capacity < (*best)->capacity)) best = &block;
    }
    if (!best) return nullptr;
    Block *const taken = *best;
    *best = nullptr;
    return taken;
  }
  // Keeps the larger ones. Returns the block that there is no room for.
  Block *put(Block *block) {
    Block **smallest = &blocks[0];
    for (Block *&other : blocks) {
      if (!other) {
        other = block;
        return nullptr;
      }
      if (other->capacity < (*smallest)->capacity) smallest = &other;
    }
    if ((*smallest)->capacity < block->capacity) {
      Block *const evicted = *smallest;
      *smallest = block;
      return evicted;
    }
    return block;
  }
};

Kept &kept() {
  thread_local Kept blocks;
  return blocks;
}

void *allocate(void *, size_t size) {
  if (!closed) {
    if (Block *block = kept().take(size)) return memory_of(block);
  }
  // Sizes that grow little by little, as a sequence does, find their block again.
  const size_t step = size < 65536 ? 4096 : 65536;
  const size_t capacity = (size + step - 1) / step * step;
  if (capacity < size) return nullptr;
  void *const start = std::aligned_alloc(kAlignment, capacity + kAlignment);
  if (!start) return nullptr;
  Block *const block = block_of(static_cast<uint8_t *>(start) + kAlignment);
  *block = {kMark, capacity};
  return memory_of(block);
}

void release(void *context, void *memory) {
  if (!memory) return;
  Block *block = block_of(memory);
  if (block->mark != kMark) {
    halide_default_free(context, memory);
    return;
  }
  if (!closed && block->capacity <= kLargestKept) block = kept().put(block);
  give_back(block);
}

}  // namespace

void install_kernel_memory() {
  static const bool installed = [] {
    if (halide_set_custom_malloc && halide_set_custom_free) {
      halide_set_custom_malloc(allocate);
      halide_set_custom_free(release);
    }
    return true;
  }();
  (void)installed;
}

}  // namespace posattn
