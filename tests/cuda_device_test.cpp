// What only a GPU can show of layers and caches: contents of device caches, graphs, streams and threads.
#include <dlfcn.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <thread>

#include "runtime/cuda/attend.h"
#include "runtime/cuda/context.h"
#include "runtime/cuda/layers.h"
#include "runtime/cuda/linear.h"
#include "runtime/error.h"
#include "runtime/layers/layers.h"
#include "runtime/layers/multi_head_attention.h"
#include "tests/check.h"
#include "tests/random_layer.h"

namespace posattn::oracle {
namespace {

// Of the driver, what the library has no use for.
struct GraphDriver {
  template <typename F>
  void find(const char *name, F &function) {
    function = reinterpret_cast<F>(dlsym(dlopen("libcuda.so.1", RTLD_NOW), name));
    if (!function) fail("no ", name);
  }
  GraphDriver() {
    find("cuStreamCreate", StreamCreate);
    find("cuStreamDestroy_v2", StreamDestroy);
    find("cuStreamBeginCapture_v2", StreamBeginCapture);
    find("cuStreamEndCapture", StreamEndCapture);
    find("cuGraphInstantiateWithFlags", GraphInstantiate);
    find("cuGraphLaunch", GraphLaunch);
  }
  cuda::Result (*StreamCreate)(cuda::Stream *, unsigned);
  cuda::Result (*StreamDestroy)(cuda::Stream);
  cuda::Result (*StreamBeginCapture)(cuda::Stream, int mode);
  cuda::Result (*StreamEndCapture)(cuda::Stream, void **graph);
  cuda::Result (*GraphInstantiate)(void **executable, void *graph, unsigned long long);
  cuda::Result (*GraphLaunch)(void *executable, cuda::Stream);
};

class OnDevice : public testing::Test {
 protected:
  void SetUp() override {
    std::string why;
    if (!cuda::find_driver(&why)) GTEST_SKIP() << why;
    scope.emplace(CudaStream());
    graphs.emplace();
  }
  CudaStream make_stream() {
    cuda::Stream stream = nullptr;
    cuda::check(graphs->StreamCreate(&stream, 1), "a stream");
    return {stream, 0};
  }
  // A graph of what `calls` puts on the stream, ready to be launched.
  void *record(const CudaStream &stream, const std::function<void()> &calls) {
    const auto handle = static_cast<cuda::Stream>(stream.handle);
    void *graph = nullptr, *executable = nullptr;
    cuda::check(graphs->StreamBeginCapture(handle, 0), "capture");
    calls();
    cuda::check(graphs->StreamEndCapture(handle, &graph), "end of capture");
    cuda::check(graphs->GraphInstantiate(&executable, graph, 0), "graph");
    return executable;
  }
  void launch(void *executable, const CudaStream &stream) {
    cuda::check(graphs->GraphLaunch(executable, static_cast<cuda::Stream>(stream.handle)), "launch");
    synchronize(stream);
  }
  static Tensor download(const CudaTensor &tensor) {
    const TensorView &view = tensor.view();
    int64_t shape[kMaxRank];
    for (int d = 0; d < view.rank(); ++d) shape[d] = view.size(d);
    Tensor host(view.dtype(), view.rank(), shape);
    tensor.download(host);
    return host;
  }
  // (B, H, T, d) of a cache.
  static Tensor download(const TensorView &rows, DType type) {
    Tensor host(type, {rows.size(0), rows.size(1), rows.size(2), rows.size(3)});
    for (int64_t b = 0; b < rows.size(0); ++b) {
      for (int64_t h = 0; h < rows.size(1); ++h) {
        for (int64_t t = 0; t < rows.size(2); ++t) {
          const TensorView from = rows.select(0, b).select(0, h).select(0, t);
          const MutableTensorView to = host.view().select(0, b).select(0, h).select(0, t);
          copy_from_cuda(to.data(), from.data(), static_cast<size_t>(rows.size(3) * size_of(type)), {});
        }
      }
    }
    return host;
  }
  LayerOptions options(int64_t heads, std::optional<DType> type = {}) const {
    LayerOptions result;
    result.num_heads = heads;
    result.device = &gpu;
    result.dtype = type;
    return result;
  }

