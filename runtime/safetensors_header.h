// The header of a safetensors file: what it may say, and the only parser of untrusted text in the library.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "runtime/tensor.h"

namespace posattn {

// The reference implementation's limit.
constexpr uint64_t kMaxSafeTensorsHeader = 100 * 1000 * 1000;

struct SafeTensorsEntry {
  std::string name, type_name;
  std::optional<DType> type;  // none: a valid type of the format that posattn does not compute with
  int rank = 0;               // may be above kMaxRank: then shape holds only the first dimensions
  int64_t shape[kMaxRank] = {};
  uint64_t begin = 0, end = 0;  // bytes, from the end of the header
};

// The entries of a header, by begin. `file` stands for the file in errors; data_size is what follows the
// header. Entries do not overlap and cover all of the data.
std::vector<SafeTensorsEntry> parse_safetensors_header(const char *json, size_t size, uint64_t data_size,
                                                       const std::string &file);

const char *safetensors_type(DType type);  // "F32", "BF16", ...

}  // namespace posattn
