#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <climits>
#include <cstdlib>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>

#include "runtime/error.h"
#include "runtime/safetensors.h"
#include "runtime/safetensors_header.h"

namespace posattn {
namespace {

// A file under a temporary name that disappears unless commit() is reached.
class Output {
 public:
  explicit Output(const std::string &path) : path_(path) {
    // What is no regular file (a pipe, /dev/stdout) is written in place: renaming would replace it.
    struct stat info;
    in_place_ = ::stat(path.c_str(), &info) == 0 && !S_ISREG(info.st_mode);
    if (in_place_) {
      descriptor_ = ::open(path.c_str(), O_WRONLY | O_CLOEXEC);
    } else {
      resolve_link();
      // Several threads and processes may write the same path: each has a name of its own, the last one wins.
      static std::atomic<unsigned> counter{0};
      for (int attempt = 0; attempt < 100 && descriptor_ < 0; ++attempt) {
        temporary_ = path_ + ".tmp." + std::to_string(::getpid()) + "." + std::to_string(counter++);
        descriptor_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (descriptor_ < 0 && errno != EEXIST) break;
      }
    }
    if (descriptor_ < 0) fail(path, ": cannot write: ", std::strerror(errno));
  }
  Output(const Output &) = delete;
  Output &operator=(const Output &) = delete;
  ~Output() {
    if (descriptor_ >= 0) ::close(descriptor_);
    if (!in_place_ && !committed_ && !temporary_.empty()) ::unlink(temporary_.c_str());
  }

  void write(const void *data, int64_t count) {
    const char *bytes = static_cast<const char *>(data);
    while (count > 0) {
      constexpr int64_t kLargestWrite = int64_t{1} << 30;
      const ssize_t done = ::write(descriptor_, bytes, static_cast<size_t>(std::min(count, kLargestWrite)));
      if (done < 0 && errno == EINTR) continue;
      if (done < 0) fail(path_, ": cannot write: ", std::strerror(errno));
      bytes += done;
      count -= done;
    }
  }

  void commit() {
    const int closed = ::close(descriptor_);
    descriptor_ = -1;
    if (closed != 0) fail(path_, ": cannot write: ", std::strerror(errno));
    if (!in_place_ && ::rename(temporary_.c_str(), path_.c_str()) != 0) {
      fail(path_, ": cannot write: ", std::strerror(errno));
    }
    committed_ = true;
  }

 private:
  // The target of a symbolic link is replaced, not the link.
  void resolve_link() {
    char resolved[PATH_MAX];
    if (::realpath(path_.c_str(), resolved)) path_ = resolved;
  }

  std::string path_, temporary_;
  int descriptor_ = -1;
  bool in_place_ = false, committed_ = false;
};

}  // namespace

void save_safetensors(const std::string &path,
                      const std::vector<std::pair<std::string, TensorView>> &tensors) {
  // Wide types first, so that every tensor is aligned to its type in the file.
  std::vector<const std::pair<std::string, TensorView> *> order;
  std::set<std::string> names;
  for (const auto &tensor : tensors) {
    if (tensor.second.empty()) fail(path, ": '", tensor.first, "': expected a tensor, got none");
    if (tensor.first == "__metadata__") fail(path, ": a tensor cannot be called __metadata__");
    if (!names.insert(tensor.first).second) fail(path, ": two tensors are called '", tensor.first, "'");
    order.push_back(&tensor);
  }
  std::stable_sort(order.begin(), order.end(), [](const auto *a, const auto *b) {
    return size_of(a->second.dtype()) > size_of(b->second.dtype());
  });

  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  int64_t position = 0;
  for (const auto *tensor : order) {
    const TensorView &view = tensor->second;
    nlohmann::ordered_json shape = nlohmann::ordered_json::array();
    int64_t bytes = size_of(view.dtype());
    for (int d = 0; d < view.rank(); ++d) {
      shape.push_back(view.size(d));
      bytes = checked_product(bytes, view.size(d), "safetensors: size");
    }
    int64_t end;
    if (__builtin_add_overflow(position, bytes, &end)) fail(path, ": the tensors do not fit 63 bits");
    header[tensor->first] = {
        {"dtype", safetensors_type(view.dtype())}, {"shape", shape}, {"data_offsets", {position, end}}};
    position = end;
  }
  std::string text;
  try {
    text = header.dump();
  } catch (const nlohmann::json::exception &) {
    fail(path, ": a tensor's name is not UTF-8");
  }
  text.resize((text.size() + 7) / 8 * 8, ' ');
  if (text.size() > kMaxSafeTensorsHeader) fail(path, ": the header of ", text.size(), " bytes is too large");

  Output output(path);
  unsigned char length[8];
  for (int i = 0; i < 8; ++i) length[i] = static_cast<unsigned char>(text.size() >> (8 * i));
  output.write(length, sizeof(length));
  output.write(text.data(), static_cast<int64_t>(text.size()));
  for (const auto *tensor : order) {
    const TensorView &view = tensor->second;
    const int64_t bytes = view.num_elements() * size_of(view.dtype());
    if (view.contiguous()) {
      output.write(view.data(), bytes);
    } else {
      output.write(copy_of(view, view.dtype()).as<char>(), bytes);
    }
  }
  output.commit();
}

}  // namespace posattn
