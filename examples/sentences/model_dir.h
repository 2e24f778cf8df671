// Where Bazel put the model.
#pragma once

#include <string>

namespace sentences {

// The directory of all-MiniLM-L6-v2 among the runfiles of this program, or "" when it is run without them.
std::string bundled_model_dir();

}  // namespace sentences
