// Splitting float32 into two numbers of 11 bits, as tensor cores take them (tf32).
#pragma once

#include <string>

#include "lowering/ptx_ops.h"

namespace posattn {

// Into `name`h and `name`l, from a register. Tensor cores drop the low 13 bits of what they get. The high
// part is rounded by integer addition, and exact once these are gone; the low one, left as it is, keeps every
// NaN. (An infinity becomes a NaN.)
inline std::string split_tf32(const std::string &name, const std::string &from) {
  return "\tadd.u32 " + name + "h, " + from + ", 0x1000; and.b32 " + name + "h, " + name +
         "h, 0xffffe000; sub.f32 " + name + "l, " + from + ", " + name + "h;\n";
}
// Names of the parts of `name`0, `name`1, ..., for a declaration.
inline std::string split_names(const std::string &name, int count) {
  std::string text;
  for (int i = 0; i < count; i++) {
    const std::string each = name + number(i);
    text += (i > 0 ? ", " : "") + each + "h, " + each + "l";
  }
  return text;
}
// Four registers of a part, 'h' or 'l'.
inline std::string split_list(const std::string &name, int first, char part) {
  std::string text = "{";
  for (int i = 0; i < 4; i++) text += (i > 0 ? "," : "") + name + number(first + i) + part;
  return text + "}";
}

}  // namespace posattn
