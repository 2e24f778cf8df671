// What layers refuse, and in which words. Nothing has run and nothing has changed when they do.
#include <cmath>
#include <cstdio>
#include <functional>
#include <limits>

#include "runtime/error.h"
#include "runtime/layers/layers.h"
#include "runtime/layers/multi_head_attention.h"
#include "tests/check.h"
#include "tests/random_layer.h"

namespace posattn::oracle {
namespace {

constexpr int64_t kE = 24, kHeads = 3;

LayerOptions heads(int64_t count = kHeads, int64_t kv_heads = 0) {
  LayerOptions options;
  options.num_heads = count;
  options.num_kv_heads = kv_heads;
  return options;
}

::testing::AssertionResult says(const std::string &text, const std::function<void()> &body) {
  try {
    body();
  } catch (const Error &error) {
    if (std::string(error.what()).find(text) != std::string::npos) return ::testing::AssertionSuccess();
    return ::testing::AssertionFailure() << "expected '" << text << "', got '" << error.what() << "'";
  }
  return ::testing::AssertionFailure() << "no error, expected '" << text << "'";
}

class LayerErrors : public testing::Test {
 protected:
  LayerErrors() : layer_(41, kE) {
    Random random(42);
    x_ = random_tensor(random, DType::f32, {2, 5, kE});
    memory_ = random_tensor(random, DType::f32, {2, 7, kE});
  }

  ForwardArgs self_attention() const {
    ForwardArgs args;
    args.query = args.key = args.value = x_;
    return args;
  }
  // `change` makes good arguments bad; the layer says `text`.
  ::testing::AssertionResult rejects(const std::string &text,
                                     const std::function<void(ForwardArgs &)> &change,
                                     PositionSet positions = {}) const {
    const AttentionLayer layer(layer_.weights, heads(), std::move(positions));
    ForwardArgs args = self_attention();
    layer.forward(args);  // they are good
    change(args);
    return says(text, [&] { layer.forward(args); });
  }
  ::testing::AssertionResult rejects_weights(const std::string &text,
                                             const std::function<void(LayerWeights &)> &change) const {
    LayerWeights weights = layer_.weights;
    change(weights);
    return says(text, [&] { AttentionLayer(weights, heads(), {}); });
  }

