// The example's output.
#pragma once

#include <ostream>
#include <string>
#include <vector>

#include "examples/sentences/timings.h"
#include "runtime/tensor.h"

namespace sentences {

// One row a sentence: its number, its cosine with every sentence, its beginning.
void print_similarity(std::ostream &out, const posattn::TensorView &cosines,
                      const std::vector<std::string> &sentences);

void print_timings(std::ostream &out, const Timings &timings);

}  // namespace sentences
