// Layers out of checkpoints, by every naming scheme.
#include <cstdio>
#include <map>

#include "runtime/error.h"
#include "runtime/layers/layers.h"
#include "runtime/layers/multi_head_attention.h"
#include "tests/check.h"
#include "tests/random_layer.h"

namespace posattn::oracle {
namespace {

constexpr int64_t kE = 24, kHeads = 3;
using Named = std::vector<std::pair<std::string, TensorView>>;

// A file that lasts as long as the test.
class Checkpoint {
 public:
  explicit Checkpoint(const Named &tensors) {
    path_ = testing::TempDir() + "posattn_" + testing::UnitTest::GetInstance()->current_test_info()->name() +
            ".safetensors";
    save_safetensors(path_, tensors);
  }
  ~Checkpoint() { std::remove(path_.c_str()); }
  SafeTensors open() const { return SafeTensors::open(path_); }

 private:
  std::string path_;
};

Tensor stack(std::initializer_list<TensorView> parts) {
  int64_t rows = 0;
  for (const TensorView &part : parts) rows += part.size(0);
  const bool matrix = parts.begin()->rank() == 2;
  Tensor all = matrix ? Tensor(DType::f32, {rows, parts.begin()->size(1)}) : Tensor(DType::f32, {rows});
  rows = 0;
  for (const TensorView &part : parts) {
    copy(part, all.view().slice(0, rows, rows + part.size(0)));
    rows += part.size(0);
  }
  return all;
}

LayerOptions options() {
  LayerOptions options;
  options.num_heads = kHeads;
  return options;
}

ForwardArgs self_attention(const TensorView &x) {
  ForwardArgs args;
  args.query = args.key = args.value = x;
  return args;
}

Named modules(const LayerWeights &w, const std::string &prefix, const std::string &q, const std::string &k,
              const std::string &v, const std::string &out) {
  return {{prefix + q + ".weight", w.query}, {prefix + q + ".bias", w.query_bias},
          {prefix + k + ".weight", w.key},   {prefix + k + ".bias", w.key_bias},
          {prefix + v + ".weight", w.value}, {prefix + v + ".bias", w.value_bias},
          {prefix + out + ".weight", w.out}, {prefix + out + ".bias", w.out_bias}};
}

class Names : public testing::Test {
 protected:
  Names() : layer_(31, kE) {
    Random random(32);
    x_ = random_tensor(random, DType::f32, {2, 7, kE});
  }

  // The file's layer is the layer.
  void expect_loads(const Named &tensors, const std::string &prefix, const std::string &scheme) {
    const Checkpoint checkpoint(tensors);
    const SafeTensors file = checkpoint.open();
    EXPECT_EQ(find_layer_weights(file, prefix).names, scheme);
    const Tensor expected = PlainAttention(layer_.weights, options()).forward(self_attention(x_)).out.clone();
    const ForwardResult result = PlainAttention::load(file, prefix, options()).forward(self_attention(x_));
    EXPECT_TRUE(same_bits(result.out.view(), expected.view()));
  }

