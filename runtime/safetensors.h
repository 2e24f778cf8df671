// Files of named tensors, in the format that the frameworks exchange: 8 bytes of header length, a JSON
// header, and the tensors' bytes.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "runtime/tensor.h"

namespace posattn {

// A file that is open for reading. Files are untrusted: whatever is wrong with one (truncated, a header that
// is too large or no JSON, unknown or repeated keys, offsets that overlap, leave a gap or point outside)
// throws an Error that names the file. Copies share the file. Safe to use from several threads.
class SafeTensors {
 public:
  // Reads and checks the header; the tensors are read when they are asked for.
  static SafeTensors open(const std::string &path);
  // The same on bytes in memory, which must outlive the object. `name` stands for the path in errors.
  static SafeTensors parse(const void *bytes, size_t size, const std::string &name = "safetensors");

  std::vector<std::string> names() const;  // in the order of the file's bytes
  bool has(const std::string &name) const;
  // The named tensor, contiguous and 64-byte aligned; it lives as long as this object or a copy of it. Error
  // if there is none, if it has a type that posattn does not compute with, or if the file cannot be read.
  TensorView get(const std::string &name) const;
  // The same, or an empty view if there is none.
  TensorView find(const std::string &name) const;

 private:
  struct Content;
  std::shared_ptr<Content> content_;
};

// Writes the tensors under a temporary name in the same folder, then renames: a failure throws an Error,
// leaves no file behind and an old file as it was. Names must be UTF-8 and differ. Any strides.
void save_safetensors(const std::string &path,
                      const std::vector<std::pair<std::string, TensorView>> &tensors);

}  // namespace posattn