  CudaDevice gpu;
  std::optional<cuda::Scope> scope;
  std::optional<GraphDriver> graphs;
};

TEST_F(OnDevice, CacheHoldsWhatWasAppended) {
  for (const DType type : {DType::f32, DType::bf16}) {
    Random random(1);
    // (B, T, H, d), as a projection leaves it; values of an odd width.
    const Tensor key = random_tensor(random, type, {3, 40, 2, 59}),
                 value = random_tensor(random, type, {3, 40, 2, 33});
    const CudaTensor k(key.view(), {}), v(value.view(), {});
    const TensorView k_heads = k.view().transposed(1, 2), v_heads = v.view().transposed(1, 2);
    CudaKvCache cache(3, 2, 59, 33, 50, type, {});
    int64_t at = 0;
    for (const int64_t piece : {1, 17, 0, 22}) {
      cache.append(k_heads.slice(2, at, at + piece), v_heads.slice(2, at, at + piece));
      at += piece;
    }
    ASSERT_EQ(cache.length(), 40);
    const TensorView keys = key.view().transposed(1, 2), values = value.view().transposed(1, 2);
    EXPECT_TRUE(same_bits(download(cache.keys(), type).view(), keys));
    EXPECT_TRUE(same_bits(download(cache.values(), type).view(), values));

    const int64_t wide[] = {2, 2, 0};
    const int32_t narrow[] = {1, 0, 7};  // a row that there is not becomes the last
    const CudaTensor by_i64(TensorView(wide, DType::i64, {3}), {}),
        by_i32(TensorView(narrow, DType::i32, {3}), {});
    cache.truncate(30);
    cache.reorder(by_i64.view());
    cache.reorder(by_i32.view());
    const int64_t sources[] = {2, 2, 0};
    const Tensor moved = download(cache.keys(), type), moved_values = download(cache.values(), type);
    for (int64_t b = 0; b < 3; ++b) {
      const int64_t from = sources[b];
      EXPECT_TRUE(same_bits(moved.view().select(0, b), keys.select(0, from).slice(1, 0, 30)));
      EXPECT_TRUE(same_bits(moved_values.view().select(0, b), values.select(0, from).slice(1, 0, 30)));
    }
    // The longer continuation that was there before is gone.
    cache.append(k_heads.slice(2, 0, 1), v_heads.slice(2, 0, 1));
    EXPECT_TRUE(same_bits(download(cache.keys().slice(2, 30, 31), type).view(), keys.slice(2, 0, 1)));
  }
}

TEST_F(OnDevice, ErrorsLeaveACacheAsItWas) {
  const Tensor rows(DType::f32, {2, 2, 5, 16});
  const CudaTensor some(rows.view(), {});
  CudaKvCache cache(2, 2, 16, 16, 8, DType::f32, {});
  cache.append(some.view(), some.view());
  EXPECT_THROW(cache.append(some.view(), some.view()), Error);
  EXPECT_THROW(cache.append(rows.view().slice(2, 0, 2), rows.view().slice(2, 0, 2)), Error);
  EXPECT_THROW(cache.append(some.view().slice(3, 0, 8), some.view()), Error);
  const int64_t on_host[] = {0, 1};
  EXPECT_THROW(cache.reorder(TensorView(on_host, DType::i64, {2})), Error);
  EXPECT_THROW(cache.truncate(6), Error);
  EXPECT_EQ(cache.length(), 5);
}

// A captured call is one of the same numbers, again and again, on what its tensors hold by then.
TEST_F(OnDevice, GraphsRecordLayers) {
  // 300 tokens of 400 channels in float32 are multiplied on tensor cores, in two groups of features.
  const struct {
    DType type;
    int64_t tokens, channels;
  } cases[] = {{DType::f32, 100, 256}, {DType::bf16, 100, 256}, {DType::f32, 150, 400}};
  for (const auto &[type, tokens, channels] : cases) {
    const RandomLayer weights(1, channels, 0, type);
    PositionSet positions;
    positions.add_rope(64).add_alibi(4);
    const AttentionLayer layer(weights.weights, options(4), positions);
    Random random(2);
    const Tensor first = random_tensor(random, type, {2, tokens, channels}),
                 second = random_tensor(random, type, {2, tokens, channels});
    const CudaTensor x(first.view(), {}), out(first.view(), {});
    const CudaStream stream = make_stream();
    ForwardArgs args;
    args.query = args.key = args.value = x.view();
    args.causal = Causal::bottom_right;
    CudaCall call{stream};
    const CudaMemory memory(layer.workspace_size(args), stream);
    call.workspace = memory.data();
    call.workspace_size = memory.size();
    args.cuda = &call;
    // Nothing was loaded before: capturing may be the first call of all.
    void *const graph = record(stream, [&] { layer.forward_into(args, {out.view(), {}, {}}); });
    for (const Tensor *input : {&first, &second, &first}) {
      copy_to_cuda(const_cast<void *>(static_cast<const void *>(x.view().data())), input->view().data(),
                   static_cast<size_t>(input->view().num_elements() * size_of(type)), stream);
      launch(graph, stream);
      const Tensor replayed = download(out);
      ForwardArgs direct;
      direct.query = direct.key = direct.value = input->view();
      direct.causal = Causal::bottom_right;
      EXPECT_TRUE(same_bits(replayed.view(), layer.forward(direct).out.view()));
    }
  }
}

// Decoding: a graph for each step, through the cache, with memory from the pool.
TEST_F(OnDevice, GraphsRecordStepsThroughACache) {
  const RandomLayer weights(1, 128, 0, DType::bf16);
  const MultiHeadAttention layer(weights.weights, options(2), true, PositionSet().add_rope(64));
  Random random(3);
  const Tensor all = random_tensor(random, DType::bf16, {2, 9, 128});
  const auto cache = layer.make_cache(2, 9), graph_cache = layer.make_cache(2, 9);
  const CudaStream stream = make_stream();
  const CudaCall call{stream};
  for (int64_t t = 0; t < 9; ++t) {
    const TensorView token = all.view().slice(1, t, t + 1);
    MultiHeadArgs args;
    args.x = token;
    args.cache = cache.get();
    const Tensor expected = std::move(layer.forward(args).out);
    const CudaTensor x(token, stream), out(token, stream);
    args.x = x.view();
    args.cache = graph_cache.get();
    args.cuda = &call;
    launch(record(stream, [&] { layer.forward_into(args, {out.view(), {}, {}}); }), stream);
    EXPECT_TRUE(same_bits(download(out).view(), expected.view()));
  }
}

// Decoding calls that follow each other at once, through one workspace: each has its own kernels' results, on
// a stream as in a graph.
TEST_F(OnDevice, DecodingCallsInTurnShareAWorkspace) {
  constexpr int kCalls = 6, kRounds = 50;
  for (const DType type : {DType::f32, DType::bf16}) {
    Random random(5);
    const CudaStream stream = make_stream();
    std::vector<Tensor> expected;
    std::vector<CudaTensor> inputs, outs;
    std::vector<AttendArgs> calls(kCalls);
    size_t size = 0;
    for (int i = 0; i < kCalls; ++i) {
      const int64_t keys = 300 + 517 * i;
      const int64_t sizes[] = {1, keys, keys};
      for (const int64_t tokens : sizes) {
        inputs.emplace_back(random_tensor(random, type, {1, 8, tokens, 64}).view(), stream);
      }
      outs.emplace_back(Tensor(type, {1, 8, 1, 64}).view(), stream);
    }
    for (size_t i = 0; i < kCalls; ++i) {
      calls[i].query = inputs[3 * i].view(), calls[i].key = inputs[3 * i + 1].view();
      calls[i].value = inputs[3 * i + 2].view(), calls[i].out = outs[i].view();
      size = std::max(size, attend_workspace_size(calls[i], stream));
    }
    const CudaMemory memory(size, stream);
    for (size_t i = 0; i < kCalls; ++i) {
      attend(calls[i], stream, memory.data(), size);
      synchronize(stream);
      expected.push_back(download(outs[i]));
    }
    const auto all = [&] {
      // What is no kernel comes before them, too.
      const TensorView &first = outs[0].view();
      cuda::check(cuda::driver().MemsetD8Async(reinterpret_cast<cuda::Address>(first.data()), 0xff,
                                               static_cast<size_t>(first.num_elements() * size_of(type)),
                                               static_cast<cuda::Stream>(stream.handle)),
                  "clearing");
      for (const AttendArgs &call : calls) attend(call, stream, memory.data(), size);
    };
    const auto check = [&] {
      synchronize(stream);
      for (size_t i = 0; i < kCalls; ++i) {
        EXPECT_TRUE(same_bits(download(outs[i]).view(), expected[i].view()));
        copy_to_cuda(outs[i].view().data(), Tensor(type, {1, 8, 1, 64}).view().data(),
                     static_cast<size_t>(8 * 64 * size_of(type)), stream);
      }
      synchronize(stream);
    };
    check();
    for (int round = 0; round < kRounds; ++round) all();
    check();
    void *graph = nullptr, *executable = nullptr;
    cuda::check(graphs->StreamBeginCapture(static_cast<cuda::Stream>(stream.handle), 0), "capture");
    for (int round = 0; round < kRounds; ++round) all();
    cuda::check(graphs->StreamEndCapture(static_cast<cuda::Stream>(stream.handle), &graph), "end of capture");
    cuda::check(graphs->GraphInstantiate(&executable, graph, 0), "graph");
    for (int replay = 0; replay < 2; ++replay) {
      cuda::check(graphs->GraphLaunch(executable, static_cast<cuda::Stream>(stream.handle)), "launch");
      check();
    }
  }
}

TEST_F(OnDevice, ThreadsShareALayer) {
  const RandomLayer weights(1, 256, 0, DType::bf16);
  const AttentionLayer layer(weights.weights, options(4), PositionSet().add_rope(64));
  constexpr int kThreads = 4;
  std::vector<Tensor> inputs, expected;
  for (int i = 0; i < kThreads; ++i) {
    Random random(static_cast<uint64_t>(i));
    inputs.push_back(random_tensor(random, DType::bf16, {2, 64 + 8 * i, 256}));
    ForwardArgs args;
    args.query = args.key = args.value = inputs.back().view();
    expected.push_back(std::move(layer.forward(args).out));
  }
  std::vector<CudaStream> streams;
  streams.reserve(kThreads);
  for (int i = 0; i < kThreads; ++i) streams.push_back(make_stream());
  std::vector<int> wrong(kThreads, 0);
  std::vector<std::thread> threads;
  threads.reserve(kThreads);
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&, i] {
      const auto at = static_cast<size_t>(i);
      const CudaCall call{streams[at]};
      const CudaTensor x(inputs[at].view(), call.stream), out(inputs[at].view(), call.stream);
      ForwardArgs args;
      args.query = args.key = args.value = x.view();
      args.cuda = &call;
      for (int round = 0; round < 20; ++round) {
        layer.forward_into(args, {out.view(), {}, {}});
        if (!same_bits(download(out).view(), expected[at].view())) ++wrong[at];
      }
    });
  }
  for (std::thread &thread : threads) thread.join();
  for (const int count : wrong) EXPECT_EQ(count, 0);
}

