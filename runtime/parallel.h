// Between kernels and threads.h.
#pragma once

namespace posattn {

// Makes the kernels' parallel loops follow threads.h. Cheap; called before every kernel.
void install_parallel_for();

}  // namespace posattn
