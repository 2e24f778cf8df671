// What attend and mha write.
#pragma once

#include <string>

#include "runtime/tensor.h"

namespace posattn::cli {

// A file with `out` and, unless they are empty, `weights`, both converted to `type`, and `lse`.
void save_results(const std::string &path, DType type, const Tensor &out, const Tensor &weights,
                  const Tensor &lse);

}  // namespace posattn::cli
