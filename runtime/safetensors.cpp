#include "runtime/safetensors.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <map>
#include <mutex>

#include "runtime/error.h"
#include "runtime/safetensors_header.h"

namespace posattn {
namespace {

// Closes on destruction.
class File {
 public:
  explicit File(int descriptor) : descriptor_(descriptor) {}
  File(const File &) = delete;
  File &operator=(const File &) = delete;
  ~File() {
    if (descriptor_ >= 0) ::close(descriptor_);
  }
  int get() const { return descriptor_; }

 private:
  int descriptor_;
};

uint64_t little_endian_64(const unsigned char *bytes) {
  uint64_t value = 0;
  for (int i = 7; i >= 0; --i) value = value << 8 | bytes[i];
  return value;
}

}  // namespace

struct SafeTensors::Content {
  std::string name;
  std::vector<SafeTensorsEntry> entries;
  std::map<std::string, size_t> index;  // into entries
  uint64_t data_begin = 0;              // in the file or the bytes
  std::unique_ptr<File> file;           // or
  const char *bytes = nullptr;
  size_t size = 0;
  std::mutex mutex;
  std::vector<Tensor> loaded;  // by entry; empty until asked for

  void read(uint64_t offset, void *to, uint64_t count) const {
    if (bytes) {
      if (count > 0) std::memcpy(to, bytes + offset, count);
      return;
    }
    char *out = static_cast<char *>(to);
    while (count > 0) {
      constexpr uint64_t kLargestRead = uint64_t{1} << 30;
      const ssize_t got =
          ::pread(file->get(), out, std::min(count, kLargestRead), static_cast<off_t>(offset));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) fail(name, ": cannot read: ", std::strerror(errno));
      if (got == 0) fail(name, ": the file ends at byte ", offset, ": it is truncated");
      out += got;
      offset += static_cast<uint64_t>(got);
      count -= static_cast<uint64_t>(got);
    }
  }

  void read_header() {
    constexpr uint64_t kLengthBytes = 8;
    if (size < kLengthBytes) fail(name, ": expected at least 8 bytes, got ", size);
    unsigned char length_bytes[kLengthBytes];
    read(0, length_bytes, kLengthBytes);
    const uint64_t length = little_endian_64(length_bytes);
    if (length > kMaxSafeTensorsHeader) {
      fail(name, ": expected a header of at most ", kMaxSafeTensorsHeader, " bytes, got ", length);
    }
    if (length > size - kLengthBytes) {
      fail(name, ": a header of ", length, " bytes is announced, ", size - kLengthBytes,
           " follow: the file is truncated");
    }
    std::string header(length, '\0');
    read(kLengthBytes, &header[0], length);
    data_begin = kLengthBytes + length;
    entries = parse_safetensors_header(header.data(), header.size(), size - data_begin, name);
    for (size_t i = 0; i < entries.size(); ++i) index.emplace(entries[i].name, i);
    loaded.resize(entries.size());
  }
};

SafeTensors SafeTensors::open(const std::string &path) {
  SafeTensors result;
  result.content_ = std::make_shared<Content>();
  Content &content = *result.content_;
  content.name = path;
  // Without waiting for the other end of what turns out to be a pipe.
  content.file = std::make_unique<File>(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (content.file->get() < 0) fail(path, ": cannot open: ", std::strerror(errno));
  struct stat info;
  if (::fstat(content.file->get(), &info) != 0) fail(path, ": cannot open: ", std::strerror(errno));
  if (!S_ISREG(info.st_mode)) fail(path, ": expected a regular file");
  content.size = static_cast<size_t>(info.st_size);
  content.read_header();
  return result;
}

SafeTensors SafeTensors::parse(const void *bytes, size_t size, const std::string &name) {
  SafeTensors result;
  result.content_ = std::make_shared<Content>();
  result.content_->name = name;
  result.content_->bytes = size > 0 ? static_cast<const char *>(bytes) : "";
  result.content_->size = size;
  result.content_->read_header();
  return result;
}

std::vector<std::string> SafeTensors::names() const {
  std::vector<std::string> names;
  for (const SafeTensorsEntry &entry : content_->entries) names.push_back(entry.name);
  return names;
}

bool SafeTensors::has(const std::string &name) const { return content_->index.count(name) > 0; }

TensorView SafeTensors::find(const std::string &name) const { return has(name) ? get(name) : TensorView(); }

TensorView SafeTensors::get(const std::string &name) const {
  Content &content = *content_;
  const auto found = content.index.find(name);
  if (found == content.index.end()) fail(content.name, ": there is no tensor '", name, "'");
  const SafeTensorsEntry &entry = content.entries[found->second];
  if (!entry.type) {
    fail(content.name, ": '", name, "': expected F32, BF16, F16, F64, I64, I32 or BOOL, got ",
         entry.type_name);
  }
  if (entry.rank > kMaxRank) {
    fail(content.name, ": '", name, "': expected at most ", kMaxRank, " dimensions, got ", entry.rank);
  }
  const std::lock_guard<std::mutex> lock(content.mutex);
  Tensor &tensor = content.loaded[found->second];
  if (tensor.empty()) {
    Tensor fresh(*entry.type, entry.rank, entry.shape);
    content.read(content.data_begin + entry.begin, fresh.as<void>(), entry.end - entry.begin);
    tensor = std::move(fresh);
  }
  return tensor.view();
}

}  // namespace posattn
