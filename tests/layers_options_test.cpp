// Every option of a call reaches the attention: with identity matrices for weights a layer is attend() on its
// streams, which is held against float64.
#include <functional>

#include "runtime/layers/layers.h"
#include "tests/check.h"
#include "tests/random_layer.h"

namespace posattn::oracle {
namespace {

constexpr int64_t kE = 32, kHeads = 2, kQueries = 6, kKeys = 11;

// Tensors that options point at.
struct Inputs {
  Inputs() {
    Random random(51);
    query = random_tensor(random, DType::f32, {2, kQueries, kE});
    key = random_tensor(random, DType::f32, {2, kKeys, kE});
    value = random_tensor(random, DType::f32, {2, kKeys, kE});
    floats = random_tensor(random, DType::f32, {2, 1, kQueries, kKeys});
    key_floats = random_tensor(random, DType::f32, {2, kKeys});
    flags = Tensor(DType::boolean, {1, kHeads, kQueries, kKeys});
    key_flags = Tensor(DType::boolean, {2, kKeys});
    q_flags = Tensor(DType::boolean, {kQueries});
    for (Tensor *t : {&flags, &key_flags, &q_flags}) {
      for (int64_t i = 0; i < t->view().num_elements(); i++) t->as<bool>()[i] = random.chance(0.5);
    }
    lengths = Tensor(DType::i32, {2});
    lengths.as<int32_t>()[0] = 3;
    lengths.as<int32_t>()[1] = 9;
    q_positions = random_tensor(random, DType::f32, {2, kQueries}, 5);
    k_positions = random_tensor(random, DType::f32, {kKeys}, 5);
  }
  Tensor query, key, value, floats, key_floats, flags, key_flags, q_flags, lengths, q_positions, k_positions;
};

struct Option {
  std::string name;
  std::function<void(ForwardArgs &, const Inputs &)> layer;
  std::function<void(AttendArgs &, const Inputs &)> operation;
};

std::ostream &operator<<(std::ostream &out, const Option &option) { return out << option.name; }

// The same line for both sides.
#define OPTION(name, line)                        \
  {                                               \
    name,                                         \
        [](ForwardArgs &args, const Inputs &in) { \
          (void)in;                               \
          line;                                   \
        },                                        \
        [](AttendArgs &args, const Inputs &in) {  \
          (void)in;                               \
          line;                                   \
        }                                         \
  }

std::vector<Option> options() {
  return {
      OPTION("scale", args.scale = 0.7f),
      OPTION("softcap", args.softcap = 0.5f),
      OPTION("causal", args.causal = Causal::bottom_right),
      OPTION("top_left", args.causal = Causal::top_left),
      OPTION("window_left", args.window_left = 2),
      OPTION("window_right", args.window_right = 1),
      OPTION("keep_mask", args.keep_mask = in.flags),
      OPTION("block_mask", args.block_mask = in.flags),
      OPTION("add_mask", args.add_mask = in.floats),
      OPTION("dense_bias", args.dense_bias = in.floats),
      OPTION("key_keep_mask", args.key_keep_mask = in.key_flags),
      OPTION("key_block_mask", args.key_block_mask = in.key_flags),
      OPTION("key_add_mask", args.key_add_mask = in.key_floats),
      OPTION("key_lengths", args.key_lengths = in.lengths),
      OPTION("q_positions", args.q_positions = in.q_positions),
      OPTION("k_positions", args.k_positions = in.k_positions),
      OPTION("q_position_mask", args.q_position_mask = in.q_flags),
      OPTION("k_position_mask", args.k_position_mask = in.key_flags),
      OPTION("weights_mean", args.need_weights = Weights::mean),
      OPTION("weights_heads", args.need_weights = Weights::heads),
      OPTION("many",
             {
               args.causal = Causal::bottom_right;
               args.window_left = 4;
               args.keep_mask = in.flags;
               args.add_mask = in.floats;
               args.key_lengths = in.lengths;
               args.softcap = 2;
               args.q_positions = in.q_positions;
             }),
  };
}

class EveryOption : public testing::TestWithParam<Option> {};

TEST_P(EveryOption, ReachesTheAttention) {
  Tensor identity(DType::f32, {kE, kE});
  for (int64_t i = 0; i < kE; i++) identity.as<float>()[i * kE + i] = 1;
  LayerWeights weights;
  weights.query = weights.key = weights.value = weights.out = identity;
  LayerOptions layer_options;
  layer_options.num_heads = kHeads;
  const Inputs in;
  const auto positions = PositionSet().add_alibi(kHeads);

  on_every_target([&] {
    const AttentionLayer layer(weights, layer_options, positions);
    ForwardArgs args;
    args.query = in.query;
    args.key = in.key;
    args.value = in.value;
    args.need_lse = true;
    const Tensor without = std::move(layer.forward(args).out);
    GetParam().layer(args, in);
    const ForwardResult result = layer.forward(args);

    AttendArgs operation;
    operation.query = in.query.view().heads(kHeads);
    operation.key = in.key.view().heads(kHeads);
    operation.value = in.value.view().heads(kHeads);
    operation.out = result.out.view().heads(kHeads);
    operation.lse = result.lse;
    operation.weights = result.weights;
    operation.branches[0] = positions.logit_branches()[0].get();
    GetParam().operation(operation, in);
    EXPECT_TRUE(accurate(operation));
    if (args.need_weights == Weights::none) {
      EXPECT_FALSE(same_bits(result.out.view(), without.view())) << "the option changes nothing";
    }
  });
}

INSTANTIATE_TEST_SUITE_P(Options, EveryOption, testing::ValuesIn(options()),
                         [](const auto &test) { return test.param.name; });

}  // namespace
}  // namespace posattn::oracle
