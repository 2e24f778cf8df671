// Layers and caches on a GPU as far as they can be seen without one.
#include <gtest/gtest.h>

#include <functional>

#include "runtime/cuda/layers.h"
#include "runtime/cuda/memory.h"
#include "runtime/error.h"
#include "runtime/layers/layers.h"
#include "runtime/layers/multi_head_attention.h"
#include "tests/fake_cuda.h"
#include "tests/random_layer.h"

// cuBLASLt leaks what it has begun where it finds no GPU.
extern "C" const char *__lsan_default_suppressions() { return "leak:libcublasLt"; }  // NOLINT: its name

namespace posattn::oracle {
namespace {

using cuda::Stream;

class CudaLayers : public testing::Test {
 protected:
  static constexpr int64_t kE = 128, kHeads = 2;

  CudaLayers() : weights(1, kE), x(DType::f32, {2, 20, kE}), out(DType::f32, {2, 20, kE}) {
    static const cuda::Driver driver = fake_driver();
    static const cuda::Blas blas = fake_blas();
    asked = Asked();
    cuda::set_driver_for_testing(&driver);
    cuda::set_blas_for_testing(&blas);
    options.num_heads = kHeads;
    options.device = &gpu;
    args.query = args.key = args.value = x.view();
    args.cuda = &call;
    outputs.out = out;
  }
  ~CudaLayers() override {
    cuda::set_driver_for_testing(nullptr);
    cuda::set_blas_for_testing(nullptr);
  }

  static std::string error_of(const std::function<void()> &body) {
    try {
      body();
    } catch (const Error &error) {
      return error.what();
    }
    return "none";
  }
  static bool has(const std::string &text, const char *part) { return text.find(part) != std::string::npos; }

  CudaCall call{{reinterpret_cast<void *>(uintptr_t{4096}), 0}};
  CudaDevice gpu{call.stream};
  LayerOptions options;
  RandomLayer weights;
  Tensor x, out;
  ForwardArgs args;
  ForwardOutputs outputs;
};

TEST_F(CudaLayers, AllIsOnTheCallersStream) {
  const RopeAttention layer(weights.weights, options, [] {
    static const float frequencies[] = {1, 0.5f, 0.25f};
    return TensorView(frequencies, DType::f32, {3});
  }());
  layer.forward_into(args, outputs);
  EXPECT_EQ(asked.products, 2);
  // One table and one rotation for queries and keys, the rest of their channels, attention.
  EXPECT_EQ(asked.launches, 4);
  EXPECT_EQ(asked.streams, std::set<Stream>{static_cast<Stream>(call.stream.handle)});
  EXPECT_EQ(asked.allocations, 1);
}

TEST_F(CudaLayers, ProductsAreSharedAsOnACpu) {
  const PlainAttention layer(weights.weights, options);
  const Tensor other(DType::f32, {2, 20, kE}), third(DType::f32, {2, 20, kE});
  args.key = args.value = other.view();
  layer.forward_into(args, outputs);
  EXPECT_EQ(asked.products, 3);
  args.value = third.view();
  layer.forward_into(args, outputs);
  EXPECT_EQ(asked.products, 3 + 4);
}

TEST_F(CudaLayers, TakesTheCallersWorkspaceAndNoLess) {
  const PlainAttention layer(weights.weights, options);
  const size_t size = layer.workspace_size(args);
  ASSERT_GT(size, 0u);
  const CudaMemory memory(size, call.stream);
  call.workspace = memory.data();
  call.workspace_size = size;
  layer.forward_into(args, outputs);
  EXPECT_EQ(asked.allocations, 0);
  const int launches = asked.launches;
  call.workspace_size = size / 2;
  EXPECT_TRUE(has(error_of([&] { layer.forward_into(args, outputs); }), "workspace: expected at least"));
  call.workspace_size = size;
  call.workspace = static_cast<char *>(memory.data()) + 64;
  EXPECT_TRUE(has(error_of([&] { layer.forward_into(args, outputs); }), "aligned to 256"));
  EXPECT_EQ(asked.launches, launches);
  call.workspace = memory.data();
  layer.forward_into(args, outputs);
}

TEST_F(CudaLayers, RefusesMemoryAndCachesOfTheHost) {
  const PlainAttention layer(weights.weights, options);
  KvCache host(2, kHeads, kE / kHeads, kE / kHeads, 30, DType::f32);
  args.cache = &host;
  EXPECT_TRUE(has(error_of([&] { layer.forward_into(args, outputs); }), "cache: expected one on the GPU"));
  args.cache = nullptr;
  Scratch scratch;
  args.scratch = &scratch;
  EXPECT_TRUE(has(error_of([&] { layer.forward_into(args, outputs); }), "scratch: expected none"));
  args.scratch = nullptr;
  asked.known_addresses = false;
  EXPECT_TRUE(has(error_of([&] { layer.forward_into(args, outputs); }), "query: expected memory of the GPU"));
  EXPECT_EQ(asked.launches + asked.products, 0);
  // The other way round.
  options.device = nullptr;
  const PlainAttention on_cpu(weights.weights, options);
  EXPECT_TRUE(has(error_of([&] { on_cpu.forward_into(args, outputs); }), "cuda: expected none"));
  args.cuda = nullptr;
  CudaKvCache cache(2, kHeads, kE / kHeads, kE / kHeads, 30, DType::f32, call.stream);
  args.cache = &cache;
  EXPECT_TRUE(
      has(error_of([&] { on_cpu.forward_into(args, outputs); }), "cache: expected one in the host's"));
}

TEST_F(CudaLayers, ACacheGrowsOnlyWhereACallSucceeds) {
  const MultiHeadAttention layer(weights.weights, options, true, PositionSet().add_rope(64));
  const auto cache = layer.make_cache(2, 50);
  MultiHeadArgs step;
  step.x = x;
  step.cache = cache.get();
  step.cuda = &call;
  layer.forward_into(step, outputs);
  EXPECT_EQ(cache->length(), 20);
  EXPECT_GT(layer.workspace_size(step), 0u);
  EXPECT_EQ(cache->length(), 20);
  asked.launch_result = 700;
  EXPECT_TRUE(has(error_of([&] { layer.forward_into(step, outputs); }), "a fake error"));
  EXPECT_EQ(cache->length(), 20);
  asked.launch_result = cuda::kSuccess;
  layer.forward_into(step, outputs);
  EXPECT_EQ(cache->length(), 40);
  EXPECT_TRUE(has(error_of([&] { layer.forward_into(step, outputs); }), "cache: full: 40 of 50"));
  cache->truncate(3);
  EXPECT_EQ(cache->length(), 3);
  EXPECT_TRUE(has(error_of([&] { cache->truncate(4); }), "a length of 0 to 3"));
}

TEST_F(CudaLayers, SaysWhatAProductFailedOf) {
  const PlainAttention layer(weights.weights, options);
  asked.blas_result = 14;
  const std::string text = error_of([&] { layer.forward_into(args, outputs); });
  EXPECT_TRUE(has(text, "cuBLASLt: multiplying: a fake status (14)")) << text;
  asked.blas_result = 0;
  EXPECT_EQ(error_of([&] { layer.forward_into(args, outputs); }), "none");
}

// Layers of many tokens in float32, whose tensors are nowhere: nothing reads them.
class SplitProducts : public CudaLayers {
 protected:
  // 400 channels are two groups of 208, 1200 output features of query, key and value.
  static constexpr int64_t kWide = 400, kSummed = 6 * 208, kWidth = 2 * kSummed;

