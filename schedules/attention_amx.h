// How attention runs where AMX tiles multiply bfloat16: both products on tiles, the softmax on vectors
// between.
#pragma once

#include "Halide.h"
#include "schedules/attention_simd.h"

namespace posattn::schedules {

constexpr int kAmxDepth = 32;  // channels of a step of a tile's product: head dimensions are multiples of it

AttentionTiles attention_tiles_amx(int head_dim);
TuningSpace attention_tuning_space_amx(int head_dim);

// Adds its lowering pass to the pipeline.
void schedule_attention_amx(AttentionFuncs &f, const AttentionTiles &tiles, Halide::Pipeline pipeline);

}  // namespace posattn::schedules
