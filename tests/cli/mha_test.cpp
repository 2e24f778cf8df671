// posattn mha against the library's layers.
#include <gtest/gtest.h>

#include "runtime/layers/attention_layer.h"
#include "runtime/safetensors.h"
#include "tests/check.h"
#include "tests/cli/runner.h"
#include "tests/device.h"

namespace posattn::cli_test {
namespace {

constexpr int64_t kBatch = 2, kQueries = 9, kKeys = 13, kChannels = 64, kHeads = 4;

using Tensors = std::vector<std::pair<std::string, TensorView>>;

// A layer's file, and inputs for it.
struct Fixture {
  Folder folder;
  Tensor query = random_tensor(1, DType::f32, {kBatch, kQueries, kChannels});
  Tensor key = random_tensor(2, DType::f32, {kBatch, kKeys, kChannels});
  Tensor value = random_tensor(3, DType::f32, {kBatch, kKeys, kChannels});
  Tensor weight[4], bias[4];
  Tensor pos_emb = random_tensor(20, DType::f32, {40, kChannels}),
         rel_bias = random_tensor(21, DType::f32, {31}),
         t5_bias = random_tensor(22, DType::f32, {16, kHeads}),
         dense_bias = random_tensor(23, DType::f32, {kHeads, kQueries, kKeys}),
         slopes = random_tensor(24, DType::f32, {kHeads}),
         pos_fourier = random_tensor(25, DType::f32, {kChannels / 2, 1}),
         pos_mlp = random_tensor(26, DType::f32, {kChannels, 1});
  std::string layer, in;

  Fixture() {
    for (int i = 0; i < 4; ++i) {
      weight[i] = random_tensor(static_cast<uint64_t>(10 + i), DType::f32, {kChannels, kChannels}, 0.1);
      bias[i] = random_tensor(static_cast<uint64_t>(30 + i), DType::f32, {kChannels});
    }
    layer = save_layer("layer", "");
    in = folder.save("in", {{"query", query.view()}, {"key", key.view()}, {"value", value.view()}});
  }

  std::string save_layer(const std::string &name, const std::string &prefix) const {
    Tensors tensors;
    const char *names[] = {"q_proj", "k_proj", "v_proj", "out_proj"};
    for (int i = 0; i < 4; ++i) {
      tensors.emplace_back(prefix + names[i] + ".weight", weight[i].view());
      tensors.emplace_back(prefix + names[i] + ".bias", bias[i].view());
    }
    for (const auto &tensor : Tensors{{"pos_emb", pos_emb.view()},
                                      {"rel_bias", rel_bias.view()},
                                      {"pos_fourier.weight", pos_fourier.view()}})
      tensors.emplace_back(prefix + tensor.first, tensor.second);
    return folder.save(name, tensors);
  }

  AttentionLayer make_layer(const PositionSet &positions = {}, DType type = DType::f32) const {
    LayerOptions options;
    options.device = oracle::layer_device();
    options.num_heads = kHeads;
    options.dtype = type;
    return AttentionLayer(find_layer_weights(SafeTensors::open(layer)), options, positions);
  }

  ForwardArgs args() const {
    ForwardArgs args;
    args.query = query.view();
    args.key = key.view();
    args.value = value.view();
    return args;
  }

