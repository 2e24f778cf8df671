// What is wrong is said in one line, the exit code is 2, and no file appears.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>

#include "runtime/cuda/driver.h"
#include "runtime/kernel_registry.h"
#include "tests/cli/runner.h"

namespace posattn::cli_test {
namespace {

using Tensors = std::vector<std::pair<std::string, TensorView>>;

class Errors : public ::testing::Test {
 protected:
  // IN and LAYER in `arguments` stand for the files, OUT for the one to write.
  void expect(const Arguments &arguments, const std::string &part, const Tensors &more = {}) {
    SCOPED_TRACE(::testing::PrintToString(arguments));
    Tensors tensors = {{"q", q.view()},     {"k", k.view()},   {"v", k.view()},
                       {"query", x.view()}, {"key", x.view()}, {"value", x.view()}};
    for (const auto &tensor : more) {
      tensors.erase(std::remove_if(tensors.begin(), tensors.end(),
                                   [&](const auto &other) { return other.first == tensor.first; }),
                    tensors.end());
      if (!tensor.second.empty()) tensors.push_back(tensor);
    }
    folder.save("IN", tensors);
    Arguments replaced = arguments;
    for (std::string &argument : replaced)
      if (argument == "IN" || argument == "OUT" || argument == "LAYER" || argument == "TEXT")
        argument = folder.path(argument);
    const std::vector<std::string> before = folder.files();
    const Finished finished = posattn(replaced);
    EXPECT_EQ(finished.exit_code, 2);
    EXPECT_EQ(finished.out, "");
    EXPECT_EQ(std::count(finished.err.begin(), finished.err.end(), '\n'), 1) << finished.err;
    EXPECT_EQ(finished.err.rfind("posattn: ", 0), 0u) << finished.err;
    EXPECT_NE(finished.err.find(part), std::string::npos) << finished.err;
    EXPECT_EQ(folder.files(), before);
  }

  void SetUp() override {
    std::ofstream(folder.path("TEXT")) << "this is no safetensors file";
    Tensors layer;
    for (const char *name : {"q_proj.weight", "k_proj.weight", "v_proj.weight", "out_proj.weight"})
      layer.emplace_back(name, weight.view());
    folder.save("LAYER", layer);
  }

