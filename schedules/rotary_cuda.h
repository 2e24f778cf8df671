// How the rotation of queries and keys runs on a GPU.
#pragma once

#include "schedules/rotary_simd.h"

namespace posattn::schedules {

void schedule_rotary_cuda(RotaryFuncs &f);

}  // namespace posattn::schedules
