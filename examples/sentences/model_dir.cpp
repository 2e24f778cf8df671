#include "examples/sentences/model_dir.h"

#include <filesystem>
#include <vector>

namespace sentences {

namespace fs = std::filesystem;

// The build writes down the path of model.safetensors relative to the runfiles of this workspace, which is
// where `bazel run` and `bazel test` start programs. A program started by hand finds them beside itself.
std::string bundled_model_dir() {
  const fs::path weights(
#include "examples/sentences/model_path.inc"
  );
  std::vector<fs::path> roots = {"."};
  std::error_code error;
  const fs::path runfiles = fs::read_symlink("/proc/self/exe", error).string() + ".runfiles";
  for (const auto &workspace : fs::directory_iterator(runfiles, error)) roots.push_back(workspace.path());
  for (const fs::path &root : roots) {
    // Another repository's files lie in external/ or, in newer Bazels, only beside this workspace.
    for (const fs::path &found : {root / weights, root / ".." / weights.lexically_relative("external")})
      if (fs::exists(found, error)) return found.parent_path().string();
  }
  return "";
}

}  // namespace sentences
