// attend() on a GPU for those who know where its tensors are.
#pragma once

#include "runtime/cuda/attend.h"

namespace posattn::cuda {

// As attend(), but that addresses are of the stream's GPU has been seen to: memory that a stream under
// capture allocates has none yet that the driver would know.
void attend_unchecked(const AttendArgs &args, const CudaStream &stream, void *workspace,
                      size_t workspace_size);

}  // namespace posattn::cuda
