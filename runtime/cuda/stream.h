// Where the work of a call goes on a GPU.
#pragma once

namespace posattn {

// Calls that take one expect every tensor in the memory of its GPU, put their kernels onto the stream and
// return: nothing is waited for, nothing is copied between host and GPU but the few numbers that a branch
// brings itself (t5), and a stream that is being captured into a CUDA graph captures them. The first call of
// a kernel in a context loads it, which takes milliseconds.
struct CudaStream {
  // A CUstream or cudaStream_t; its context is used, whatever the thread's current one is. Null: the default
  // stream of the thread's current context, or of the primary context of `device` where it has none.
  void *handle = nullptr;
  int device = 0;
};

}  // namespace posattn
