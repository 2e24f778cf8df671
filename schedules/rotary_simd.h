// How the rotation of queries and keys runs on a CPU's SIMD units.
#pragma once

#include "Halide.h"
#include "schedules/machine.h"
#include "schedules/tuning_space.h"

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

// Rows of a task: its start costs about as much as 64 tokens of a head, or one token of 64 heads.
constexpr int kRotaryTaskRows = 64;

TuningSpace rotary_tuning_space(const Machine &machine);

// A row is a token of a head.
void schedule_rotary(RotaryFuncs &f, const Machine &machine, int task_rows);

}  // namespace posattn::schedules
