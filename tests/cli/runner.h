// Runs the posattn program as a shell would.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "runtime/tensor.h"

namespace posattn::cli_test {

using Arguments = std::vector<std::string>;

struct Finished {
  int exit_code = -1;  // -1: ended by a signal
  std::string out, err;
};

Finished posattn(const Arguments &arguments);

// A folder of its own, deleted at the end.
class Folder {
 public:
  Folder();
  Folder(const Folder &) = delete;
  Folder &operator=(const Folder &) = delete;
  ~Folder();

  std::string path(const std::string &name) const { return path_ + "/" + name; }
  std::vector<std::string> files() const;  // names, sorted
  // Writes tensors to the file `name` and returns its path.
  std::string save(const std::string &name,
                   const std::vector<std::pair<std::string, TensorView>> &tensors) const;

 private:
  std::string path_;
};

// Standard normal numbers times `deviation`, rounded to `type`.
Tensor random_tensor(uint64_t seed, DType type, std::initializer_list<int64_t> shape, double deviation = 1);
Tensor random_mask(uint64_t seed, std::initializer_list<int64_t> shape, double probability);

}  // namespace posattn::cli_test
