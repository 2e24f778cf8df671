#include "tools/tune/loaded_kernel.h"

#include <dlfcn.h>

#include <deque>

#include "runtime/error.h"

namespace posattn::tune {
namespace {

template <typename Function>
Function function(void *library, const std::string &name) {
  void *found = dlsym(library, name.c_str());
  if (!found) fail(name, ": not in the candidate's library");
  return reinterpret_cast<Function>(found);
}

}  // namespace

const KernelInfo &load_kernel(const std::string &library, const std::string &symbol, const KernelKey &key) {
  // With a slash: else it is looked for among the system's libraries.
  const std::string path = library.find('/') == std::string::npos ? "./" + library : library;
  void *handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!handle) fail("candidate: ", dlerror());
  static std::deque<KernelInfo> kernels;  // a deque's elements stay where they are
  kernels.push_back({key.kind.c_str(), key.branches.c_str(), key.head_dim, key.type.c_str(),
                     key.target.c_str(), 0, function<int (*)(void **)>(handle, symbol + "_argv"),
                     function<const halide_filter_metadata_t *(*)()>(handle, symbol + "_metadata")});
  const KernelTable table(&kernels.back(), 1);
  return kernels.back();
}

}  // namespace posattn::tune
