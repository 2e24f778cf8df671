// The C interface against the C++ one that it wraps: the same bits, the same texts.
#include <gtest/gtest.h>

#include <thread>

#include "runtime/c_api/posattn.h"
#include "runtime/error.h"
#include "runtime/kernel_registry.h"
#include "runtime/layers/layers.h"
#include "runtime/rotary.h"
#include "tests/check.h"
#include "tests/random.h"

namespace posattn::oracle {
namespace {

posattn_tensor c_tensor(const TensorView &view) {
  posattn_tensor tensor = {};
  tensor.data = const_cast<void *>(view.data());
  tensor.dtype = static_cast<int32_t>(view.dtype());
  tensor.rank = view.empty() ? 0 : view.rank();
  for (int d = 0; d < tensor.rank; ++d) {
    tensor.shape[d] = view.size(d);
    tensor.stride[d] = view.stride(d);
  }
  return tensor;
}

// What C++ has to say to a call that is wrong.
template <typename Call>
std::string error_of(const Call &call) {
  try {
    call();
  } catch (const Error &error) {
    return error.what();
  }
  ADD_FAILURE() << "no error";
  return "";
}

// All of a case's arguments as C's.
struct CCall {
  explicit CCall(const AttendArgs &from) {
    posattn_attend_args_init(&args);
    args.query = c_tensor(from.query);
    args.key = c_tensor(from.key);
    args.value = c_tensor(from.value);
    args.out = c_tensor(from.out);
    args.lse = c_tensor(from.lse);
    args.weights = c_tensor(from.weights);
    for (const LogitBranch *branch : from.branches) {
      if (branch) branches.push_back(c_branch(*branch));
    }
    args.branches = branches.data();
    args.num_branches = static_cast<int32_t>(branches.size());
    if (from.rope) {
      args.rope_inv_freq = c_tensor(from.rope->inv_freq);
      args.rope_layout =
          from.rope->layout == Rope::Layout::half ? POSATTN_ROPE_HALF : POSATTN_ROPE_INTERLEAVED;
    }
    posattn_options &options = args.options;
    options.keep_mask = c_tensor(from.keep_mask);
    options.block_mask = c_tensor(from.block_mask);
    options.add_mask = c_tensor(from.add_mask);
    options.dense_bias = c_tensor(from.dense_bias);
    options.key_keep_mask = c_tensor(from.key_keep_mask);
    options.key_block_mask = c_tensor(from.key_block_mask);
    options.key_add_mask = c_tensor(from.key_add_mask);
    options.key_lengths = c_tensor(from.key_lengths);
    options.q_positions = c_tensor(from.q_positions);
    options.k_positions = c_tensor(from.k_positions);
    options.q_position_mask = c_tensor(from.q_position_mask);
    options.k_position_mask = c_tensor(from.k_position_mask);
    options.window_left = from.window_left;
    options.window_right = from.window_right;
    options.causal = from.causal == Causal::none           ? POSATTN_CAUSAL_NONE
                     : from.causal == Causal::bottom_right ? POSATTN_CAUSAL_BOTTOM_RIGHT
                                                           : POSATTN_CAUSAL_TOP_LEFT;
    options.need_weights = from.need_weights == Weights::none   ? POSATTN_WEIGHTS_NONE
                           : from.need_weights == Weights::mean ? POSATTN_WEIGHTS_MEAN
                                                                : POSATTN_WEIGHTS_HEADS;
    options.has_scale = from.scale.has_value();
    options.scale = from.scale.value_or(0);
    options.softcap = from.softcap;
  }

  static posattn_branch c_branch(const LogitBranch &branch) {
    posattn_branch result = {};
    if (const auto *relative = dynamic_cast<const Relative *>(&branch)) {
      result.kind = POSATTN_RELATIVE;
      result.table = c_tensor(relative->table());
      result.sign = relative->sign() == Relative::Sign::plus ? POSATTN_PLUS : POSATTN_MINUS;
    } else if (const auto *alibi = dynamic_cast<const Alibi *>(&branch)) {
      result.kind = POSATTN_ALIBI;
      result.table = c_tensor(alibi->slopes());
    } else if (const auto *t5 = dynamic_cast<const T5 *>(&branch)) {
      result.kind = POSATTN_T5;
      result.table = c_tensor(t5->table());
      result.max_distance = t5->max_distance();
      result.bidirectional = t5->bidirectional();
    } else {
      ADD_FAILURE() << branch.name();
    }
    return result;
  }

