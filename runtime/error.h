// The one exception of the library.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace posattn {

// Thrown for every bad argument, file or environment, before anything has run. The text says which argument,
// what was expected and what came, e.g. "key_lengths: expected shape (2), got (3)".
class Error : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

// fail("key_lengths: expected ", n, ", got ", m) throws an Error with the pieces joined.
template <typename... Parts>
[[noreturn]] void fail(const Parts &...parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw Error(text.str());
}

}  // namespace posattn