TEST_F(OnDevice, RefusesWhatIsNotOnTheGpuAndGoesOn) {
  const RandomLayer weights(1, 128);
  const PlainAttention layer(weights.weights, options(2));
  Random random(4);
  const Tensor host = random_tensor(random, DType::f32, {1, 10, 128});
  const CudaTensor x(host.view(), {}), out(host.view(), {});
  ForwardArgs args;
  args.query = args.key = args.value = host.view();
  EXPECT_THROW(layer.forward_into(args, {out.view(), {}, {}}), Error);
  args.query = args.key = args.value = x.view();
  EXPECT_THROW(layer.forward_into(args, {host.view(), {}, {}}), Error);
  CudaCall call;
  std::vector<char> workspace(layer.workspace_size(args) + 512);
  call.workspace = workspace.data() + (256 - reinterpret_cast<uintptr_t>(workspace.data()) % 256);
  call.workspace_size = workspace.size() - 256;
  args.cuda = &call;
  EXPECT_THROW(layer.forward_into(args, {out.view(), {}, {}}), Error);
  args.cuda = nullptr;
  layer.forward_into(args, {out.view(), {}, {}});
  ForwardArgs on_host;
  on_host.query = on_host.key = on_host.value = host.view();
  EXPECT_TRUE(same_bits(download(out).view(), layer.forward(on_host).out.view()));
}

