// How the rotation of queries and keys runs on a CPU's SIMD units.
#pragma once

#include "Halide.h"
#include "schedules/machine.h"

namespace posattn::schedules {

// generators/rotary_generator.cpp: updates of y, in order.
struct RotaryFuncs {
  Halide::Func y;
  struct {
    Halide::Var d, token, head, batch;
  } vars;
  Halide::RDom adjacent, apart;  // (element of the pair, pair), for each layout
  Halide::RDom rest;             // beyond the pairs
};

void schedule_rotary(RotaryFuncs &f, const Machine &machine);

}  // namespace posattn::schedules
