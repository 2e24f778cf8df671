// Operands of Hopper's wgmma in shared memory.
#pragma once

#include <cstdint>
#include <string>

#include "lowering/ptx_ops.h"

namespace posattn {

// Upper bits of a shared memory descriptor: 128-byte swizzle, and the steps between groups of 8 rows and
// between chunks.
inline std::string wgmma_descriptor_bits(int chunk_step, int row_group_step) {
  return number((int64_t{1} << 62) | (static_cast<int64_t>(row_group_step >> 4) << 32) |
                (static_cast<int64_t>(chunk_step >> 4) << 16));
}
// Makes one in a 64-bit register from a shared address.
inline std::string wgmma_descriptor(const std::string &to, const std::string &address, int chunk_step,
                                    int row_group_step) {
  return "\t{ .reg .b32 sixteenth; shr.u32 sixteenth, " + address + ", 4; cvt.u64.u32 " + to +
         ", sixteenth; or.b64 " + to + ", " + to + ", " + wgmma_descriptor_bits(chunk_step, row_group_step) +
         "; }\n";
}

}  // namespace posattn