// Any strides that a caller may have: slices, broadcast batches, tokens backwards.
TEST_F(OnDevice, StridedStreams) {
  const RandomLayer weights(1, 96);
  const PlainAttention layer(weights.weights, options(3));
  Random random(5);
  const Tensor wide = random_tensor(random, DType::f32, {2, 12, 2, 104});
  const CudaTensor device(wide.view(), {});
  const auto slice = [](const TensorView &view) {
    return view.select(2, 1).slice(2, 5, 101).slice(1, 1, 11);
  };
  const auto broadcast = [](const TensorView &view) {
    const int64_t shape[] = {2, 10, 96}, strides[] = {0, 208, 1};
    return TensorView(view.data(), view.dtype(), 3, shape, strides);
  };
  const auto backwards = [](const TensorView &view) {
    const int64_t shape[] = {2, 10, 96}, strides[] = {12 * 208, -208, 1};
    return TensorView(view.as<float>() + 9 * 208, view.dtype(), 3, shape, strides);
  };
  const std::vector<std::function<TensorView(const TensorView &)>> views = {slice, broadcast, backwards};
  for (const auto &view : views) {
    const Tensor same = copy_of(view(wide.view()), DType::f32);
    ForwardArgs args;
    args.query = args.key = args.value = same.view();
    const ForwardResult expected = layer.forward(args);
    const CudaTensor out(same.view(), {});
    args.query = args.key = args.value = view(device.view());
    layer.forward_into(args, {out.view(), {}, {}});
    const Tensor result = download(out);
    for (int64_t i = 0; i < 2 * 10 * 96; ++i)
      ASSERT_NEAR(result.as<float>()[i], expected.out.as<float>()[i], 2e-5f);
  }
}

