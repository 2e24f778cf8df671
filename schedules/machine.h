// What a schedule needs to know of the machine that it is for.
#pragma once

#include "Halide.h"

namespace posattn::schedules {

// One SIMD instruction set, as the register tiles see it.
struct Machine {
  int lanes;      // floats in a vector
  int key_lanes;  // keys that are packed side by side: the width of every score tile, and of the cache's
                  // layout
  int rows;  // rows of the register tile: rows * key_lanes / lanes accumulators + operands fill the registers
  int pairs;  // 16-bit numbers that are multiplied and summed together; packed keys and values hold them so
  bool amx;   // matrix products in bfloat16 on AMX tiles
  bool dots = false;  // an instruction that adds the two products of two pairs of bfloat16 to a float
};

// Vector registers of the instruction set.
inline int registers(const Machine &machine) { return machine.lanes == 16 ? 32 : 16; }

// 12 x 2 accumulators of 32 zmm, 6 x 2 of 16 ymm, 4 x 2 of 16 xmm. On AVX-512, 8 x 32, 4 x 64 and 6 x 64 were
// the same within noise.
inline Machine machine(const Halide::Target &target) {
  using Halide::Target;
  // A warp.
  if (target.has_gpu_feature()) return {32, 32, 8, 1, false};
  if (target.has_feature(Target::AVX512_SapphireRapids)) return {16, 32, 12, 2, true};
  if (target.has_feature(Target::AVX512_Zen4)) return {16, 32, 12, 2, false, true};
  if (target.has_feature(Target::AVX512_Skylake)) return {16, 32, 12, 1, false};
  if (target.has_feature(Target::AVX2)) return {8, 16, 6, 1, false};
  return {4, 8, 4, 1, false};
}

}  // namespace posattn::schedules
