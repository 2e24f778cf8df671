// posattn attend against the library, whose own tests hold it against float64.
#include <gtest/gtest.h>

#include <cmath>
#include <sstream>

#include "runtime/kernel_registry.h"
#include "runtime/safetensors.h"
#include "tests/case.h"
#include "tests/check.h"
#include "tests/cli/runner.h"

namespace posattn::cli_test {
namespace {

using oracle::Case;
using oracle::CaseSpec;

using Tensors = std::vector<std::pair<std::string, TensorView>>;

// What `attend` reads, by the names that the command line gives it.
Tensors tensors_of(const AttendArgs &args) {
  Tensors tensors = {{"q", args.query}, {"k", args.key}, {"v", args.value}};
  const Tensors optional = {{"keep_mask", args.keep_mask},
                            {"block_mask", args.block_mask},
                            {"add_mask", args.add_mask},
                            {"key_keep_mask", args.key_keep_mask},
                            {"key_block_mask", args.key_block_mask},
                            {"key_add_mask", args.key_add_mask},
                            {"key_lengths", args.key_lengths},
                            {"q_positions", args.q_positions},
                            {"k_positions", args.k_positions},
                            {"q_position_mask", args.q_position_mask},
                            {"k_position_mask", args.k_position_mask},
                            {"dense_bias", args.dense_bias}};
  for (const auto &tensor : optional)
    if (!tensor.second.empty()) tensors.push_back(tensor);
  for (const LogitBranch *branch : args.branches) {
    if (const auto *relative = dynamic_cast<const Relative *>(branch))
      tensors.emplace_back("relative_bias", relative->table());
    if (const auto *alibi = dynamic_cast<const Alibi *>(branch))
      tensors.emplace_back("alibi_slopes", alibi->slopes());
    if (const auto *t5 = dynamic_cast<const T5 *>(branch)) tensors.emplace_back("t5_bias", t5->table());
  }
  if (args.rope) tensors.emplace_back("inv_freq", args.rope->inv_freq);
  return tensors;
}

// The options that say what a case is.
Arguments options_of(const CaseSpec &spec) {
  Arguments options;
  const auto add = [&](const std::string &name, const std::string &value) {
    options.insert(options.end(), {name, value});
  };
  for (const std::string &branch : spec.branches) {
    add("--position", branch);
    if (branch == "relative") add("--relative-sign", spec.relative_plus ? "plus" : "minus");
    if (branch == "t5") {
      add("--t5-max-distance", std::to_string(spec.t5_max_distance));
      add("--t5-bidirectional", spec.t5_bidirectional ? "true" : "false");
    }
  }
  if (spec.rotary_dim) {
    add("--position", "rope");
    add("--rope-layout", spec.rope_layout == Rope::Layout::half ? "half" : "interleaved");
  }
  if (spec.dense.given) add("--position", "dense");
  if (spec.causal == Causal::bottom_right) options.push_back("--causal");
  if (spec.causal == Causal::top_left) add("--causal", "top-left");
  if (spec.window_left >= 0 || spec.window_right >= 0)
    add("--window", std::to_string(spec.window_left) + "," + std::to_string(spec.window_right));
  std::ostringstream number;
  number.precision(9);
  if (spec.softcap > 0) {
    number << spec.softcap;
    add("--softcap", number.str());
  }
  if (spec.scale) {
    number.str("");
    number << *spec.scale;
    add("--scale", number.str());
  }
  if (spec.weights != Weights::none) add("--need-weights", spec.weights == Weights::mean ? "mean" : "heads");
  if (spec.lse) options.push_back("--lse");
  return options;
}

void expect_tensor(const SafeTensors &file, const std::string &name, const TensorView &expected) {
  ASSERT_EQ(file.has(name), !expected.empty()) << name;
  if (!expected.empty()) {
    EXPECT_TRUE(oracle::same_bits(file.get(name), expected)) << name;
  }
}

// Runs the program on the case: it writes what attend() computes, and nothing else.
void check(Case &c, const Folder &folder, const Arguments &more = {}) {
  SCOPED_TRACE(oracle::describe(c.spec()));
  Arguments arguments = options_of(c.spec());
  arguments.insert(arguments.begin(), "attend");
  arguments.insert(arguments.end(), {folder.save("in", tensors_of(c.args())), "-o", folder.path("out")});
  arguments.insert(arguments.end(), more.begin(), more.end());
  const Finished finished = posattn(arguments);
  ASSERT_EQ(finished.exit_code, 0) << finished.err;
  EXPECT_EQ(finished.out + finished.err, "");

  c.attend();
  const SafeTensors out = SafeTensors::open(folder.path("out"));
  expect_tensor(out, "out", c.args().out);
  expect_tensor(out, "lse", c.args().lse);
  expect_tensor(out, "weights", c.args().weights);
}

void check(const CaseSpec &spec, const Arguments &more = {}) {
  const Folder folder;
  Case c(spec);
  check(c, folder, more);
}

CaseSpec plain() {
  CaseSpec spec;
  spec.queries = 20;
  spec.keys = 50;
  spec.head_dim = spec.value_dim = 32;
  return spec;
}

TEST(Attend, RandomCasesWithEveryOption) {
  for (uint64_t seed = 1; seed <= 60; ++seed) check(oracle::random_spec(seed, oracle::linked_branch_sets()));
}

TEST(Attend, EachTensorByItsName) {
  CaseSpec spec = plain();
  check(spec);
  using Change = void (*)(CaseSpec &);
  const Change changes[] = {
      [](CaseSpec &s) { s.keep.given = true; },
      [](CaseSpec &s) { s.block.given = true; },
      [](CaseSpec &s) { s.add.given = true; },
      [](CaseSpec &s) { s.dense.given = true; },
      [](CaseSpec &s) { s.key_keep = true; },
      [](CaseSpec &s) { s.key_block = true; },
      [](CaseSpec &s) { s.key_add = true; },
      [](CaseSpec &s) { s.key_lengths = true; },
      [](CaseSpec &s) { s.branches = {"relative"}; },
      [](CaseSpec &s) { s.branches = {"alibi"}; },
      [](CaseSpec &s) { s.branches = {"t5"}; },
      [](CaseSpec &s) {
        s.branches = {"alibi", "relative", "t5"};
      },
      [](CaseSpec &s) { s.rotary_dim = 16; },
      [](CaseSpec &s) {
        s.branches = {"relative"};
        s.positions = oracle::PositionKind::scattered;
        s.position_type = DType::i64;
      },
      [](CaseSpec &s) {
        s.branches = {"alibi"};
        s.rotary_dim = 8;
        s.positions = oracle::PositionKind::fractional;
        s.q_position_mask = s.k_position_mask = true;
      },
  };
  for (const Change change : changes) {
    spec = plain();
    change(spec);
    check(spec);
  }
}

TEST(Attend, DefaultsOfPositions) {
  // No slopes and no frequencies in the file: the paper's, and base 10000 over the whole head or as options
  // say.
  CaseSpec spec = plain();
  spec.branches = {"alibi"};
  spec.rotary_dim = 32;
  struct {
    int64_t rotary_dim;
    double base;
    Arguments options;
  } const variants[] = {{32, 10000, {}},
                        {32, 500, {"--rope-base", "500"}},
                        {20, 10000, {"--rope-dim", "20"}},
                        {12, 500, {"--rope-base", "500", "--rope-dim", "12"}}};
  for (const auto &variant : variants) {
    const Folder folder;
    Case c(spec);
    Tensor inv_freq(DType::f32, {variant.rotary_dim / 2});
    Rope::default_inv_freq(variant.rotary_dim, variant.base, inv_freq.as<float>());
    const Rope rope{inv_freq.view(), Rope::Layout::interleaved};
    Arguments arguments = {
        "attend",
        "--position",
        "alibi",
        "--position",
        "rope",
        "-o",
        folder.path("out"),
        folder.save("in", {{"q", c.args().query}, {"k", c.args().key}, {"v", c.args().value}})};
    arguments.insert(arguments.end(), variant.options.begin(), variant.options.end());
    const Finished finished = posattn(arguments);
    ASSERT_EQ(finished.exit_code, 0) << finished.err;
    c.args().rope = &rope;
    c.args().lse = {};
    copy(SafeTensors::open(folder.path("out")).get("out"), c.args().out);
    EXPECT_TRUE(oracle::accurate(c.args())) << variant.rotary_dim << " " << variant.base;
  }
}

TEST(Attend, CausalAlone) {
  // Bare, it never takes the file for its value, wherever it stands.
  const Folder folder;
  CaseSpec spec = plain();
  spec.causal = Causal::bottom_right;
  spec.lse = false;
  Case c(spec);
  const std::string in = folder.save("in", tensors_of(c.args())), out = folder.path("out");
  for (const Arguments &arguments :
       {Arguments{"attend", "--causal", in, "-o", out}, Arguments{"attend", in, "-o", out, "--causal"},
        Arguments{"attend", in, "--causal", "bottom-right", "-o", out},
        Arguments{"attend", in, "--causal=bottom-right", "--out", out}}) {
    const Finished finished = posattn(arguments);
    ASSERT_EQ(finished.exit_code, 0) << finished.err;
    copy(SafeTensors::open(out).get("out"), c.args().out);
    EXPECT_TRUE(oracle::accurate(c.args()));
  }
}

TEST(Attend, ComputesInTheTypeAskedFor) {
  const Folder folder;
  for (const DType stored : {DType::f32, DType::bf16, DType::f16, DType::f64}) {
    for (const DType type : {DType::f32, DType::bf16, DType::f16}) {
      const Tensor q = random_tensor(1, stored, {2, 4, 20, 32}), k = random_tensor(2, stored, {2, 2, 30, 32}),
                   v = random_tensor(3, stored, {2, 2, 30, 24});
      const Finished finished =
          posattn({"attend", folder.save("in", {{"q", q.view()}, {"k", k.view()}, {"v", v.view()}}), "-o",
                   folder.path("out"), "--dtype", name_of(type), "--need-weights", "mean"});
      ASSERT_EQ(finished.exit_code, 0) << finished.err;

      const Tensor query = q.to(type), key = k.to(type), value = v.to(type);
      const Tensor out(type, {2, 4, 20, 24}), weights(type, {2, 20, 30});
      AttendArgs args;
      args.query = query.view();
      args.key = key.view();
      args.value = value.view();
      args.out = out;
      args.weights = weights;
      args.need_weights = Weights::mean;
      attend(args);
      const SafeTensors written = SafeTensors::open(folder.path("out"));
      EXPECT_TRUE(oracle::same_bits(written.get("out"), out.to(stored).view()))
          << name_of(stored) << name_of(type);
      EXPECT_TRUE(oracle::same_bits(written.get("weights"), weights.to(stored).view()));
    }
  }
}

TEST(Attend, EveryTargetAndTheSameBitsForAnyThreads) {
  CaseSpec spec = plain();
  spec.queries = 130;
  oracle::on_every_target([&] {
    const std::string target = current_target();
    for (const char *threads : {"1", "2", "5", "0"}) check(spec, {"--target", target, "--threads", threads});
  });
}

TEST(Attend, EmptySizes) {
  struct {
    int64_t batch, queries, keys;
  } const sizes[] = {{0, 3, 4}, {2, 0, 4}, {2, 3, 0}};
  for (const auto &size : sizes) {
    const Folder folder;
    const Tensor q(DType::f32, {size.batch, 2, size.queries, 32}),
        k(DType::f32, {size.batch, 2, size.keys, 32});
    const Finished finished =
        posattn({"attend", folder.save("in", {{"q", q.view()}, {"k", k.view()}, {"v", k.view()}}), "-o",
                 folder.path("out"), "--lse", "--need-weights", "heads"});
    ASSERT_EQ(finished.exit_code, 0) << finished.err;
    const SafeTensors out = SafeTensors::open(folder.path("out"));
    EXPECT_EQ(out.get("out").shape_text(), q.view().shape_text());
    for (int64_t i = 0; i < out.get("lse").num_elements(); ++i)
      EXPECT_EQ(out.get("lse").as<float>()[i], -INFINITY);
  }
}

TEST(Attend, ReplacesAnOldFileAndMayOverwriteItsInput) {
  const Folder folder;
  Case c(plain());
  const std::string in = folder.save("in", tensors_of(c.args()));
  ASSERT_EQ(posattn({"attend", in, "-o", in}).exit_code, 0);
  EXPECT_EQ(SafeTensors::open(in).names(), std::vector<std::string>{"out"});
  EXPECT_EQ(folder.files(), std::vector<std::string>{"in"});
}

TEST(Attend, SaysWhatItDoesNotUse) {
  const Folder folder;
  Case c(plain());
  Tensors tensors = tensors_of(c.args());
  const Tensor extra(DType::f32, {1});
  tensors.emplace_back("keep_maks", extra.view());
  tensors.emplace_back("relative_bias", extra.view());  // but no --position relative
  const Finished finished = posattn({"attend", folder.save("in", tensors), "-o", folder.path("out")});
  EXPECT_EQ(finished.exit_code, 0);
  EXPECT_NE(finished.err.find("keep_maks"), std::string::npos) << finished.err;
  EXPECT_NE(finished.err.find("relative_bias"), std::string::npos) << finished.err;
}

}  // namespace
}  // namespace posattn::cli_test
