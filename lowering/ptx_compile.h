// Compiles generators with inline PTX. Halide's own way has no place to rewrite a module between the making
// of its PTX text and the writing of the object file.
#pragma once

#include <string>

#include "Halide.h"
#include "lowering/ptx_kernel.h"

namespace posattn {

// FOLDER/FUNCTION.a, a static library, of a generator that is a PtxKernel and whose parameters are set.
// Throws std::runtime_error: where there is ptxas, also for what it says about embedded machine code that
// would be slow.
void compile_ptx(Halide::Internal::AbstractGenerator &generator, const std::string &function,
                 const std::string &folder);

}  // namespace posattn