  posattn_attend_args args;
  std::vector<posattn_branch> branches;
};

// Random calls with all sorts of arguments.
TEST(CApi, AttendIsTheSame) {
  for (uint64_t seed = 0; seed < 60; ++seed) {
    Case c(random_spec(seed, linked_branch_sets()));
    SCOPED_TRACE(describe(c.spec()));
    const Outputs expected = outputs_of(c.args());
    c.clear_outputs();
    const CCall call(c.args());
    size_t size = 0;
    ASSERT_EQ(posattn_attend_workspace_size(&call.args, &size), POSATTN_OK) << posattn_last_error();
    EXPECT_EQ(size, attend_workspace_size(c.args()));
    ASSERT_EQ(posattn_attend(&call.args, nullptr, 0), POSATTN_OK) << posattn_last_error();
    EXPECT_TRUE(same_bits(c.args().out, expected.out.view()));
    if (!c.args().lse.empty()) {
      EXPECT_TRUE(same_bits(c.args().lse, expected.lse.view()));
    }
    if (!c.args().weights.empty()) {
      EXPECT_TRUE(same_bits(c.args().weights, expected.weights.view()));
    }
  }
}

TEST(CApi, ErrorsHaveTheSameText) {
  Case c((CaseSpec()));
  AttendArgs &args = c.args();
  const Tensor wrong(DType::f32, {3});
  const auto expect_same = [&] {
    const CCall call(args);
    EXPECT_EQ(posattn_attend(&call.args, nullptr, 0), POSATTN_INVALID_ARGUMENT);
    EXPECT_EQ(posattn_last_error(), error_of([&] { attend(args); }));
  };
  args.key_lengths = wrong.view();
  expect_same();
  args.key_lengths = {};
  args.add_mask = wrong.view();
  expect_same();
  args.add_mask = {};
  args.softcap = -1;
  expect_same();
  EXPECT_EQ(posattn_set_target("z80"), POSATTN_INVALID_ARGUMENT);
  EXPECT_EQ(posattn_last_error(), error_of([] { set_target("z80"); }));
  posattn_layer *layer = nullptr;
  posattn_layer_options options;
  posattn_layer_options_init(&options);
  EXPECT_EQ(posattn_layer_load("/no/such/file", "", &options, &layer), POSATTN_INVALID_ARGUMENT);
  EXPECT_EQ(posattn_last_error(), error_of([] { SafeTensors::open("/no/such/file"); }));
}

TEST(CApi, EveryThreadHasItsOwnLastError) {
  EXPECT_NE(posattn_set_num_threads(-1), POSATTN_OK);
  const std::string mine = posattn_last_error();
  std::thread([] {
    EXPECT_STREQ(posattn_last_error(), "");
    EXPECT_NE(posattn_set_target("z80"), POSATTN_OK);
  }).join();
  EXPECT_EQ(posattn_last_error(), mine);
}

TEST(CApi, RotateIsTheSame) {
  Random random(1);
  Tensor x(DType::f32, {2, 3, 5, 16}), inv_freq(DType::f32, {8}), out(DType::f32, {2, 3, 5, 16}),
      expected(DType::f32, {2, 3, 5, 16});
  for (int i = 0; i < 2 * 3 * 5 * 16; ++i) x.as<float>()[i] = static_cast<float>(random.normal());
  Rope::default_inv_freq(16, 10000, inv_freq.as<float>());
  for (const Rope::Layout layout : {Rope::Layout::interleaved, Rope::Layout::half}) {
    rotate(Rope{inv_freq.view(), layout}, x.view(), {}, {}, expected.view());
    const posattn_tensor from = c_tensor(x.view()), freq = c_tensor(inv_freq.view()),
                         to = c_tensor(out.view());
    ASSERT_EQ(posattn_rotate(&from, &freq, layout == Rope::Layout::half, nullptr, nullptr, &to), POSATTN_OK)
        << posattn_last_error();
    EXPECT_TRUE(same_bits(out.view(), expected.view()));
  }
}

// A layer with positions of every kind that a file or an option gives.
class CApiLayer : public testing::TestWithParam<const char *> {};

TEST_P(CApiLayer, ForwardIsTheSame) {
  constexpr int64_t kEmbed = 64, kHeads = 2, kTokens = 9, kBatch = 2;
  Random random(7);
  const auto normal = [&](std::initializer_list<int64_t> shape, double scale) {
    Tensor tensor(DType::f32, shape);
    for (int64_t i = 0; i < tensor.view().num_elements(); ++i) {
      tensor.as<float>()[i] = static_cast<float>(random.normal() * scale);
    }
    return tensor;
  };
  const Tensor in_proj = normal({3 * kEmbed, kEmbed}, 0.1), in_bias = normal({3 * kEmbed}, 0.1),
               out_proj = normal({kEmbed, kEmbed}, 0.1), pos_emb = normal({16, kEmbed}, 1),
               rel_bias = normal({2 * 4 + 1}, 1), t5_bias = normal({8, kHeads}, 1);
  const std::string path = testing::TempDir() + "/c_api_" + GetParam() + ".safetensors";
  save_safetensors(path, {{"attn.in_proj_weight", in_proj.view()},
                          {"attn.in_proj_bias", in_bias.view()},
                          {"attn.out_proj.weight", out_proj.view()},
                          {"pos_emb", pos_emb.view()},
                          {"rel_bias", rel_bias.view()},
                          {"t5_bias", t5_bias.view()}});
  LayerOptions options;
  options.num_heads = kHeads;
  options.add_zero_attn = true;
  PositionOptions positions;
  positions.relative_sign = Relative::Sign::plus;
  positions.rope_layout = Rope::Layout::half;
  positions.rope_base = 500;
  positions.rope_dim = 16;
  positions.t5_max_distance = 20;
  positions.t5_bidirectional = false;
  positions.sinusoidal_layout = SinusoidalEncoder::Layout::halves;
  positions.sinusoidal_base = 77;
  std::vector<std::string> names = {GetParam()};
  if (names[0] == "relative+rope") names = {"relative", "rope"};
  const CombinedAttention expected =
      CombinedAttention::load(SafeTensors::open(path), "", options, names, positions);

  posattn_layer_options c_options;
  posattn_layer_options_init(&c_options);
  c_options.num_heads = kHeads;
  c_options.add_zero_attn = 1;
  c_options.positions = GetParam();
  c_options.relative_sign = POSATTN_PLUS;
  c_options.rope_layout = POSATTN_ROPE_HALF;
  c_options.rope_base = 500;
  c_options.rope_dim = 16;
  c_options.t5_max_distance = 20;
  c_options.t5_bidirectional = 0;
  c_options.sinusoidal_halves = 1;
  c_options.sinusoidal_base = 77;
  posattn_layer *layer = nullptr;
  ASSERT_EQ(posattn_layer_load(path.c_str(), nullptr, &c_options, &layer), POSATTN_OK)
      << posattn_last_error();
  std::remove(path.c_str());
  posattn_layer_info info;
  ASSERT_EQ(posattn_layer_describe(layer, &info), POSATTN_OK);
  EXPECT_EQ(info.extra_keys, 1);

  const Tensor x = normal({kBatch, kTokens, kEmbed}, 1);
  ForwardArgs args;
  args.query = args.key = args.value = x.view();
  args.causal = Causal::bottom_right;
  args.need_weights = Weights::heads;
  args.need_lse = true;
  const ForwardResult result = expected.forward(args);
  Tensor out(DType::f32, {kBatch, kTokens, kEmbed}), lse(DType::f32, {kBatch, kHeads, kTokens}),
      weights(DType::f32, {kBatch, kHeads, kTokens, kTokens + 1});
  posattn_forward_args c_args;
  posattn_forward_args_init(&c_args);
  c_args.query = c_args.key = c_args.value = c_tensor(x.view());
  c_args.out = c_tensor(out.view());
  c_args.lse = c_tensor(lse.view());
  c_args.weights = c_tensor(weights.view());
  c_args.options.causal = POSATTN_CAUSAL_BOTTOM_RIGHT;
  c_args.options.need_weights = POSATTN_WEIGHTS_HEADS;
  ASSERT_EQ(posattn_layer_forward(layer, &c_args), POSATTN_OK) << posattn_last_error();
  EXPECT_TRUE(same_bits(out.view(), result.out.view()));
  EXPECT_TRUE(same_bits(lse.view(), result.lse.view()));
  EXPECT_TRUE(same_bits(weights.view(), result.weights.view()));
  posattn_layer_free(layer);
}

INSTANTIATE_TEST_SUITE_P(Positions, CApiLayer,
                         testing::Values("none", "additive", "sinusoidal", "relative", "alibi", "t5", "rope",
                                         "relative+rope"));

}  // namespace
}  // namespace posattn::oracle
