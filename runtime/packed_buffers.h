// Packed keys and values as kernels take them.
#pragma once

#include "runtime/kernel_call.h"
#include "runtime/packed_layout.h"

namespace posattn {

// What a kernel that packs keys says of their layout.
inline PackedLayout packed_layout(const Kernel &pack_keys, int64_t default_lanes) {
  const int64_t head_dim = pack_keys.info->head_dim;
  return {pack_keys.estimate("keys", 0, default_lanes), head_dim,
          head_dim / pack_keys.estimate("keys", 1, head_dim)};
}

// Memory of numbers of `type`; strides are in numbers, too.
struct PackedMemory {
  const void *data;
  DType type;
  int64_t tiles, heads, head_stride, batches, batch_stride;
};

inline KernelBuffer packed_keys(const PackedLayout &layout, const PackedMemory &memory) {
  return KernelBuffer(memory.data, layout.pairs == 2 ? DType::i32 : memory.type)
      .dim(layout.lanes, 1)
      .dim(layout.head_dim / layout.pairs, layout.lanes)
      .dim(memory.tiles, layout.tile_size() / layout.pairs)
      .dim(memory.heads, memory.head_stride / layout.pairs)
      .dim(memory.batches, memory.batch_stride / layout.pairs);
}

inline KernelBuffer packed_values(const PackedLayout &layout, const PackedMemory &memory) {
  return KernelBuffer(memory.data, layout.pairs == 2 ? DType::i32 : memory.type)
      .dim(layout.head_dim, 1)
      .dim(memory.tiles * layout.lanes / layout.pairs, layout.head_dim)
      .dim(memory.heads, memory.head_stride / layout.pairs)
      .dim(memory.batches, memory.batch_stride / layout.pairs);
}

}  // namespace posattn
