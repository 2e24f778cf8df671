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