  Folder folder;
  Tensor q = random_tensor(1, DType::f32, {2, 4, 5, 32}), k = random_tensor(2, DType::f32, {2, 2, 7, 32}),
         x = random_tensor(3, DType::f32, {2, 5, 64}), weight = random_tensor(4, DType::f32, {64, 64});
};

TEST_F(Errors, CommandLine) {
  expect({}, "subcommand");
  expect({"fly"}, "fly");
  expect({"attend"}, "");
  expect({"attend", "IN"}, "--out");
  expect({"attend", "IN", "-o", "OUT", "--unknown"}, "--unknown");
  expect({"attend", "IN", "OUT", "-o", "OUT"}, "");
  expect({"attend", "IN", "-o", "OUT", "-o", "OUT"}, "-o");
}

TEST_F(Errors, Files) {
  expect({"attend", folder.path("missing"), "-o", "OUT"}, "missing");
  expect({"attend", "TEXT", "-o", "OUT"}, "TEXT");
  expect({"attend", "IN", "-o", folder.path("no/such/folder")}, "no/such/folder");
  expect({"mha", "TEXT", "IN", "-o", "OUT", "--heads", "4"}, "TEXT");
  expect({"mha", "LAYER", "TEXT", "-o", "OUT", "--heads", "4"}, "TEXT");
}

TEST_F(Errors, Options) {
  const auto attend = [&](std::vector<std::string> options, const std::string &part) {
    options.insert(options.begin(), {"attend", "IN", "-o", "OUT"});
    expect(options, part);
  };
  attend({"--position", "where"}, "--position");
  attend({"--position", "additive"}, "--position");  // acts on a layer's streams
  attend({"--position", "alibi", "--position", "alibi"}, "more than once");
  attend({"--position", "none", "--position", "alibi"}, "none");
  attend({"--relative-sign", "plus"}, "needs --position relative");
  attend({"--position", "relative", "--relative-sign", "minsu"}, "expected minus|plus");
  attend({"--rope-layout", "half"}, "needs --position rope");
  attend({"--position", "rope", "--rope-layout", "quarter"}, "expected interleaved|half");
  attend({"--rope-base", "5"}, "needs --position rope");
  attend({"--position", "rope", "--rope-base", "fast"}, "--rope-base");
  attend({"--rope-dim", "4"}, "needs --position rope");
  attend({"--position", "rope", "--rope-dim", "0"}, "--rope-dim");
  attend({"--position", "rope", "--rope-dim", "34"}, "frequencies");
  attend({"--t5-max-distance", "5"}, "needs --position t5");
  attend({"--t5-bidirectional", "true"}, "needs --position t5");
  attend({"--causal=sideways"}, "expected bottom-right|top-left|none");
  for (const char *window :
       {"3", "3,", ",3", "3,4,5", "a,b", "-2,0", "1.5,2", "3 ,4", "99999999999999999999,1"})
    attend({"--window", window}, "--window");
  attend({"--softcap", "-1"}, "softcap");
  attend({"--softcap", "nan"}, "softcap");
  attend({"--softcap", "x"}, "--softcap");
  attend({"--scale", "inf"}, "scale");
  attend({"--scale", ""}, "empty");
  attend({"--need-weights", "some"}, "expected none|mean|heads");
  attend({"--dtype", "f64"}, "expected f32|bf16|f16");
  attend({"--device", "tpu"}, "expected cpu|cuda");
  // Where there is a GPU the input is what is wrong.
  if (!cuda::find_driver()) attend({"--device", "cuda"}, "NVIDIA's driver was not found");
  attend({"--target", "abacus"}, "abacus");
  attend({"--threads", "-1"}, "--threads");
  attend({"--threads", "many"}, "--threads");
  attend({"--prefix", "a."}, "--prefix");  // of mha only
}

TEST_F(Errors, TargetsOfOtherMachines) {
  for (const TargetInfo &target : targets())
    if (!target.cpu_has_it) expect({"attend", "IN", "-o", "OUT", "--target", target.name}, target.name);
}

TEST_F(Errors, Tensors) {
  const Arguments attend = {"attend", "IN", "-o", "OUT"};
  const auto with = [&](const Arguments &options) {
    Arguments arguments = attend;
    arguments.insert(arguments.end(), options.begin(), options.end());
    return arguments;
  };
  const Tensor flat = random_tensor(5, DType::f32, {5, 32}),
               bf16 = random_tensor(6, DType::bf16, {2, 2, 7, 32}),
               odd = random_tensor(7, DType::f32, {2, 3, 7, 32}), row = random_tensor(8, DType::f32, {9});
  Tensor integers(DType::i64, {2, 4, 5, 32}), long_lengths(DType::i64, {2}), nan_positions(DType::f32, {5});
  long_lengths.as<int64_t>()[1] = 8;
  nan_positions.as<float>()[3] = std::nanf("");
  for (const char *name : {"q", "k", "v"}) {
    expect(attend, name, {{name, {}}});
    expect(attend, name, {{name, flat.view()}});
  }
  expect(attend, "q", {{"q", integers.view()}});
  expect(with({"--dtype", "f32"}), "q", {{"q", integers.view()}});
  expect(attend, "key", {{"k", bf16.view()}});
  expect(attend, "", {{"k", odd.view()}, {"v", odd.view()}});
  for (const char *name :
       {"keep_mask", "block_mask", "add_mask", "key_keep_mask", "key_block_mask", "key_add_mask",
        "key_lengths", "q_positions", "k_positions", "q_position_mask", "k_position_mask"})
    expect(attend, name, {{name, row.view()}});
  expect(attend, "key_lengths", {{"key_lengths", long_lengths.view()}});
  expect(attend, "q_positions", {{"q_positions", nan_positions.view()}});
  expect(with({"--position", "relative"}), "relative");
  expect(with({"--position", "t5"}), "t5");
  expect(with({"--position", "dense"}), "dense");
  expect(with({"--position", "relative"}), "relative", {{"relative_bias", flat.view()}});
  expect(with({"--position", "alibi"}), "alibi", {{"alibi_slopes", row.view()}});
  expect(with({"--position", "t5"}), "t5", {{"t5_bias", row.view()}});
  expect(with({"--position", "rope"}), "inv_freq", {{"inv_freq", flat.view()}});
  expect(with({"--position", "rope", "--rope-base", "5"}), "inv_freq", {{"inv_freq", row.view()}});
  expect(with({"--position", "dense"}), "dense", {{"dense_bias", row.view()}});
}

TEST_F(Errors, Mha) {
  const auto mha = [&](Arguments options, const std::string &part, const Tensors &more = {}) {
    options.insert(options.begin(), {"mha", "LAYER", "IN", "-o", "OUT"});
    expect(options, part, more);
  };
  const Tensor narrow = random_tensor(9, DType::f32, {2, 5, 32});
  mha({}, "--heads");
  mha({"--heads", "0"}, "--heads");
  mha({"--heads", "5"}, "--heads");
  mha({"--heads", "4", "--kv-heads", "3"}, "");
  mha({"--heads", "4", "--prefix", "blocks.7."}, "blocks.7.");
  mha({"--heads", "4", "--position", "additive"}, "pos_emb");
  mha({"--heads", "4", "--position", "where"}, "--position");
  if (!cuda::find_driver()) mha({"--heads", "4", "--device", "cuda"}, "NVIDIA's driver was not found");
  mha({"--heads", "4"}, "query", {{"query", {}}});
  mha({"--heads", "4"}, "key", {{"key", {}}});
  mha({"--heads", "4"}, "x", {{"x", x.view()}});  // beside query, key and value
  mha({"--heads", "4"}, "query", {{"query", narrow.view()}});
  mha({"--heads", "4"}, "value", {{"value", narrow.view()}});
  mha({"--heads", "4"}, "keep_mask", {{"keep_mask", narrow.view()}});
}

TEST_F(Errors, OtherCommands) {
  expect({"kernels", "--target", "abacus"}, "abacus");
  expect({"kernels", "extra"}, "extra");
  expect({"verify", "--cases", "0"}, "--cases");
  expect({"verify", "--target", "abacus"}, "abacus");
  expect({"verify", "--kind", "abacus"}, "no kernel");
  expect({"bench", "--kind", "abacus"}, "no kernel");
  expect({"bench", "--seconds", "-1"}, "--seconds");
  expect({"bench", "--queries", "0"}, "--queries");
}

TEST_F(Errors, AnOldFileStaysAsItWas) {
  std::ofstream(folder.path("OUT")) << "old";
  expect({"attend", "IN", "-o", "OUT", "--window", "x"}, "--window");
  expect({"attend", "IN", "-o", "OUT"}, "key_lengths", {{"key_lengths", weight.view()}});
  std::ifstream file(folder.path("OUT"));
  std::string text;
  file >> text;
  EXPECT_EQ(text, "old");
}

}  // namespace
}  // namespace posattn::cli_test
