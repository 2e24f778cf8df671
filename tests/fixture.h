// Cases that other systems computed; see fixtures/make_fixtures.py for what is in the files.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "runtime/layers/positional_attention_base.h"
#include "runtime/safetensors.h"

namespace posattn::oracle {

class FixtureCase {
 public:
  FixtureCase(const std::string &file, std::string name);
  static std::vector<std::string> names(const std::string &file);  // of all cases in the file

  const SafeTensors &file() const { return file_; }
  std::string prefix() const { return name_ + "."; }  // of the layer's checkpoint
  TensorView find(const std::string &tensor) const { return file_.find(name_ + "/" + tensor); }
  bool is(const std::string &kind) const { return name_.rfind(kind, 0) == 0; }  // by the start of its name
  int64_t integer(const std::string &tensor, int64_t otherwise = 0) const;

  // Streams, masks, positions and what is asked for, as the case has them. Without a key: self-attention.
  ForwardArgs args() const;
  // The accuracy rule for `tensor` ("out", "weights"): the reference is its float64 twin, the naive side the
  // other system's own result.
  ::testing::AssertionResult accurate(const std::string &tensor, const TensorView &actual) const;

 private:
  SafeTensors file_;
  std::string name_;
};

}  // namespace posattn::oracle
