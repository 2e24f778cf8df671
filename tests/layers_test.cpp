// Layers against the systems that they stand in for: torch.nn.MultiheadAttention, symm-learning's five
// classes, and ESPnet's MultiHeadAttention with its cache.
#include "runtime/layers/layers.h"

#include "runtime/error.h"
#include "runtime/layers/multi_head_attention.h"
#include "tests/check.h"
#include "tests/device.h"
#include "tests/fixture.h"

namespace posattn::oracle {
namespace {

std::string test_name(const testing::TestParamInfo<std::string> &info) { return info.param; }

LayerOptions options_of(const FixtureCase &c) {
  LayerOptions options;
  options.device = layer_device();
  options.num_heads = c.integer("heads");
  options.add_zero_attn = c.integer("zero_attn") != 0;
  return options;
}

// The result is the fixture's; and it does not depend on who owns the memory.
void expect_result(const FixtureCase &c, const PositionalAttentionBase &layer) {
  const ForwardArgs args = c.args();
  const ForwardResult result = layer.forward(args);
  EXPECT_TRUE(c.accurate("out", result.out.view()));
  if (args.need_weights != Weights::none) {
    EXPECT_TRUE(c.accurate("weights", result.weights.view()));
  }

  Scratch scratch;
  ForwardArgs again = args;
  again.scratch = &scratch;
  EXPECT_TRUE(same_bits(layer.forward(again).out.view(), result.out.view()));
  const size_t held = scratch.capacity();
  layer.forward(again);
  layer.forward(again);
  EXPECT_LE(scratch.capacity(), held) << "memory is not reused";
}

class TorchMha : public testing::TestWithParam<std::string> {};

TEST_P(TorchMha, Plain) {
  const FixtureCase c("torch_mha", GetParam());
  on_every_target([&] { expect_result(c, PlainAttention::load(c.file(), c.prefix(), options_of(c))); });
}

INSTANTIATE_TEST_SUITE_P(Fixtures, TorchMha, testing::ValuesIn(FixtureCase::names("torch_mha")), test_name);

class SymmLearning : public testing::TestWithParam<std::string> {};

TEST_P(SymmLearning, Same) {
  const FixtureCase c("symm_learning", GetParam());
  on_every_target([&] {
    const LayerOptions options = options_of(c);
    if (c.is("additive") || c.is("e_additive")) {
      expect_result(c, AdditivePosAttention::load(c.file(), c.prefix(), options));
    } else if (c.is("relative") || c.is("e_relative")) {
      expect_result(c, RelativeAttention::load(c.file(), c.prefix(), options));
    } else {
      ASSERT_TRUE(c.is("rope")) << "no layer for this case";
      PositionOptions positions;
      positions.rope_base = *c.find("rope_base").as<double>();
      expect_result(c, RopeAttention::load(c.file(), c.prefix(), options, positions));
    }
  });
}

// The general layer, with its branches by name, is the same thing.
TEST_P(SymmLearning, CombinedByName) {
  const FixtureCase c("symm_learning", GetParam());
  const std::string name = c.is("rope")                             ? "rope"
                           : c.is("additive") || c.is("e_additive") ? "additive"
                                                                    : "relative";
  PositionOptions positions;
  if (name == "rope") positions.rope_base = *c.find("rope_base").as<double>();
  const CombinedAttention layer =
      CombinedAttention::load(c.file(), c.prefix(), options_of(c), {name}, positions);
  EXPECT_EQ(layer.branches(), name);
  EXPECT_TRUE(c.accurate("out", layer.forward(c.args()).out.view()));
}

INSTANTIATE_TEST_SUITE_P(Fixtures, SymmLearning, testing::ValuesIn(FixtureCase::names("symm_learning")),
                         test_name);

class Espnet : public testing::TestWithParam<std::string> {};

TEST_P(Espnet, Same) {
  const FixtureCase c("espnet", GetParam());
  on_every_target([&] {
    const MultiHeadAttention layer =
        MultiHeadAttention::load(c.file(), c.prefix(), options_of(c), c.integer("causal") != 0);
    const TensorView x = c.find("x"), xa = c.find("xa"), steps = c.find("steps");
    if (steps.empty()) {
      EXPECT_TRUE(c.accurate("out", layer.forward_espnet(x, xa, c.find("mask")).view()));
      return;
    }
    // Through the cache, a few tokens at a time.
    const auto cache_memory = layer.make_cache(x.size(0), xa.empty() ? x.size(1) : xa.size(1));
    KvCacheBase &cache = *cache_memory;
    Tensor out(x.dtype(), {x.size(0), x.size(1), x.size(2)});
    int64_t begin = 0;
    for (int64_t i = 0; i < steps.size(0); i++) {
      const int64_t end = begin + steps.as<int64_t>()[i];
      const Tensor step = layer.forward_espnet(x.slice(1, begin, end), xa, {}, &cache);
      copy(step.view(), out.view().slice(1, begin, end));
      begin = end;
    }
    EXPECT_TRUE(c.accurate("out", out.view()));
  });
}

INSTANTIATE_TEST_SUITE_P(Fixtures, Espnet, testing::ValuesIn(FixtureCase::names("espnet")), test_name);

// The seed of all this: ESPnet's documentation passes a mask to a causal layer, and its code raises.
TEST(EspnetMask, IsNotAllowedWhenCausal) {
  const FixtureCase c("espnet", "self_causal");
  const MultiHeadAttention layer = MultiHeadAttention::load(c.file(), c.prefix(), options_of(c), true);
  const bool yes = true;
  try {
    layer.forward_espnet(c.find("x"), {}, TensorView(&yes, DType::boolean, {1, 1}));
    FAIL() << "no error";
  } catch (const Error &error) {
    EXPECT_STREQ(error.what(), "mask is not allowed when the attention is causal");
  }
  // The same request composes in the layer's own interface.
  MultiHeadArgs args;
  args.x = c.find("x");
  args.keep_mask = TensorView(&yes, DType::boolean, {1, 1});
  EXPECT_TRUE(c.accurate("out", layer.forward(args).out.view()));
}

class TorchSdpa : public testing::TestWithParam<std::string> {};

TEST_P(TorchSdpa, Attend) {
  const FixtureCase c("torch_sdpa", GetParam());
  AttendArgs args;
  args.query = c.find("q");
  args.key = c.find("k");
  args.value = c.find("v");
  args.keep_mask = c.find("keep_mask");
  args.add_mask = c.find("add_mask");
  args.causal = static_cast<Causal>(c.integer("causal"));
  Tensor out(args.query.dtype(),
             {args.query.size(0), args.query.size(1), args.query.size(2), args.value.size(3)});
  args.out = out;
  on_every_target([&] {
    attend_on_device(args);
    EXPECT_TRUE(c.accurate("out", out.view()));
  });
}

INSTANTIATE_TEST_SUITE_P(Fixtures, TorchSdpa, testing::ValuesIn(FixtureCase::names("torch_sdpa")), test_name);

}  // namespace
}  // namespace posattn::oracle