  void expect(const ForwardResult &expected, Arguments arguments, std::string layer_file = "",
              std::string in_file = "") const {
    SCOPED_TRACE(::testing::PrintToString(arguments));
    const std::string out = folder.path("out");
    arguments.insert(arguments.begin(), {"mha", layer_file.empty() ? layer : layer_file,
                                         in_file.empty() ? in : in_file, "-o", out, "--heads", "4"});
    if (oracle::on_cuda()) arguments.insert(arguments.end(), {"--device", "cuda"});
    const Finished finished = posattn(arguments);
    ASSERT_EQ(finished.exit_code, 0) << finished.err;
    EXPECT_EQ(finished.out + finished.err, "");
    const SafeTensors file = SafeTensors::open(out);
    EXPECT_TRUE(oracle::same_bits(file.get("out"), expected.out.view()));
    EXPECT_EQ(file.has("lse"), !expected.lse.empty());
    if (!expected.lse.empty()) {
      EXPECT_TRUE(oracle::same_bits(file.get("lse"), expected.lse.view()));
    }
    EXPECT_EQ(file.has("weights"), !expected.weights.empty());
    if (!expected.weights.empty()) {
      EXPECT_TRUE(oracle::same_bits(file.get("weights"), expected.weights.view()));
    }
  }
};

TEST(Mha, QueryKeyValue) {
  const Fixture f;
  f.expect(f.make_layer().forward(f.args()), {});
}

TEST(Mha, XAndXa) {
  const Fixture f;
  ForwardArgs args;
  args.query = args.key = args.value = f.query.view();
  f.expect(f.make_layer().forward(args), {}, "", f.folder.save("x", {{"x", f.query.view()}}));
  args.key = args.value = f.key.view();
  f.expect(f.make_layer().forward(args), {}, "",
           f.folder.save("x", {{"x", f.query.view()}, {"xa", f.key.view()}}));
}

TEST(Mha, OneLayerOfAModel) {
  const Fixture f;
  const std::string model = f.save_layer("model", "blocks.3.attn.");
  f.expect(f.make_layer().forward(f.args()), {"--prefix", "blocks.3."}, model);
  f.expect(f.make_layer().forward(f.args()), {"--prefix", "blocks.3"}, model);
  PositionSet relative;
  relative.add_relative(f.rel_bias.view());
  f.expect(f.make_layer(relative).forward(f.args()), {"--prefix", "blocks.3", "--position", "relative"},
           model);
}

TEST(Mha, NamesOfWhisper) {
  const Fixture f;
  const Tensors tensors = {{"query.weight", f.weight[0].view()}, {"query.bias", f.bias[0].view()},
                           {"key.weight", f.weight[1].view()},   {"value.weight", f.weight[2].view()},
                           {"value.bias", f.bias[2].view()},     {"out.weight", f.weight[3].view()},
                           {"out.bias", f.bias[3].view()}};
  const SafeTensors layer = SafeTensors::open(f.layer);
  LayerWeights weights = find_layer_weights(layer);
  weights.key_bias = {};
  LayerOptions options;
  options.num_heads = kHeads;
  f.expect(AttentionLayer(weights, options, {}).forward(f.args()), {}, f.folder.save("whisper", tensors));
}

TEST(Mha, GroupedHeadsAndZeroKey) {
  const Fixture f;
  const Tensor key = copy_of(f.weight[1].view().slice(0, 0, kChannels / 2), DType::f32),
               value = copy_of(f.weight[2].view().slice(0, 0, kChannels / 2), DType::f32);
  const std::string file = f.folder.save("grouped", {{"q_proj.weight", f.weight[0].view()},
                                                     {"k_proj.weight", key.view()},
                                                     {"v_proj.weight", value.view()},
                                                     {"out_proj.weight", f.weight[3].view()}});
  LayerOptions options;
  options.num_heads = kHeads;
  options.num_kv_heads = kHeads / 2;
  const SafeTensors open = SafeTensors::open(file);
  const LayerWeights weights = find_layer_weights(open);
  f.expect(AttentionLayer(weights, options, {}).forward(f.args()), {"--kv-heads", "2"}, file);
  options.num_kv_heads = 0;
  options.add_zero_attn = true;
  ForwardArgs args = f.args();
  args.need_weights = Weights::heads;
  f.expect(AttentionLayer(find_layer_weights(SafeTensors::open(f.layer)), options, {}).forward(args),
           {"--add-zero-attn", "--need-weights", "heads"});
}

TEST(Mha, EachPosition) {
  const Fixture f;
  const PositionContext context{kChannels, kHeads, kChannels / kHeads};
  const SafeTensors layer = SafeTensors::open(f.layer);
  const auto check = [&](const std::vector<std::string> &names, const PositionOptions &options,
                         Arguments arguments, const Tensors &extra) {
    Tensors tensors = {{"query", f.query.view()}, {"key", f.key.view()}, {"value", f.value.view()}};
    tensors.insert(tensors.end(), extra.begin(), extra.end());
    const std::string in = f.folder.save("positions", tensors);
    const SafeTensors inputs = SafeTensors::open(in);
    for (const std::string &name : names) arguments.insert(arguments.end(), {"--position", name});
    const ForwardResult result =
        f.make_layer(load_positions(names, layer, "", context, options, &inputs)).forward(f.args());
    if (names != std::vector<std::string>{"none"}) {
      EXPECT_FALSE(oracle::same_bits(result.out.view(), f.make_layer().forward(f.args()).out.view()))
          << "positions change nothing";
    }
    f.expect(result, arguments, "", in);
  };
  check({"none"}, {}, {}, {});
  check({"additive"}, {}, {}, {});
  check({"sinusoidal"}, {}, {}, {});
  check({"fourier"}, {}, {}, {});
  check({"mlp"}, {}, {}, {{"pos_mlp.0.weight", f.pos_mlp.view()}});
  check({"relative"}, {}, {}, {});
  PositionOptions options;
  options.relative_sign = Relative::Sign::plus;
  check({"relative"}, options, {"--relative-sign", "plus"}, {});
  check({"alibi"}, {}, {}, {});
  check({"alibi"}, {}, {}, {{"alibi_slopes", f.slopes.view()}});
  check({"dense"}, {}, {}, {{"dense_bias", f.dense_bias.view()}});
  options = {};
  options.t5_max_distance = 20;
  options.t5_bidirectional = false;
  check({"t5"}, options, {"--t5-max-distance", "20", "--t5-bidirectional", "false"},
        {{"t5_bias", f.t5_bias.view()}});
  options = {};
  options.rope_layout = Rope::Layout::half;
  options.rope_base = 100;
  options.rope_dim = 8;
  check({"rope"}, options, {"--rope-layout", "half", "--rope-base", "100", "--rope-dim", "8"}, {});
  check({"rope", "relative", "additive"}, {}, {}, {});
}

TEST(Mha, MasksAndOptions) {
  const Fixture f;
  const Tensor keep = random_mask(40, {kQueries, kKeys}, 0.7), block = random_mask(41, {kBatch, kKeys}, 0.3),
               add = random_tensor(42, DType::f32, {kHeads, 1, kKeys});
  Tensor lengths(DType::i64, {kBatch});
  lengths.as<int64_t>()[0] = kKeys;
  lengths.as<int64_t>()[1] = 6;
  const std::string in = f.folder.save("masks", {{"query", f.query.view()},
                                                 {"key", f.key.view()},
                                                 {"value", f.value.view()},
                                                 {"keep_mask", keep.view()},
                                                 {"key_block_mask", block.view()},
                                                 {"add_mask", add.view()},
                                                 {"key_lengths", lengths.view()}});
  ForwardArgs args = f.args();
  args.keep_mask = keep.view();
  args.key_block_mask = block.view();
  args.add_mask = add.view();
  args.key_lengths = lengths.view();
  args.causal = Causal::bottom_right;
  args.window_left = 8;
  args.softcap = 5;
  args.scale = 0.5f;
  args.need_lse = true;
  for (const auto &[weights, name] : {std::make_pair(Weights::heads, "heads"), {Weights::mean, "mean"}}) {
    args.need_weights = weights;
    f.expect(
        f.make_layer().forward(args),
        {"--causal", "--window", "8,-1", "--softcap", "5", "--scale", "0.5", "--lse", "--need-weights", name},
        "", in);
  }
}

TEST(Mha, ComputesInTheTypeOfItsInputOrTheOneAskedFor) {
  const Fixture f;
  for (const DType type : {DType::bf16, DType::f16}) {
    const Tensor query = f.query.to(type), key = f.key.to(type), value = f.value.to(type);
    ForwardArgs args;
    args.query = query.view();
    args.key = key.view();
    args.value = value.view();
    ForwardResult result = f.make_layer({}, type).forward(args);
    f.expect(result, {}, "",
             f.folder.save("typed", {{"query", query.view()}, {"key", key.view()}, {"value", value.view()}}));
    result.out = result.out.to(DType::f32);
    f.expect(result, {"--dtype", name_of(type)});
  }
}

}  // namespace
}  // namespace posattn::cli_test
