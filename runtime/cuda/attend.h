// attend() on a GPU.
#pragma once

#include "runtime/attend.h"
#include "runtime/cuda/stream.h"

namespace posattn {

// As the functions of runtime/attend.h, with every tensor (branches' tables included) in the memory of the
// stream's GPU. Arguments are checked before anything is launched, but what tensors hold is not read:
// key_lengths are clamped to [0, Tk], and positions must be finite. A cache cannot be given: its rows, up to
// its length, are key and value.
size_t attend_workspace_size(const AttendArgs &args, const CudaStream &stream);

// workspace: on the GPU, 256-byte aligned, at least attend_workspace_size() bytes, for this call alone until
// the stream is done with it.
void attend(const AttendArgs &args, const CudaStream &stream, void *workspace, size_t workspace_size);

// With a workspace from the stream's memory pool.
void attend(const AttendArgs &args, const CudaStream &stream);

}  // namespace posattn
