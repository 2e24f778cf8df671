#include "tests/fixture.h"

#include "tests/reference.h"

namespace posattn::oracle {
namespace {

// Tests run in the repository's root, and Bazel's in a copy of it.
SafeTensors open(const std::string &file) {
  return SafeTensors::open("tests/fixtures/" + file + ".safetensors");
}

}  // namespace

FixtureCase::FixtureCase(const std::string &file, std::string name)
    : file_(open(file)), name_(std::move(name)) {}

std::vector<std::string> FixtureCase::names(const std::string &file) {
  const std::string end = "/out";
  std::vector<std::string> cases;
  for (const std::string &name : open(file).names()) {
    if (name.size() > end.size() && name.compare(name.size() - end.size(), end.size(), end) == 0) {
      cases.push_back(name.substr(0, name.size() - end.size()));
    }
  }
  return cases;
}

int64_t FixtureCase::integer(const std::string &tensor, int64_t otherwise) const {
  const TensorView found = find(tensor);
  return found.empty() ? otherwise : *found.as<int64_t>();
}

ForwardArgs FixtureCase::args() const {
  ForwardArgs args;
  args.query = find("query");
  args.key = find("key");
  args.value = find("value");
  if (args.key.empty()) args.key = args.value = args.query;
  args.q_positions = find("q_positions");
  args.k_positions = find("k_positions");
  args.q_position_mask = find("q_position_mask");
  args.k_position_mask = find("k_position_mask");
  args.keep_mask = find("keep_mask");
  args.block_mask = find("block_mask");
  args.add_mask = find("add_mask");
  args.key_block_mask = find("key_block_mask");
  args.key_add_mask = find("key_add_mask");
  args.causal = static_cast<Causal>(integer("causal"));  // 0 none, 1 bottom-right, 2 top-left
  const TensorView weights = find("weights");
  if (!weights.empty()) args.need_weights = weights.rank() == 3 ? Weights::mean : Weights::heads;
  return args;
}

::testing::AssertionResult FixtureCase::accurate(const std::string &tensor, const TensorView &actual) const {
  const TensorView naive = find(tensor);
  if (naive.empty() || naive.shape_text() != actual.shape_text() || naive.dtype() != actual.dtype()) {
    return ::testing::AssertionFailure()
           << tensor << ": expected " << (naive.empty() ? "nothing" : naive.shape_text()) << ", got "
           << actual.shape_text() << " " << name_of(actual.dtype());
  }
  const Comparison result = compare(tensor, actual, values_of(find(tensor + "64")), values_of(naive));
  if (result.ok) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << result.text;
}

}  // namespace posattn::oracle