  RandomLayer layer_;
  Tensor x_;
};

TEST_F(Names, Torch) {
  const LayerWeights &w = layer_.weights;
  const Tensor weight = stack({w.query, w.key, w.value});
  const Tensor bias = stack({w.query_bias, w.key_bias, w.value_bias});
  for (const std::string prefix : {"", "attn.", "encoder.layers.3.self_attn."}) {
    const Named tensors = {{prefix + "in_proj_weight", weight.view()},
                           {prefix + "in_proj_bias", bias.view()},
                           {prefix + "out_proj.weight", w.out},
                           {prefix + "out_proj.bias", w.out_bias}};
    const std::string asked = prefix == "attn." ? "" : prefix;
    expect_loads(tensors, asked, "in_proj_weight");
    if (!asked.empty())
      expect_loads(tensors, "encoder.layers.3", "in_proj_weight");  // self_attn looked through
  }
}

TEST_F(Names, TorchSeparate) {
  const LayerWeights &w = layer_.weights;
  const Tensor bias = stack({w.query_bias, w.key_bias, w.value_bias});
  expect_loads({{"q_proj_weight", w.query},
                {"k_proj_weight", w.key},
                {"v_proj_weight", w.value},
                {"in_proj_bias", bias.view()},
                {"out_proj.weight", w.out},
                {"out_proj.bias", w.out_bias}},
               "", "q_proj_weight, k_proj_weight, v_proj_weight");
}

TEST_F(Names, Projections) {
  const LayerWeights &w = layer_.weights;
  expect_loads(modules(w, "", "q_proj", "k_proj", "v_proj", "out_proj"), "",
               "q_proj, k_proj, v_proj, out_proj");
  expect_loads(modules(w, "layers.0.self_attn.", "q_proj", "k_proj", "v_proj", "o_proj"), "layers.0",
               "q_proj, k_proj, v_proj, o_proj");
  expect_loads(modules(w, "block.0.layer.0.SelfAttention.", "q", "k", "v", "o"), "block.0.layer.0",
               "q, k, v, o");
}

TEST_F(Names, Bert) {
  const LayerWeights &w = layer_.weights;
  const std::string layer = "encoder.layer.1.";
  Named tensors = modules(w, layer + "attention.", "self.query", "self.key", "self.value", "output.dense");
  // Beside it lies the feed-forward block, with a name that is alike.
  tensors.push_back({layer + "output.dense.weight", w.query});
  expect_loads(tensors, "encoder.layer.1", "self.query, self.key, self.value, output.dense");
  expect_loads(tensors, "encoder.layer.1.attention.", "self.query, self.key, self.value, output.dense");
}

TEST_F(Names, WhisperHasNoKeyBias) {
  layer_.weights.key_bias = {};
  const LayerWeights &w = layer_.weights;
  Named tensors;
  for (const auto &tensor : modules(w, "decoder.blocks.2.attn.", "query", "key", "value", "out")) {
    if (!tensor.second.empty()) tensors.push_back(tensor);
  }
  expect_loads(tensors, "decoder.blocks.2.attn.", "query, key, value, out");
  expect_loads(tensors, "decoder.blocks.2", "query, key, value, out");
  const Checkpoint checkpoint(tensors);
  const MultiHeadAttention layer = MultiHeadAttention::load(checkpoint.open(), "decoder.blocks.2", options());
  MultiHeadArgs args;
  args.x = x_;
  EXPECT_TRUE(same_bits(layer.forward(args).out.view(),
                        PlainAttention(w, options()).forward(self_attention(x_)).out.view()));
}

TEST_F(Names, HalfPrecisionCheckpointsComputeInTheirType) {
  const RandomLayer half(31, kE, 0, DType::bf16);
  const Checkpoint checkpoint(modules(half.weights, "", "query", "key", "value", "out"));
  EXPECT_EQ(PlainAttention::load(checkpoint.open(), "", options()).dtype(), DType::bf16);
  LayerOptions wide = options();
  wide.dtype = DType::f32;
  EXPECT_EQ(PlainAttention::load(checkpoint.open(), "", wide).dtype(), DType::f32);
}

// Every branch that load_positions knows, from tensors beside the projections, is what the same tensors give
// directly.
TEST_F(Names, PositionsBesideTheProjections) {
  Random random(33);
  const LayerWeights &w = layer_.weights;
  std::map<std::string, Tensor> tables;
  tables["pos_emb"] = random_tensor(random, DType::f32, {9, kE});
  tables["invariant_projector"] = random_tensor(random, DType::f32, {kE, kE}, 0.2);
  tables["pos_fourier.weight"] = random_tensor(random, DType::f32, {5, 1});
  tables["rel_bias"] = random_tensor(random, DType::f32, {7});
  tables["alibi_slopes"] = random_tensor(random, DType::f32, {kHeads});
  tables["t5_bias"] = random_tensor(random, DType::f32, {8, kHeads});
  tables["inv_freq"] = random_tensor(random, DType::f32, {3});
  tables["dense_bias"] = random_tensor(random, DType::f32, {kHeads, 7, 7});
  tables["pos_mlp.0.weight"] = random_tensor(random, DType::f32, {16, 10});
  tables["pos_mlp.0.bias"] = random_tensor(random, DType::f32, {16});
  tables["pos_mlp.2.weight"] = random_tensor(random, DType::f32, {kE, 16});
  Named tensors = modules(w, "b.attn.", "q_proj", "k_proj", "v_proj", "out_proj");
  for (const auto &[name, table] : tables) tensors.push_back({"b." + name, table.view()});
  const Checkpoint checkpoint(tensors);
  const SafeTensors file = checkpoint.open();

  std::vector<SmallMlp::Layer> mlp(2);
  mlp[0] = {tables["pos_mlp.0.weight"].clone(), tables["pos_mlp.0.bias"].clone()};
  mlp[1] = {tables["pos_mlp.2.weight"].clone(), Tensor()};
  PositionOptions numbers;
  numbers.relative_sign = Relative::Sign::plus;
  numbers.rope_layout = Rope::Layout::half;
  numbers.t5_max_distance = 5;
  numbers.t5_bidirectional = false;
  const std::map<std::string, PositionSet> expected = {
      {"none", PositionSet()},
      {"additive", PositionSet().add_encoder(std::make_shared<TableEncoder>(
                       tables["pos_emb"].view(), tables["invariant_projector"].view()))},
      {"sinusoidal", PositionSet().add_encoder(std::make_shared<SinusoidalEncoder>(kE))},
      {"fourier", PositionSet().add_encoder(std::make_shared<FourierEncoder>(
                      tables["pos_fourier.weight"].view(), SmallMlp(std::move(mlp), Activation::gelu)))},
      {"relative", PositionSet().add_relative(tables["rel_bias"].view(), Relative::Sign::plus)},
      {"alibi", PositionSet().add_alibi(tables["alibi_slopes"].view())},
      {"t5", PositionSet().add_t5(tables["t5_bias"].view(), 5, false)},
      {"rope", PositionSet().add_rope(tables["inv_freq"].view(), Rope::Layout::half)},
      {"dense", PositionSet().add_dense(tables["dense_bias"].view())},
  };
  for (const auto &[name, positions] : expected) {
    SCOPED_TRACE(name);
    const auto loaded = CombinedAttention::load(file, "b", options(), {name}, numbers);
    const AttentionLayer direct(w, options(), positions);
    const ForwardResult result = loaded.forward(self_attention(x_));
    EXPECT_TRUE(same_bits(result.out.view(), direct.forward(self_attention(x_)).out.view()));
    if (name == "none") continue;
    EXPECT_FALSE(
        same_bits(result.out.view(), PlainAttention(w, options()).forward(self_attention(x_)).out.view()));
  }

  // Several at once, and the classes that are named after one.
  EXPECT_EQ(CombinedAttention::load(file, "b", options(), {"rope", "relative", "additive"}).branches(),
            "additive+relative+rope");
  EXPECT_EQ(AdditivePosAttention::load(file, "b", options()).branches(), "additive");
  EXPECT_EQ(RelativeAttention::load(file, "b", options()).branches(), "relative");
  EXPECT_EQ(AlibiAttention::load(file, "b", options()).branches(), "alibi");
  EXPECT_EQ(T5Attention::load(file, "b", options()).branches(), "t5");
  EXPECT_EQ(RopeAttention::load(file, "b", options()).branches(), "rope");
  EXPECT_EQ(DenseBiasAttention::load(file, "b", options()).branches(), "dense");

  // A second file of inputs goes first.
  const Tensor other = random_tensor(random, DType::f32, {5});
  const std::string path = testing::TempDir() + "posattn_inputs.safetensors";
  save_safetensors(path, {{"relative_bias", other.view()}});
  const SafeTensors inputs = SafeTensors::open(path);
  std::remove(path.c_str());
  const auto from_inputs = CombinedAttention::load(file, "b", options(), {"relative"}, {}, &inputs);
  const RelativeAttention direct(w, options(), other.view());
  EXPECT_TRUE(same_bits(from_inputs.forward(self_attention(x_)).out.view(),
                        direct.forward(self_attention(x_)).out.view()));
}

}  // namespace
}  // namespace posattn::oracle
