// How linear layers run on a CPU's SIMD units.
#pragma once

#include <string>
#include <vector>

#include "Halide.h"
#include "schedules/machine.h"
#include "schedules/tuning_space.h"

namespace posattn::schedules {

// Inputs are staged in chunks of this many: a cache line of float32, or of bfloat16 that is multiplied as
// such.
constexpr int kProjectionDepth = 16, kProjectionPairsDepth = 32;

struct ProjectionTile {
  int rows, features;
  int lanes = 0, accumulators = 0;  // floats in a vector; vectors of sums that fit the registers
};

// Where AMX tiles multiply bfloat16: 2 x 2 tiles of sums, and for few rows 1 x 2.
constexpr ProjectionTile kProjectionAmx = {32, 32, 16, 0}, kProjectionAmxFew = {16, 32, 16, 0};

// 8 x 48 on AVX-512 loads the least for each multiplication among the tiles of 24 accumulators. Alone on a
// core 12 x 32 is as fast, at 86 to 88 % of the peak of multiply-adds; beside a busy hyperthread it is 6 %
// slower.
inline ProjectionTile projection_tile(const Halide::Target &target) {
  const Machine m = machine(target);
  if (m.lanes == 16) return {8, 48, m.lanes, 24};
  return {m.rows, m.key_lanes, m.lanes, 8};
}

// The stages of generators/projection_generator.cpp for one size of tiles, by the names that they have there.
struct ProjectionFuncs {
  explicit ProjectionFuncs(const std::string &prefix)
      : prefix(prefix),
        staged(prefix + "staged"),
        weight(prefix + "weight"),
        part(prefix + "part"),
        sum(prefix + "sum"),
        tiles(prefix + "tiles") {}
  std::string prefix;
  Halide::Func staged, weight, part, sum, tiles;
  Halide::RDom r, parts;
  ProjectionTile tile;
  Halide::Expr block_rows, group_panels;  // of a task; panels here are as wide as the tile
  int span_panels = 1;                    // results of so many go out together
  bool convert_panel = false;             // to float32, for all rows at once
  bool on_tiles = false;                  // products of bfloat16 on AMX tiles
  bool on_dots = false;                   // products of pairs of bfloat16: inputs and weights in words of two
  int sum_chunks = 0;                     // of `part`, at most
};

struct ProjectionVars {
  Halide::Var lane, k, i, chunk, t, p, n, row;
};

// Funcs for the calls on which `condition` holds, and on which none before did. The last has no condition.
struct ProjectionCase {
  Halide::Expr condition;
  ProjectionFuncs &funcs;
};

// Rows of a task at most: they stay in the second-level cache while the panels pass by.
constexpr int kProjectionBlockRows = 96;
// Panels whose results go out together.
constexpr int kProjectionSpanPanels = 6;

// On AMX tiles, whose sizes are the machine's, fewer parameters are left.
TuningSpace projection_tuning_space(const Halide::Target &target, bool on_tiles);

void schedule_projection(Halide::Func out, const std::vector<ProjectionCase> &cases,
                         const Halide::Expr &has_addend, const ProjectionVars &vars, const Machine &machine,
                         Halide::Pipeline pipeline);

}  // namespace posattn::schedules