  RandomLayer layer_;
  Tensor x_, memory_;
};

TEST_F(LayerErrors, Construction) {
  const LayerWeights &w = layer_.weights;
  EXPECT_TRUE(
      says("num_heads: 24 channels do not divide into 5 heads", [&] { PlainAttention(w, heads(5)); }));
  EXPECT_TRUE(says("num_heads: expected a positive number, got 0", [&] { PlainAttention(w, heads(0)); }));
  EXPECT_TRUE(
      says("num_kv_heads: expected a divisor of 3 heads, got 2", [&] { PlainAttention(w, heads(3, 2)); }));
  EXPECT_TRUE(says("weights: key: expected 8 rows, got (24, 24)", [&] { PlainAttention(w, heads(3, 1)); }));
  LayerOptions options = heads();
  options.dtype = DType::i32;
  EXPECT_TRUE(says("dtype: expected f32, bf16 or f16, got i32", [&] { PlainAttention(w, options); }));
  EXPECT_TRUE(rejects_weights("weights: a layer needs query, key, value and out",
                              [](LayerWeights &weights) { weights.out = {}; }));
  EXPECT_TRUE(rejects_weights("weights: value: expected 24 rows, got (20, 24)",
                              [](LayerWeights &weights) { weights.value = weights.value.slice(0, 0, 20); }));
  EXPECT_TRUE(rejects_weights("weights: out: expected 24 columns, got (24, 20)",
                              [](LayerWeights &weights) { weights.out = weights.out.slice(1, 0, 20); }));
  EXPECT_TRUE(rejects_weights("bias_k and bias_v come together",
                              [](LayerWeights &weights) { weights.bias_k = weights.key_bias; }));
  EXPECT_TRUE(rejects_weights("weights: query bias: expected (24), got (24, 24)",
                              [](LayerWeights &weights) { weights.query_bias = weights.query; }));
}

TEST_F(LayerErrors, Streams) {
  EXPECT_TRUE(rejects("query: expected (2, 5, 24), got (2, 5, 20)",
                      [](ForwardArgs &args) { args.query = args.query.slice(2, 0, 20); }));
  EXPECT_TRUE(rejects("query: expected (B, T, E), got nothing", [](ForwardArgs &args) { args.query = {}; }));
  EXPECT_TRUE(rejects("query: expected (B, T, E), got (5, 24)",
                      [](ForwardArgs &args) { args.query = args.query.select(0, 0); }));
  EXPECT_TRUE(rejects("key: expected (2, 5, 24), got (1, 5, 24)",
                      [](ForwardArgs &args) { args.key = args.key.slice(0, 0, 1); }));
  EXPECT_TRUE(rejects("key: expected (B, T, 24), got nothing", [](ForwardArgs &args) { args.key = {}; }));
  EXPECT_TRUE(rejects("value: expected (B, T, 24), got nothing", [](ForwardArgs &args) { args.value = {}; }));
  EXPECT_TRUE(rejects("value: expected 5 tokens as in key, got (2, 4, 24)",
                      [](ForwardArgs &args) { args.value = args.value.slice(1, 0, 4); }));
  const Tensor half = x_.to(DType::bf16);
  EXPECT_TRUE(rejects("query: expected f32, got bf16", [&](ForwardArgs &args) { args.query = half; }));
  const Tensor turned(DType::f32, {2, kE, 5});
  EXPECT_TRUE(rejects("key: expected a contiguous last dimension",
                      [&](ForwardArgs &args) { args.key = turned.view().transposed(1, 2); }));
}

TEST_F(LayerErrors, Outputs) {
  const PlainAttention layer(layer_.weights, heads());
  ForwardArgs args = self_attention();
  Tensor out(DType::f32, {2, 5, kE}), narrow(DType::f32, {2, 5, 20}), half(DType::bf16, {2, 5, kE});
  ForwardOutputs outputs;
  const auto rejected = [&](const std::string &text) {
    return says(text, [&] { layer.forward_into(args, outputs); });
  };
  EXPECT_TRUE(rejected("out: expected (2, 5, 24), got nothing"));
  outputs.out = narrow;
  EXPECT_TRUE(rejected("out: expected (2, 5, 24), got (2, 5, 20)"));
  outputs.out = half;
  EXPECT_TRUE(rejected("out: expected f32, got bf16"));
  outputs.out = out;
  args.need_weights = Weights::mean;
  EXPECT_TRUE(rejected("weights: expected (2, 5, 5), got nothing"));
  args.need_weights = Weights::heads;
  EXPECT_TRUE(rejected("weights: expected (2, 3, 5, 5), got nothing"));
  args.need_weights = Weights::none;
  args.need_lse = true;
  EXPECT_TRUE(rejected("lse: expected (2, 3, 5), got nothing"));
}

TEST_F(LayerErrors, Positions) {
  const auto alibi = PositionSet().add_alibi(kHeads);
  Tensor positions(DType::f32, {5}), long_ones(DType::f32, {2, 6}), batch(DType::f32, {3, 5});
  const Tensor flags(DType::i32, {5}), applies(DType::boolean, {4});
  positions.as<float>()[3] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_TRUE(rejects(
      "q_positions: expected finite numbers, got nan at 3",
      [&](ForwardArgs &args) { args.q_positions = positions; }, alibi));
  EXPECT_TRUE(rejects(
      "k_positions: expected (5), (1, 5) or (2, 5), got (2, 6)",
      [&](ForwardArgs &args) { args.k_positions = long_ones; }, alibi));
  EXPECT_TRUE(rejects(
      "q_positions: expected (5), (1, 5) or (2, 5), got (3, 5)",
      [&](ForwardArgs &args) { args.q_positions = batch; }, alibi));
  EXPECT_TRUE(rejects(
      "k_position_mask: expected bool, got i32", [&](ForwardArgs &args) { args.k_position_mask = flags; },
      alibi));
  EXPECT_TRUE(rejects(
      "q_position_mask: expected (5), (1, 5) or (2, 5), got (4)",
      [&](ForwardArgs &args) { args.q_position_mask = applies; }, alibi));
  EXPECT_TRUE(rejects(
      "q_positions: expected f32, f64, i32 or i64, got bool",
      [&](ForwardArgs &args) { args.q_positions = applies; }, alibi));
}

TEST_F(LayerErrors, TableRange) {
  Random random(43);
  const Tensor table = random_tensor(random, DType::f32, {6, kE});
  const auto additive = PositionSet().add_encoder(std::make_shared<TableEncoder>(table.view()));
  Tensor positions(DType::f32, {5});
  positions.as<float>()[4] = 6;
  EXPECT_TRUE(rejects(
      "k_positions: position 6 is outside the table of 6 positions",
      [&](ForwardArgs &args) { args.k_positions = positions; }, additive));
  Tensor negative(DType::i64, {5});
  negative.as<int64_t>()[0] = -1;
  EXPECT_TRUE(rejects(
      "q_positions: position -1 is outside the table of 6 positions",
      [&](ForwardArgs &args) { args.q_positions = negative; }, additive));
  // Truncation toward zero: -0.5 and 5.9 are in the table. A masked position is not looked up.
  positions.as<float>()[0] = -0.5f;
  positions.as<float>()[4] = 5.9f;
  Tensor applies(DType::boolean, {5});
  ForwardArgs args = self_attention();
  args.q_positions = positions;
  args.k_positions = negative;
  args.k_position_mask = applies;
  const AttentionLayer layer(layer_.weights, heads(), additive);
  EXPECT_NO_THROW(layer.forward(args));
  // Default positions run out of the table, too.
  args = self_attention();
  args.key = args.value = memory_;
  EXPECT_TRUE(says("k_positions: position 6 is outside", [&] { layer.forward(args); }));
}

TEST_F(LayerErrors, Masks) {
  const Tensor keep(DType::boolean, {5, 4}), floats(DType::f32, {5, 5}), lengths(DType::i64, {3});
  EXPECT_TRUE(rejects("keep_mask", [&](ForwardArgs &args) { args.keep_mask = keep; }));
  EXPECT_TRUE(rejects("block_mask", [&](ForwardArgs &args) { args.block_mask = floats; }));
  EXPECT_TRUE(rejects("add_mask", [&](ForwardArgs &args) { args.add_mask = keep; }));
  EXPECT_TRUE(rejects("key_block_mask", [&](ForwardArgs &args) { args.key_block_mask = keep; }));
  EXPECT_TRUE(rejects("key_lengths", [&](ForwardArgs &args) { args.key_lengths = lengths; }));
  EXPECT_TRUE(rejects(
      "dense_bias: this layer has one already", [&](ForwardArgs &args) { args.dense_bias = floats; },
      PositionSet().add_dense(floats.view())));
  EXPECT_TRUE(rejects("softcap", [](ForwardArgs &args) { args.softcap = -1; }));
  EXPECT_TRUE(rejects("window", [](ForwardArgs &args) { args.window_left = -2; }));
}

TEST_F(LayerErrors, Branches) {
  Random random(44);
  const Tensor table = random_tensor(random, DType::f32, {9, 20}), slopes(DType::f32, {4});
  const Tensor even(DType::f32, {6}), t5(DType::f32, {32, 5});
  const LayerWeights &w = layer_.weights;
  EXPECT_TRUE(says("position encoder: expected 24 channels, got 20",
                   [&] { AdditivePosAttention(w, heads(), std::make_shared<TableEncoder>(table.view())); }));
  EXPECT_TRUE(says("pos_emb: expected (max_len, E), got (4)", [&] { TableEncoder(slopes.view()); }));
  EXPECT_TRUE(says("invariant_projector: expected (20, 20), got (9, 20)",
                   [&] { TableEncoder(table.view(), table.view()); }));
  EXPECT_TRUE(says("even number of channels, got 7", [] { SinusoidalEncoder(7); }));
  EXPECT_TRUE(
      says("pos_fourier.weight: expected (F) or (F, 1), got (9, 20)", [&] { FourierEncoder(table.view()); }));
  EXPECT_TRUE(says("pos_mlp.0.weight: expected 1 input", [] { MlpEncoder({}); }));
  EXPECT_TRUE(
      says("position encoder: expected one, got a null pointer", [] { PositionSet().add_encoder(nullptr); }));
  EXPECT_TRUE(says("position encoder: this layer has one already", [] {
    PositionSet()
        .add_encoder(std::make_shared<SinusoidalEncoder>(24))
        .add_encoder(std::make_shared<SinusoidalEncoder>(24));
  }));
  EXPECT_TRUE(says("'alibi' is given twice", [] { PositionSet().add_alibi(2).add_alibi(2); }));
  EXPECT_TRUE(says("rope: this layer has one already", [] { PositionSet().add_rope(8).add_rope(8); }));
  EXPECT_TRUE(says("rope: expected a positive even number of rotated channels, got 7",
                   [] { PositionSet().add_rope(7); }));
  EXPECT_TRUE(says("inv_freq: rotates 10 channels, a head has 8",
                   [&] { AttentionLayer(w, heads(), PositionSet().add_rope(10)); }));
  EXPECT_TRUE(says("relative", [&] { PositionSet().add_relative(even.view()); }));
  // Sizes that only a call can tell.
  const AttentionLayer alibi(w, heads(), PositionSet().add_alibi(slopes.view()));
  EXPECT_TRUE(says("slopes", [&] { alibi.forward(self_attention()); }));
  const AttentionLayer buckets(w, heads(), PositionSet().add_t5(t5.view()));
  EXPECT_TRUE(says("t5", [&] { buckets.forward(self_attention()); }));
}

TEST_F(LayerErrors, KeyStreamOfAnotherWidthHasNoAdditivePositions) {
  Tensor narrow(DType::f32, {kE, 20});
  LayerWeights weights = layer_.weights;
  weights.key = narrow.view();
  EXPECT_TRUE(says("position encoder: the key stream has 20 channels, the encoder 24",
                   [&] { AdditivePosAttention(weights, heads(), std::make_shared<SinusoidalEncoder>(kE)); }));
}

TEST_F(LayerErrors, CacheStaysAsItWas) {
  const AttentionLayer layer(layer_.weights, heads(), PositionSet().add_rope(8));
  const auto cache_memory = layer.make_cache(2, 8);
  KvCacheBase &cache = *cache_memory;
  ForwardArgs args = self_attention();
  args.cache = &cache;
  const Tensor before = layer.forward(args).out.clone();
  ASSERT_EQ(cache.length(), 5);

  EXPECT_TRUE(says("cache: full: 5 of 8 tokens are taken, 5 more do not fit", [&] { layer.forward(args); }));
  EXPECT_EQ(cache.length(), 5);
  // Errors that are found only after the keys were appended: a mask of the wrong size.
  const Tensor keep(DType::boolean, {3, 3});
  ForwardArgs step = args;
  step.query = step.key = step.value = memory_.view().slice(1, 0, 2);
  step.keep_mask = keep;
  EXPECT_TRUE(says("keep_mask", [&] { layer.forward(step); }));
  EXPECT_EQ(cache.length(), 5);
  // And the next step is what it would have been.
  step.keep_mask = {};
  const ForwardResult result = layer.forward(step);
  const auto fresh_memory = layer.make_cache(2, 8);
  KvCacheBase &fresh = *fresh_memory;
  args.cache = &fresh;
  EXPECT_TRUE(same_bits(layer.forward(args).out.view(), before.view()));
  step.cache = &fresh;
  EXPECT_TRUE(same_bits(layer.forward(step).out.view(), result.out.view()));

  const auto other_memory = layer.make_cache(3, 8);
  KvCacheBase &other = *other_memory;
  args.cache = &other;
  EXPECT_TRUE(
      says("cache: expected batch 2, 3 heads of 8 in f32, got batch 3", [&] { layer.forward(args); }));
  KvCache half(2, kHeads, 8, 8, 8, DType::bf16);
  args.cache = &half;
  EXPECT_TRUE(says("in f32, got batch 2, 3 heads of 8 and 8 in bf16", [&] { layer.forward(args); }));
}

TEST_F(LayerErrors, CrossAttentionCacheOfAnotherXa) {
  const MultiHeadAttention layer(layer_.weights, heads());
  const auto cache_memory = layer.make_cache(2, 8);
  KvCacheBase &cache = *cache_memory;
  MultiHeadArgs args;
  args.x = x_;
  args.xa = memory_;
  args.cache = &cache;
  layer.forward(args);
  args.xa = x_;
  EXPECT_TRUE(says("xa: the cache holds 7 projected tokens, got (2, 5, 24)", [&] { layer.forward(args); }));
  EXPECT_EQ(cache.length(), 7);
}

// Files: what is missing, and what was looked for.
class WeightErrors : public LayerErrors {
 protected:
  using Named = std::vector<std::pair<std::string, TensorView>>;
  ::testing::AssertionResult rejects_file(const std::string &text, const Named &tensors,
                                          const std::string &prefix = "") {
    const std::string path = testing::TempDir() + "posattn_weight_errors.safetensors";
    save_safetensors(path, tensors);
    const auto result = says(text, [&] { PlainAttention::load(SafeTensors::open(path), prefix, heads()); });
    std::remove(path.c_str());
    return result;
  }
};

TEST_F(WeightErrors, MissingAndMisshapen) {
  const LayerWeights &w = layer_.weights;
  const Named nothing = {{"blocks.0.mlp.weight", w.query}, {"blocks.0.query.weight", w.query}};
  EXPECT_TRUE(rejects_file("no attention layer under 'blocks.1.'", nothing, "blocks.1"));
  EXPECT_TRUE(
      rejects_file("looked for in_proj_weight, q_proj_weight, q_proj.weight, query.weight, "
                   "self.query.weight, q.weight, there or in attn. self_attn. attention.",
                   nothing, "blocks.1"));
  EXPECT_TRUE(rejects_file("the file holds 2 tensors: blocks.0.mlp.weight, blocks.0.query.weight", nothing));
  EXPECT_TRUE(
      rejects_file("'blocks.0.key.weight' is missing beside 'blocks.0.query.weight'", nothing, "blocks.0."));
  EXPECT_TRUE(
      rejects_file("'in_proj_weight': expected (72, 24), got (24, 24)", {{"in_proj_weight", w.query}}));
  const Tensor packed(DType::f32, {72, kE}), integers(DType::i32, {72, kE}), bias(DType::f32, {70});
  EXPECT_TRUE(rejects_file("'out_proj.weight' is missing beside 'in_proj_weight'",
                           {{"in_proj_weight", packed.view()}}));
  EXPECT_TRUE(rejects_file("'in_proj_weight': expected floating-point numbers, got i32",
                           {{"in_proj_weight", integers.view()}}));
  EXPECT_TRUE(rejects_file("'in_proj_bias': expected (72), got (70)",
                           {{"in_proj_weight", packed.view()}, {"in_proj_bias", bias.view()}}));
  EXPECT_TRUE(
      rejects_file("'bias_v' is missing beside 'bias_k'",
                   {{"in_proj_weight", packed.view()}, {"out_proj.weight", w.out}, {"bias_k", bias.view()}}));
  EXPECT_TRUE(rejects_file("'attn.v_proj_weight' is missing",
                           {{"attn.q_proj_weight", w.query}, {"attn.k_proj_weight", w.key}}));
}

TEST_F(WeightErrors, PositionTensors) {
  const LayerWeights &w = layer_.weights;
  const std::string path = testing::TempDir() + "posattn_position_errors.safetensors";
  save_safetensors(path, {{"a.q_proj.weight", w.query},
                          {"a.k_proj.weight", w.key},
                          {"a.v_proj.weight", w.value},
                          {"a.out_proj.weight", w.out}});
  const SafeTensors file = SafeTensors::open(path);
  std::remove(path.c_str());
  EXPECT_TRUE(says("position 'relative': expected a tensor 'a.rel_bias' or 'a.relative_bias'",
                   [&] { RelativeAttention::load(file, "a", heads()); }));
  EXPECT_TRUE(says("position 'additive': expected a tensor 'a.pos_emb' or 'a.pos_emb.weight'",
                   [&] { AdditivePosAttention::load(file, "a", heads()); }));
  EXPECT_TRUE(says("position: 'rotary' is unknown; there are none, additive,",
                   [&] { CombinedAttention::load(file, "a", heads(), {"rotary"}); }));
  EXPECT_TRUE(says("num_heads: 24 channels do not divide into 7 heads",
                   [&] { AlibiAttention::load(file, "a", heads(7)); }));
}

}  // namespace
}  // namespace posattn::oracle