  SplitProducts() : wide(2, kWide) { options.num_heads = 4; }

  static MutableTensorView nowhere(int64_t batch, int64_t tokens, int64_t token_step = kWide,
                                   int64_t batch_step = 0) {
    const int64_t shape[] = {batch, tokens, kWide};
    const int64_t strides[] = {batch_step ? batch_step : tokens * token_step, token_step, 1};
    return MutableTensorView(reinterpret_cast<void *>(uintptr_t{1} << 40), DType::f32, 3, shape, strides);
  }
  // What cuBLASLt is asked for, in a workspace of just the size that the layer asks for.
  std::vector<AskedProduct> products(const PositionalAttentionBase &layer, const TensorView &in,
                                     const MutableTensorView &to) {
    args.query = args.key = args.value = in;
    outputs.out = to;
    call.workspace_size = layer.workspace_size(args);
    call.workspace = reinterpret_cast<void *>(uintptr_t{1} << 44);
    asked.multiplied.clear();
    asked.launches = 0;
    layer.forward_into(args, outputs);
    return asked.multiplied;
  }
  bool in_workspace(const char *begin, int64_t bytes) const {
    const char *const first = static_cast<const char *>(call.workspace);
    return begin >= first && begin + bytes <= first + call.workspace_size;
  }

  RandomLayer wide;
};

TEST_F(SplitProducts, AddGroupsOfFeatures) {
  const PlainAttention layer(wide.weights, options);
  constexpr int64_t kTokens = 2 * 150;
  const auto made = products(layer, nowhere(2, 150), nowhere(2, 150));
  ASSERT_EQ(made.size(), 4u);
  EXPECT_EQ(asked.launches, 2 + 1);  // two inputs are split
  EXPECT_EQ(asked.allocations, 0);
  for (size_t i = 0; i < made.size(); i++) {
    SCOPED_TRACE(i);
    const AskedProduct &p = made[i], &first = made[i - i % 2];
    const bool is_last = i % 2 == 1;
    EXPECT_EQ(p.type, cuda::kBlasBFloat16);
    EXPECT_EQ(p.summed, kSummed);
    EXPECT_EQ(p.out, i < 2 ? 3 * kWide : kWide);
    EXPECT_EQ(p.tokens, kTokens);
    EXPECT_EQ(p.batches, 1);
    EXPECT_EQ(p.weight_step, kWidth);
    EXPECT_EQ(p.x_step, kWidth);
    EXPECT_EQ(p.y_step, p.out);
    EXPECT_EQ(p.added, is_last ? 1.f : 0.f);
    EXPECT_EQ(p.bias != nullptr, is_last);
    EXPECT_EQ(p.y, first.y);
    EXPECT_EQ(p.x - first.x, is_last ? 2 * kSummed : 0);
    EXPECT_EQ(p.weight - first.weight, is_last ? 2 * kSummed : 0);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(p.x) % 64, 0u);
    // One piece of memory serves both, apart from what products write and attention reads.
    EXPECT_EQ(first.x, made[0].x);
    EXPECT_TRUE(in_workspace(first.x, kTokens * kWidth * 2));
    EXPECT_TRUE(made[0].y + kTokens * 3 * kWide * 4 <= first.x ||
                made[0].y >= first.x + kTokens * kWidth * 2);
    EXPECT_TRUE(i >= 2 || in_workspace(p.y, kTokens * 3 * kWide * 4));
  }
  // What a weight's rows hold where the first products read them: the largest parts, then the smallest.
  const auto *const rows = reinterpret_cast<const uint16_t *>(made[0].weight);
  for (const int64_t i : {0, 207, 208, 399}) {
    const float number = wide.tensors[2].as<float>()[7 * kWide + i];  // of a key's row
    const auto *const at = rows + (kWide + 7) * kWidth + i / 208 * kSummed + i % 208;
    float sum = 0;
    for (const int part : {1, 2, 0}) sum += bf16_to_float(at[part * 208]);
    EXPECT_EQ(sum, number) << i;
  }
}

TEST_F(SplitProducts, OnlyWhereTheyPay) {
  const auto types = [&](const PositionalAttentionBase &layer, int64_t tokens) {
    std::set<int> seen;
    for (const AskedProduct &p : products(layer, nowhere(1, tokens), nowhere(1, tokens))) seen.insert(p.type);
    return seen;
  };
  const std::set<int> plain = {cuda::kBlasFloat32}, split = {cuda::kBlasBFloat16};
  const PlainAttention layer(wide.weights, options);
  EXPECT_EQ(types(layer, 1), plain);
  EXPECT_EQ(types(layer, 255), plain);
  EXPECT_EQ(types(layer, 256), split);
  asked.capability = 86;
  EXPECT_EQ(types(PlainAttention(wide.weights, options), 1000), plain);
  asked.capability = 90;
  EXPECT_EQ(types(PlainAttention(wide.weights, options), 1000), split);
  // A row of weights that bfloat16's parts cannot hold.
  float *const row = wide.tensors[6].as<float>() + 5 * kWide;
  for (int64_t i = 0; i < kWide; i++) row[i] *= 1e-30f;
  const auto both = types(PlainAttention(wide.weights, options), 1000);
  EXPECT_EQ(both, (std::set<int>{cuda::kBlasFloat32, cuda::kBlasBFloat16}));
}

TEST_F(SplitProducts, OfTensorsOfAnySteps) {
  const PlainAttention layer(wide.weights, options);
  // Batches of the output that are apart: a product for each, of what was split together.
  const auto made = products(layer, nowhere(3, 100, 407), nowhere(3, 100, kWide, 50000));
  ASSERT_EQ(made.size(), 4u);
  EXPECT_EQ(made[0].batches, 1);
  EXPECT_EQ(made[0].tokens, 300);
  EXPECT_EQ(made[2].batches, 3);
  EXPECT_EQ(made[2].tokens, 100);
  EXPECT_EQ(made[2].y_batch_step, 50000);
  // More than a kernel's offsets reach: a few tokens at a time.
  const auto far = products(layer, nowhere(1, 300, int64_t{1} << 27), nowhere(1, 300));
  int64_t tokens = 0;
  for (const AskedProduct &p : far) {
    EXPECT_EQ(p.x_step, kWidth);
    if (p.out == 3 * kWide && p.added == 0) {
      EXPECT_EQ(p.y - far[0].y, tokens * 3 * kWide * 4);
      EXPECT_LE(p.tokens, 16);
      tokens += p.tokens;
    }
  }
  EXPECT_EQ(tokens, 300);
}

TEST_F(SplitProducts, OfMoreTokensTakeNoMoreMemoryThanOfMany) {
  const PlainAttention layer(wide.weights, options);
  const auto size_of_call = [&](int64_t tokens) {
    args.query = args.key = args.value = nowhere(1, tokens);
    return static_cast<int64_t>(layer.workspace_size(args));
  };
  // Beside what is split there are query, key, value and their mix, and attention's own memory.
  const int64_t row = 4 * kWide * 4;
  EXPECT_GE(size_of_call(40000) - size_of_call(30000), 10000 * (row + kWidth * 2));
  EXPECT_LT(size_of_call(110000) - size_of_call(100000), 10000 * (row + kWidth));
  const auto made = products(layer, nowhere(1, 100000), nowhere(1, 100000));
  ASSERT_EQ(made.size(), 2u * 2 * 2);  // two blocks of tokens, two groups, twice
  int64_t tokens = 0;
  for (const AskedProduct &p : made) {
    EXPECT_TRUE(in_workspace(p.x, ((p.tokens - 1) * kWidth + kSummed) * 2));
    tokens += p.tokens;
  }
  EXPECT_EQ(tokens, 4 * 100000);
}

TEST_F(CudaLayers, EveryKindOfLayerOfTensorsOnTheHost) {
  Random random(3);
  const Tensor table = random_tensor(random, DType::f32, {40, kE});
  const float frequencies[] = {1, 2};
  std::vector<SmallMlp::Layer> network(1);
  network[0] = {random_tensor(random, DType::f32, {kE, 1}), Tensor()};
  const PositionSet sets[] = {
      PositionSet().add_alibi(kHeads),
      PositionSet().add_relative(random_tensor(random, DType::f32, {9}).view()),
      PositionSet().add_t5(random_tensor(random, DType::f32, {8, kHeads}).view()),
      PositionSet().add_dense(random_tensor(random, DType::f32, {1, 20, 20}).view()),
      PositionSet().add_rope(TensorView(frequencies, DType::f32, {2})),
      PositionSet().add_encoder(std::make_shared<TableEncoder>(table.view())),
      PositionSet().add_encoder(std::make_shared<SinusoidalEncoder>(kE)),
      PositionSet().add_encoder(std::make_shared<MlpEncoder>(SmallMlp(std::move(network), Activation::relu))),
  };
  Tensor positions(DType::f64, {2, 20}), mask(DType::boolean, {20});
  args.cuda = nullptr;
  options.add_zero_attn = true;
  args.need_lse = true;
  args.need_weights = Weights::mean;
  for (const PositionSet &set : sets) {
    SCOPED_TRACE(set.names());
    const AttentionLayer layer(weights.weights, options, set);
    args.q_positions = args.k_positions = positions;
    args.q_position_mask = mask;
    EXPECT_EQ(layer.forward(args).weights.view().shape_text(), "(2, 20, 21)");
    args.q_positions = args.k_positions = args.q_position_mask = {};
    layer.forward(args);
    const auto cache = layer.make_cache(2, 25);
    args.cache = cache.get();
    if (set.dense().empty()) layer.forward(args);
    args.cache = nullptr;
  }
  // What the GPU does not look at, the host does.
  const AttentionLayer layer(weights.weights, options, sets[5]);
  args.q_positions = positions;
  positions.as<double>()[3] = 40;
  EXPECT_TRUE(has(error_of([&] { layer.forward(args); }), "q_positions: position 40 is outside"));
  positions.as<double>()[3] = std::numeric_limits<double>::infinity();
  EXPECT_TRUE(has(error_of([&] { layer.forward(args); }), "expected finite numbers"));
}

TEST(CudaLayersWithoutBlas, SaySoAndLeaveTheProcessUsable) {
  static const cuda::Driver driver = fake_driver();
  asked = Asked();
  cuda::set_driver_for_testing(&driver);
  const RandomLayer weights(1, 64);
  const CudaDevice gpu;
  LayerOptions options;
  options.num_heads = 1;
  options.device = &gpu;
  std::string text;
  try {
    const PlainAttention layer(weights.weights, options);
  } catch (const Error &error) {
    text = error.what();
  }
  cuda::set_driver_for_testing(nullptr);
  options.device = nullptr;
  const PlainAttention on_cpu(weights.weights, options);
  EXPECT_EQ(on_cpu.embed_dim(), 64);
  // Either it is not there, or it finds no GPU.
  EXPECT_NE(text.find("cuBLASLt"), std::string::npos) << text;
}

}  // namespace
}  // namespace posattn::oracle
