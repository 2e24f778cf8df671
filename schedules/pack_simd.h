// How the packing of keys and values runs on a CPU's SIMD units.
#pragma once

#include "Halide.h"
#include "schedules/machine.h"

namespace posattn::schedules {

// The stages of generators/pack_generator.cpp.
struct PackFuncs {
  Halide::Func rows{"rows"};  // of the keys, as bits
  Halide::Func packed;
  struct {
    Halide::Var lane, d, key, block, head, batch;
  } vars;
  Halide::Expr whole_rows;  // the head dimension needs no padding
  Halide::Expr has_visible;
};

struct PackShape {
  int head_dim;
  Halide::Type type;
};

void schedule_pack_keys(PackFuncs &f, const Machine &machine, const PackShape &shape);
void schedule_pack_values(PackFuncs &f, const Machine &machine, const PackShape &shape);

}  // namespace posattn::schedules