// Products of float32 on tensor cores: for any steps, and what is not finite comes out as plain float32 has
// it.
TEST_F(OnDevice, SplitProducts) {
  constexpr int64_t kIn = 405, kOut = 390, kBatch = 3, kTokens = 111;
  Random random(6);
  Tensor weight = random_tensor(random, DType::f32, {kOut, kIn}, 0.05);
  const Tensor bias = random_tensor(random, DType::f32, {kOut}),
               x = random_tensor(random, DType::f32, {kBatch, kTokens, kIn + 3});
  for (int64_t o = 3; o < kOut; o += 4) bias.as<float>()[o] = 0;  // tiny results are seen
  const float infinity = std::numeric_limits<float>::infinity();
  // Numbers with no second and third part, whose products with an infinity would be NaN, and zeros.
  float *const w = weight.as<float>();
  for (int64_t o = 0; o < kOut; ++o) w[o * kIn + 7] = o % 3 == 0 ? 0.5f : o % 3 == 1 ? -0.75f : 0.f;
  const auto row = [&](int64_t t) { return x.as<float>() + t * (kIn + 3); };
  row(0)[7] = infinity, row(1)[7] = -infinity, row(2)[8] = infinity;
  row(3)[100] = std::numeric_limits<float>::quiet_NaN();
  row(4)[7] = infinity, row(4)[9] = -infinity;
  row(5)[404] = std::numeric_limits<float>::max();
  row(6)[404] = -3.4e38f;
  for (int64_t i = 0; i < kIn; ++i) row(7)[i] *= 1e-30f, row(8)[i] *= 1e30f;

  const cuda::CudaLinear map({{weight.view(), bias.view()}}, DType::f32, {});
  const bool is_split = map.split_size(kBatch * kTokens, 0, kOut) > 0;
  const int capability = scope->context().capability();
  EXPECT_EQ(is_split, capability == 80 || capability == 90 || capability == 100 || capability == 103);
  const CudaTensor in(x.view(), {});
  const CudaMemory workspace(cuda::CudaLinear::kWorkspace, {});
  const CudaMemory split(static_cast<size_t>(map.split_size(kBatch * kTokens, 0, kOut)) + 1, {});
  // Outputs of all tokens at the same distance, and with more of it between batches.
  for (const int64_t gap : {0, 5}) {
    const int64_t step = kOut + 2, batch_step = kTokens * step + gap, shape[] = {kBatch, kTokens, kOut},
                  strides[] = {batch_step, step, 1};
    const Tensor before = random_tensor(random, DType::f32, {kBatch * batch_step});
    const CudaTensor memory(before.view(), {});
    const MutableTensorView y(memory.view().data(), DType::f32, 3, shape, strides);
    map.forward(in.view().slice(2, 0, kIn), y, 0, kOut, *scope, workspace.data(), split.data());
    const Tensor after = download(memory);
    for (int64_t t = 0; t < kBatch * kTokens; ++t) {
      const int64_t first = t / kTokens * batch_step + t % kTokens * step;
      for (int64_t o = 0; o < kOut; ++o) {
        double exact = 0, size = std::abs(bias.as<float>()[o]);
        float plain = 0;
        for (int64_t i = 0; i < kIn; ++i) {
          exact += double{row(t)[i]} * w[o * kIn + i];
          size += std::abs(double{row(t)[i]} * w[o * kIn + i]);
          plain += row(t)[i] * w[o * kIn + i];
        }
        exact += bias.as<float>()[o], plain += bias.as<float>()[o];
        const float result = after.as<float>()[first + o];
        if (std::isfinite(plain)) {
          ASSERT_NEAR(result, exact, size * 1e-6) << "token " << t << " feature " << o;
        } else if (std::isnan(plain)) {
          ASSERT_TRUE(std::isnan(result)) << "token " << t << " feature " << o << ": " << result;
        } else {
          ASSERT_EQ(result, plain) << "token " << t << " feature " << o;
        }
      }
      for (int64_t o = kOut; o < step; ++o)
        ASSERT_EQ(after.as<float>()[first + o], before.as<float>()[first + o]);
    }
  }
}

}  // namespace
}  // namespace posattn::oracle
