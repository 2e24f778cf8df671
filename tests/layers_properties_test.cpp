// What must hold for every layer, whatever its numbers.
#include <cstring>
#include <functional>
#include <limits>

#include "runtime/layers/layers.h"
#include "runtime/layers/multi_head_attention.h"
#include "tests/check.h"
#include "tests/device.h"
#include "tests/random_layer.h"

namespace posattn::oracle {
namespace {

constexpr int64_t kE = 48, kHeads = 3, kHeadDim = 16;

LayerOptions heads(int64_t count = kHeads) {
  LayerOptions options;
  options.device = layer_device();
  options.num_heads = count;
  return options;
}

ForwardArgs self_attention(const TensorView &x) {
  ForwardArgs args;
  args.query = args.key = args.value = x;
  return args;
}

// Every branch with numbers of its own, and with such that it should change nothing.
struct Kind {
  std::string name;
  std::function<PositionSet(Random &random, bool zero)> make;
};

std::ostream &operator<<(std::ostream &out, const Kind &kind) { return out << kind.name; }

Tensor table(Random &random, bool zero, std::initializer_list<int64_t> shape) {
  return random_tensor(random, DType::f32, shape, zero ? 0 : 1);
}

std::vector<Kind> kinds() {
  return {
      {"none", [](Random &, bool) { return PositionSet(); }},
      {"additive",
       [](Random &random, bool zero) {
         return PositionSet().add_encoder(
             std::make_shared<TableEncoder>(table(random, zero, {64, kE}).view()));
       }},
      {"relative",
       [](Random &random, bool zero) { return PositionSet().add_relative(table(random, zero, {9}).view()); }},
      {"relative_per_head",
       [](Random &random, bool zero) {
         return PositionSet().add_relative(table(random, zero, {kHeads, 9}).view(), Relative::Sign::plus);
       }},
      {"alibi",
       [](Random &random, bool zero) {
         if (!zero) return PositionSet().add_alibi(kHeads);
         return PositionSet().add_alibi(table(random, true, {kHeads}).view());
       }},
      {"t5",
       [](Random &random, bool zero) {
         return PositionSet().add_t5(table(random, zero, {8, kHeads}).view(), 12);
       }},
      {"rope",
       [](Random &random, bool zero) {
         if (!zero) return PositionSet().add_rope(kHeadDim, 100);
         return PositionSet().add_rope(table(random, true, {kHeadDim / 2}).view());
       }},
      {"rope_half_partial",
       [](Random &random, bool zero) {
         if (!zero) return PositionSet().add_rope(6, 100, Rope::Layout::half);
         return PositionSet().add_rope(table(random, true, {3}).view(), Rope::Layout::half);
       }},
      {"dense",
       [](Random &random, bool zero) {
         return PositionSet().add_dense(table(random, zero, {1, kHeads, 1, 1}).view());
       }},
      {"relative_rope",
       [](Random &random, bool zero) {
         PositionSet set;
         set.add_relative(table(random, zero, {9}).view());
         return zero ? set.add_rope(table(random, true, {kHeadDim / 2}).view()) : set.add_rope(kHeadDim, 100);
       }},
  };
}

// Equal up to the rounding of float32 sums in another order.
void expect_near(const TensorView &actual, const TensorView &expected, float tolerance = 2e-5f) {
  ASSERT_EQ(actual.shape_text(), expected.shape_text());
  const Tensor a = copy_of(actual, DType::f32), b = copy_of(expected, DType::f32);
  for (int64_t i = 0; i < a.view().num_elements(); i++) {
    ASSERT_NEAR(a.as<float>()[i], b.as<float>()[i], tolerance) << "element " << i;
  }
}

// Bit for bit on a CPU. On a GPU, cuBLASLt sums each shape of a product in an order of its own, other
// products may share an addend or a stream, and calls with a bias or positions run other kernels than those
// without.
void expect_same(const TensorView &actual, const TensorView &expected) {
  if (!on_cuda()) {
    EXPECT_TRUE(same_bits(actual, expected));
    return;
  }
  const DType type = expected.dtype();
  expect_near(actual, expected, type == DType::f32 ? 2e-5f : type == DType::bf16 ? 3e-2f : 4e-3f);
}

class EveryBranch : public testing::TestWithParam<Kind> {
 protected:
  PositionSet positions(bool zero = false) {
    Random random(7);
    return GetParam().make(random, zero);
  }
};

INSTANTIATE_TEST_SUITE_P(Branches, EveryBranch, testing::ValuesIn(kinds()),
                         [](const auto &test) { return test.param.name; });

TEST_P(EveryBranch, WithZeroTablesChangesNoBit) {
  for (const DType type : {DType::f32, DType::bf16, DType::f16}) {
    SCOPED_TRACE(name_of(type));
    const RandomLayer layer(1, kE, 0, type);
    Random random(2);
    const Tensor x = random_tensor(random, type, {2, 21, kE});
    on_every_target([&] {
      const ForwardResult plain = PlainAttention(layer.weights, heads()).forward(self_attention(x));
      const ForwardResult zero =
          AttentionLayer(layer.weights, heads(), positions(true)).forward(self_attention(x));
      expect_same(zero.out.view(), plain.out.view());
    });
  }
}

// The test above proves nothing about a branch that is dropped: this one does.
TEST_P(EveryBranch, WithNumbersChangesTheResult) {
  // A dense bias that is constant along the keys, as here to fit all sizes, is nothing to a softmax.
  if (GetParam().name == "none" || GetParam().name == "dense") return;
  const RandomLayer layer(1, kE);
  Random random(2);
  const Tensor x = random_tensor(random, DType::f32, {2, 21, kE});
  const AttentionLayer positional(layer.weights, heads(), positions());
  const ForwardResult plain = PlainAttention(layer.weights, heads()).forward(self_attention(x));
  const ForwardResult result = positional.forward(self_attention(x));
  double difference = 0;
  for (int64_t i = 0; i < x.view().num_elements(); i++) {
    const double a = result.out.as<float>()[i], b = plain.out.as<float>()[i];
    difference = std::max(difference, std::abs(a - b));
  }
  EXPECT_GT(difference, 1e-3);
}

TEST_P(EveryBranch, DefaultPositionsCountFromZero) {
  const RandomLayer layer(1, kE);
  Random random(3);
  const Tensor x = random_tensor(random, DType::f32, {2, 11, kE});
  const Tensor memory = random_tensor(random, DType::f32, {2, 17, kE});
  Tensor q(DType::i64, {11}), k(DType::f32, {1, 17});
  for (int i = 0; i < 11; i++) q.as<int64_t>()[i] = i;
  for (int i = 0; i < 17; i++) k.as<float>()[i] = static_cast<float>(i);
  on_every_target([&] {
    const AttentionLayer positional(layer.weights, heads(), positions());
    ForwardArgs args;
    args.query = x;
    args.key = args.value = memory;
    const ForwardResult expected = positional.forward(args);
    args.q_positions = q;
    args.k_positions = k;
    expect_same(positional.forward(args).out.view(), expected.out.view());
  });
}

TEST_P(EveryBranch, MaskedPositionsAreNone) {
  if (GetParam().name == "dense") return;  // it is not a function of positions
  const RandomLayer layer(1, kE);
  Random random(3);
  const Tensor x = random_tensor(random, DType::f32, {2, 11, kE});
  const Tensor none(DType::boolean, {11});
  on_every_target([&] {
    ForwardArgs args = self_attention(x);
    const ForwardResult plain = PlainAttention(layer.weights, heads()).forward(args);
    args.q_position_mask = args.k_position_mask = none;
    const AttentionLayer positional(layer.weights, heads(), positions());
    expect_same(positional.forward(args).out.view(), plain.out.view());
  });
}

// Sharing a product is an optimisation: it must not share positions or their masks.
TEST_P(EveryBranch, OneTensorOrThreeEqualOnes) {
  const RandomLayer layer(1, kE);
  Random random(4);
  const Tensor x = random_tensor(random, DType::f32, {2, 13, kE});
  const Tensor key = x.clone(), value = x.clone();
  Tensor positions_of_queries(DType::i32, {13}), applies(DType::boolean, {13});
  for (int i = 0; i < 13; i++) positions_of_queries.as<int32_t>()[i] = (i * 3) % 7;
  for (int i = 0; i < 13; i++) applies.as<bool>()[i] = i % 3 != 0;
  on_every_target([&] {
    const AttentionLayer positional(layer.weights, heads(), positions());
    for (int sides = 0; sides < 3; sides++) {
      SCOPED_TRACE(sides);
      ForwardArgs args = self_attention(x);
      if (sides == 1) args.q_positions = positions_of_queries;
      if (sides == 2) args.k_position_mask = applies;
      const ForwardResult fused = positional.forward(args);
      args.key = key;
      expect_same(positional.forward(args).out.view(), fused.out.view());
      args.value = value;
      expect_same(positional.forward(args).out.view(), fused.out.view());
      args.key = x;
      expect_same(positional.forward(args).out.view(), fused.out.view());
    }
  });
}

// Prefill in chunks and steps through a cache, and all at once.
TEST_P(EveryBranch, CacheEqualsTheWholeSequence) {
  if (GetParam().name == "dense") return;  // sized by the keys of one call
  for (const DType type : {DType::f32, DType::bf16}) {
    SCOPED_TRACE(name_of(type));
    const RandomLayer layer(1, kE, 0, type);
    Random random(5);
    const int64_t tokens = 41;
    const Tensor x = random_tensor(random, type, {2, tokens, kE});
    on_every_target([&] {
      const AttentionLayer positional(layer.weights, heads(), positions());
      ForwardArgs args = self_attention(x);
      args.causal = Causal::bottom_right;
      const ForwardResult whole = positional.forward(args);

      const auto cache_memory = positional.make_cache(2, tokens);
      KvCacheBase &cache = *cache_memory;
      int64_t begin = 0;
      for (const int64_t chunk : {1, 17, 7, 1, 1, 9, 5}) {
        ForwardArgs step = self_attention(x.view().slice(1, begin, begin + chunk));
        step.causal = Causal::bottom_right;
        step.cache = &cache;
        Tensor counted(DType::i64, {chunk});  // what the default is, on one side
        for (int64_t i = 0; i < chunk; i++) counted.as<int64_t>()[i] = begin + i;
        if (chunk == 7) step.q_positions = counted;
        const ForwardResult result = positional.forward(step);
        expect_near(result.out.view(), whole.out.view().slice(1, begin, begin + chunk),
                    type == DType::f32 ? 2e-5f : 3e-2f);
        begin += chunk;
      }
      EXPECT_EQ(cache.length(), tokens);
    });
  }
}

TEST_P(EveryBranch, CacheTakesPositionsOfAllKeys) {
  if (GetParam().name == "dense") return;
  const RandomLayer layer(1, kE);
  Random random(6);
  const Tensor x = random_tensor(random, DType::f32, {2, 9, kE});
  Tensor positions_of_batches(DType::i32, {2, 9}), applies(DType::boolean, {9});
  for (int i = 0; i < 18; i++) positions_of_batches.as<int32_t>()[i] = (i * 5) % 16 + i / 9;
  for (int i = 0; i < 9; i++) applies.as<bool>()[i] = i != 2 && i != 7;
  const AttentionLayer positional(layer.weights, heads(), positions());
  ForwardArgs args = self_attention(x);
  args.causal = Causal::bottom_right;
  args.q_positions = args.k_positions = positions_of_batches;
  args.q_position_mask = args.k_position_mask = applies;
  const ForwardResult whole = positional.forward(args);

  const auto cache_memory = positional.make_cache(2, 9);
  KvCacheBase &cache = *cache_memory;
  int64_t begin = 0;
  for (const int64_t end : {4, 5, 9}) {
    ForwardArgs step = self_attention(x.view().slice(1, begin, end));
    step.causal = Causal::bottom_right;
    step.cache = &cache;
    step.q_positions = positions_of_batches.view().slice(1, begin, end);
    step.k_positions = positions_of_batches.view().slice(1, 0, end);
    step.q_position_mask = applies.view().slice(0, begin, end);
    step.k_position_mask = applies.view().slice(0, 0, end);
    expect_near(positional.forward(step).out.view(), whole.out.view().slice(1, begin, end));
    begin = end;
  }
}

TEST_P(EveryBranch, CrossAttentionIsProjectedOnce) {
  const RandomLayer layer(1, kE);
  Random random(8);
  const Tensor x = random_tensor(random, DType::f32, {2, 5, kE});
  const Tensor xa = random_tensor(random, DType::f32, {2, 19, kE});
  on_every_target([&] {
    const MultiHeadAttention positional(layer.weights, heads(), false, positions());
    MultiHeadArgs args;
    args.x = x;
    args.xa = xa;
    const ForwardResult direct = positional.forward(args);
    const auto cache_memory = positional.make_cache(2, 19);
    KvCacheBase &cache = *cache_memory;
    args.cache = &cache;
    expect_near(positional.forward(args).out.view(), direct.out.view());
    EXPECT_EQ(cache.length(), 19);
    // What xa holds now is not looked at any more.
    Tensor nan(DType::f32, {2, 19, kE});
    std::fill(nan.as<float>(), nan.as<float>() + 2 * 19 * kE, std::numeric_limits<float>::quiet_NaN());
    args.xa = nan;
    expect_near(positional.forward(args).out.view(), direct.out.view());
    EXPECT_EQ(cache.length(), 19);
  });
}

// Beam search: rows of the cache move, and so do the sequences that they stand for.
TEST_P(EveryBranch, CacheRowsFollowTheirSequences) {
  if (GetParam().name == "dense") return;
  const RandomLayer layer(1, kE);
  Random random(9);
  const Tensor x = random_tensor(random, DType::f32, {3, 12, kE});
  const Tensor next = random_tensor(random, DType::f32, {3, 1, kE});
  const int64_t sources[] = {2, 2, 0};
  on_every_target([&] {
    const AttentionLayer positional(layer.weights, heads(), positions());
    const auto cache_memory = positional.make_cache(3, 16);
    KvCacheBase &cache = *cache_memory;
    ForwardArgs prefix = self_attention(x);
    prefix.cache = &cache;
    positional.forward(prefix);
    reorder_on_device(cache, TensorView(sources, DType::i64, {3}));
    ForwardArgs step = self_attention(next);
    step.cache = &cache;
    const ForwardResult result = positional.forward(step);

    const auto expected_cache_memory = positional.make_cache(3, 16);
    KvCacheBase &expected_cache = *expected_cache_memory;
    Tensor moved(DType::f32, {3, 12, kE});
    for (int64_t b = 0; b < 3; b++) {
      copy(x.view().slice(0, sources[b], sources[b] + 1), moved.view().slice(0, b, b + 1));
    }
    prefix = self_attention(moved);
    prefix.cache = &expected_cache;
    positional.forward(prefix);
    step.cache = &expected_cache;
    EXPECT_TRUE(same_bits(result.out.view(), positional.forward(step).out.view()));

    // Back to the prefix, and the same step again.
    cache.truncate(12);
    step.cache = &cache;
    EXPECT_TRUE(same_bits(positional.forward(step).out.view(), result.out.view()));
  });
}

TEST_P(EveryBranch, EmptySizesAreLegal) {
  const RandomLayer layer(1, kE);
  const AttentionLayer positional(layer.weights, heads(), positions());
  const Tensor none(DType::f32, {2, 0, kE});
  Random random(10);
  const Tensor some = random_tensor(random, DType::f32, {2, 3, kE});
  EXPECT_EQ(positional.forward(self_attention(none)).out.size(1), 0);
  EXPECT_EQ(positional.forward(self_attention(some.view().slice(0, 0, 0))).out.size(0), 0);
  // No keys: nothing is visible, so the result is the bias of the output projection.
  ForwardArgs args = self_attention(none);
  args.query = some;
  const ForwardResult result = positional.forward(args);
  for (int64_t row = 0; row < 6; row++) {
    expect_near(result.out.view().select(0, row / 3).select(0, row % 3), layer.weights.out_bias);
  }
}

TEST_P(EveryBranch, GroupedQueriesEqualRepeatedHeads) {
  constexpr int64_t kAll = 6, kGroups = 3, kDim = kE / kAll;
  if (GetParam().name == "relative_per_head" || GetParam().name == "t5" || GetParam().name == "dense" ||
      GetParam().name == "alibi" || GetParam().name.find("rope") != std::string::npos) {
    return;  // their tables are for three heads of 16
  }
  const RandomLayer grouped(1, kE, kGroups * kDim);
  RandomLayer repeated(1, kE, kE);
  for (const int i : {2, 3, 4, 5}) {  // weight and bias of key and value
    const Tensor &from = grouped.tensors[static_cast<size_t>(i)],
                 &to = repeated.tensors[static_cast<size_t>(i)];
    for (int64_t h = 0; h < kAll; h++) {
      const int64_t source = h / (kAll / kGroups) * kDim;
      copy(from.view().slice(0, source, source + kDim), to.view().slice(0, h * kDim, (h + 1) * kDim));
    }
  }
  for (const int i : {0, 1, 6, 7}) {
    copy(grouped.tensors[static_cast<size_t>(i)].view(), repeated.tensors[static_cast<size_t>(i)].view());
  }
  Random random(11);
  const Tensor x = random_tensor(random, DType::f32, {2, 13, kE});
  LayerOptions options = heads(kAll);
  const ForwardResult expected =
      AttentionLayer(repeated.weights, options, positions()).forward(self_attention(x));
  options.num_kv_heads = kGroups;
  const ForwardResult result =
      AttentionLayer(grouped.weights, options, positions()).forward(self_attention(x));
  expect_near(result.out.view(), expected.out.view());
}

// A zero key is what an all-zero token gives where nothing has a bias; without a position, as it is at the
// end of torch's keys.
TEST_P(EveryBranch, ZeroKeyIsAZeroTokenWithoutPosition) {
  if (GetParam().name == "dense") return;
  const RandomLayer layer(1, kE, 0, DType::f32, false);
  Random random(12);
  const Tensor x = random_tensor(random, DType::f32, {2, 7, kE});
  Tensor memory(DType::f32, {2, 8, kE});
  copy(x.view(), memory.view().slice(1, 0, 7));
  Tensor applies(DType::boolean, {8}), keep(DType::boolean, {7, 8});
  for (int j = 0; j < 7; j++) applies.as<bool>()[j] = true;
  for (int i = 0; i < 7; i++) {
    for (int j = 0; j < 8; j++) keep.as<bool>()[i * 8 + j] = j == 7 || (j - i) % 3 != 0;
  }
  for (const Weights kind : {Weights::heads, Weights::mean}) {
    ForwardArgs args = self_attention(memory);
    args.query = x;
    args.k_position_mask = applies;
    args.keep_mask = keep;
    args.need_weights = kind;
    args.need_lse = true;
    args.softcap = 3;
    const ForwardResult expected = AttentionLayer(layer.weights, heads(), positions()).forward(args);

    LayerOptions options = heads();
    options.add_zero_attn = true;
    ForwardArgs zero = self_attention(x);
    zero.keep_mask = keep.view().slice(1, 0, 7);
    zero.need_weights = kind;
    zero.need_lse = true;
    zero.softcap = 3;
    const ForwardResult result = AttentionLayer(layer.weights, options, positions()).forward(zero);
    expect_near(result.out.view(), expected.out.view());
    expect_near(result.weights.view(), expected.weights.view());
    expect_near(result.lse.view(), expected.lse.view());
  }
}

// A layer that adds to its streams, and one that is given streams to which it was added.
TEST(Encoders, AddToQueryAndKeyOnly) {
  Random random(20);
  const RandomLayer layer(1, kE);
  std::vector<SmallMlp::Layer> mlp(2), after_fourier(2);
  mlp[0] = {random_tensor(random, DType::f32, {32, 1}), random_tensor(random, DType::f32, {32})};
  mlp[1] = {random_tensor(random, DType::f32, {kE, 32}, 0.2), Tensor()};
  after_fourier[0] = {random_tensor(random, DType::f32, {10, 8}), random_tensor(random, DType::f32, {10})};
  after_fourier[1] = {random_tensor(random, DType::f32, {kE, 10}), random_tensor(random, DType::f32, {kE})};
  const Tensor frequencies = random_tensor(random, DType::f32, {4, 1});
  const std::vector<std::shared_ptr<const PositionEncoder>> encoders = {
      std::make_shared<TableEncoder>(random_tensor(random, DType::f32, {30, kE}).view()),
      std::make_shared<SinusoidalEncoder>(kE),
      std::make_shared<SinusoidalEncoder>(kE, SinusoidalEncoder::Layout::halves),
      std::make_shared<FourierEncoder>(random_tensor(random, DType::f32, {kE / 2}).view()),
      std::make_shared<FourierEncoder>(frequencies.view(),
                                       SmallMlp(std::move(after_fourier), Activation::silu)),
      std::make_shared<MlpEncoder>(SmallMlp(std::move(mlp), Activation::gelu)),
  };
  const Tensor x = random_tensor(random, DType::f32, {2, 6, kE});
  Tensor positions(DType::f64, {2, 6}), applies(DType::boolean, {2, 6});
  for (int i = 0; i < 12; i++) positions.as<double>()[i] = (i * 7) % 12 + 0.5;
  for (int i = 0; i < 12; i++) applies.as<bool>()[i] = i % 5 != 1;
  for (const auto &encoder : encoders) {
    Tensor moved = x.clone();
    std::vector<float> row(kE);
    for (int64_t i = 0; i < 12; i++) {
      if (!applies.as<bool>()[i]) continue;
      encoder->encode(positions.as<double>() + i, 1, row.data());
      for (int64_t c = 0; c < kE; c++) moved.as<float>()[i * kE + c] += row[static_cast<size_t>(c)];
    }
    ForwardArgs by_hand;
    by_hand.query = by_hand.key = moved;
    by_hand.value = x;
    const ForwardResult expected = PlainAttention(layer.weights, heads()).forward(by_hand);
    ForwardArgs args = self_attention(x);
    args.q_positions = args.k_positions = positions;
    args.q_position_mask = args.k_position_mask = applies;
    const ForwardResult result = AdditivePosAttention(layer.weights, heads(), encoder).forward(args);
    expect_near(result.out.view(), expected.out.view());
  }
}

TEST(Encoders, SinusoidsAreThePapers) {
  double position = 3;
  float row[6];
  SinusoidalEncoder(6).encode(&position, 1, row);
  for (int i = 0; i < 3; i++) {
    const double angle = 3 / std::pow(10000, 2 * i / 6.0);
    EXPECT_FLOAT_EQ(row[2 * i], static_cast<float>(std::sin(angle)));
    EXPECT_FLOAT_EQ(row[2 * i + 1], static_cast<float>(std::cos(angle)));
  }
  // Whisper's: log_timescale_increment = log(10000) / (channels // 2 - 1).
  SinusoidalEncoder(6, SinusoidalEncoder::Layout::halves).encode(&position, 1, row);
  for (int i = 0; i < 3; i++) {
    const double angle = 3 * std::exp(-std::log(10000.0) / 2 * i);
    EXPECT_FLOAT_EQ(row[i], static_cast<float>(std::sin(angle)));
    EXPECT_FLOAT_EQ(row[3 + i], static_cast<float>(std::cos(angle)));
  }
}

TEST(Encoders, ProjectorMultipliesRows) {
  const float table_values[] = {1, 2, 3, 4}, projector_values[] = {0.5f, 0.25f, -1, 2};
  const TableEncoder encoder(TensorView(table_values, DType::f32, {2, 2}),
                             TensorView(projector_values, DType::f32, {2, 2}));
  const double positions[] = {1, 0};
  float rows[4];
  encoder.encode(positions, 2, rows);
  EXPECT_EQ(std::vector<float>(rows, rows + 4), (std::vector<float>{2.5f, 5, 1, 3}));
}

// The positions of a plain layer do not matter, however odd: encoder layers call every kind alike.
TEST(PlainAttentionLayer, IgnoresPositions) {
  const RandomLayer layer(1, kE);
  Random random(21);
  const Tensor x = random_tensor(random, DType::f32, {1, 4, kE});
  Tensor positions(DType::f32, {4});
  positions.as<float>()[1] = -1e6f;
  ForwardArgs args = self_attention(x);
  const PlainAttention plain(layer.weights, heads());
  const ForwardResult expected = plain.forward(args);
  args.q_positions = args.k_positions = positions;
  EXPECT_TRUE(same_bits(plain.forward(args).out.view(), expected.out.view()));
}

TEST(DenseBias, IsAddedToTheLogits) {
  const RandomLayer layer(1, kE);
  Random random(24);
  const Tensor x = random_tensor(random, DType::f32, {2, 9, kE});
  const Tensor bias = random_tensor(random, DType::f32, {kHeads, 9, 9});
  on_every_target([&] {
    ForwardArgs args = self_attention(x);
    const DenseBiasAttention dense(layer.weights, heads(), bias.view());
    const PlainAttention plain(layer.weights, heads());
    const ForwardResult result = dense.forward(args);
    args.dense_bias = bias;
    expect_same(plain.forward(args).out.view(), result.out.view());
    args.dense_bias = {};
    args.add_mask = bias;
    expect_same(plain.forward(args).out.view(), result.out.view());
    args.add_mask = {};
    EXPECT_FALSE(same_bits(plain.forward(args).out.view(), result.out.view()));
  });
}

TEST(AnyLayer, ReadsStridedStreamsAndOutlivesItsWeights) {
  Random random(22);
  const Tensor wide = random_tensor(random, DType::f32, {2, 8, 2 * kE + 8});
  const TensorView x = wide.view().slice(2, 4, 4 + kE).slice(1, 1, 8);
  auto layer = std::make_unique<RandomLayer>(1, kE);
  const AttentionLayer attention(layer->weights, heads(), PositionSet().add_alibi(kHeads));
  const ForwardResult expected = attention.forward(self_attention(copy_of(x, DType::f32).view()));
  layer.reset();
  // NOLINTNEXTLINE(performance-unnecessary-copy-initialization): the copy is what is tested.
  const AttentionLayer copied = attention;  // shares what it needs
  EXPECT_TRUE(same_bits(copied.forward(self_attention(x)).out.view(), expected.out.view()));
}

TEST(AnyLayer, ComputesInTheTypeAskedFor) {
  const RandomLayer layer(1, kE);
  Random random(23);
  const Tensor x = random_tensor(random, DType::f32, {2, 9, kE});
  const ForwardResult expected = PlainAttention(layer.weights, heads()).forward(self_attention(x));
  for (const DType type : {DType::bf16, DType::f16}) {
    LayerOptions options = heads();
    options.dtype = type;
    const PlainAttention half(layer.weights, options);
    EXPECT_EQ(half.dtype(), type);
    const Tensor rounded = x.to(type);
    const ForwardResult result = half.forward(self_attention(rounded));
    EXPECT_EQ(result.out.dtype(), type);
    expect_near(result.out.view(), expected.out.view(), type == DType::bf16 ? 3e-2f : 4e-3f);
  }
}

}  // namespace
}  // namespace posattn::oracle
