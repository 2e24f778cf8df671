// Memory of the kernels' intermediate results.
#pragma once

namespace posattn {

// From now on what kernels allocate and free again within a call stays with the thread for its next call, up
// to a few MB. The C library would return pieces of this size to the system each time, and getting them back,
// a page fault at a time, cost linear layers a fifth of their speed. Cheap; called before every kernel.
void install_kernel_memory();

}  // namespace posattn
