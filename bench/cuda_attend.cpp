// Decoding on a GPU: time and bandwidth against a copy of as many bytes, and what a call costs the host.
//   cuda_attend [--quick]
// One line of JSON for each measurement. Inputs are normal; copies of them are used in turn, so that none is
// in the GPU's cache.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <vector>

#include "runtime/cuda/attend.h"
#include "runtime/cuda/context.h"
#include "runtime/cuda/memory.h"
#include "runtime/error.h"

namespace posattn {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kCacheBytes = int64_t{256} << 20;  // more than any cache holds
constexpr int kRounds = 7;

double seconds(Clock::time_point from) { return std::chrono::duration<double>(Clock::now() - from).count(); }

// Median over rounds of the seconds for one of `calls` calls, the GPU's work included.
template <typename Call>
double time_of(const CudaStream &stream, int calls, const Call &call) {
  std::vector<double> rounds;
  for (int i = 0; i < calls; ++i) call(i);
  synchronize(stream);
  for (int round = 0; round < kRounds; ++round) {
    const Clock::time_point start = Clock::now();
    for (int i = 0; i < calls; ++i) call(i);
    synchronize(stream);
    rounds.push_back(seconds(start) / calls);
  }
  std::sort(rounds.begin(), rounds.end());
  return rounds[rounds.size() / 2];
}

// Values that are neither equal nor ordered; no kernel looks at their distribution.
CudaTensor random_tensor(DType type, std::initializer_list<int64_t> shape, const CudaStream &stream) {
  const Tensor block(DType::f32, {1 << 20});
  uint32_t state = 12345;
  for (int64_t i = 0; i < block.size(0); ++i) {
    float sum = -6;
    for (int k = 0; k < 12; ++k) {
      state = state * 1664525u + 1013904223u;
      sum += static_cast<float>(state >> 8) / static_cast<float>(1 << 24);
    }
    block.as<float>()[i] = sum;
  }
  const Tensor stored = block.to(type);
  CudaTensor tensor(type, static_cast<int>(shape.size()), shape.begin(), stream);
  const size_t all = static_cast<size_t>(tensor.view().num_elements() * size_of(type));
  const size_t piece = static_cast<size_t>(stored.size(0) * size_of(type));
  for (size_t at = 0; at < all; at += piece) {
    copy_to_cuda(tensor.view().as<char>() + at, stored.view().data(), std::min(piece, all - at), stream);
  }
  return tensor;
}

struct Shape {
  DType type;
  int64_t batch, query_heads, kv_heads, queries, keys, dim;
};

void measure(const Shape &s, const CudaStream &stream) {
  const int64_t bytes = 2 * s.batch * s.kv_heads * s.keys * s.dim * size_of(s.type);
  const int64_t copies = std::max<int64_t>(1, std::min<int64_t>(64, kCacheBytes / bytes));
  const CudaTensor k = random_tensor(s.type, {copies, s.batch, s.kv_heads, s.keys, s.dim}, stream);
  const CudaTensor v = random_tensor(s.type, {copies, s.batch, s.kv_heads, s.keys, s.dim}, stream);
  const CudaTensor q = random_tensor(s.type, {s.batch, s.query_heads, s.queries, s.dim}, stream);
  const CudaTensor out = random_tensor(s.type, {s.batch, s.query_heads, s.queries, s.dim}, stream);
  AttendArgs args;
  args.query = q.view(), args.out = out.view();
  args.key = k.view().select(0, 0), args.value = v.view().select(0, 0);
  const size_t size = attend_workspace_size(args, stream);
  const CudaMemory workspace(size, stream);
  const int calls = static_cast<int>(std::clamp<int64_t>((int64_t{4} << 30) / bytes, 20, 400));
  const double attended = time_of(stream, calls, [&](int i) {
    args.key = k.view().select(0, i % copies), args.value = v.view().select(0, i % copies);
    attend(args, stream, workspace.data(), size);
  });
  // Reads and writes half as many bytes each: as many altogether.
  const cuda::Scope scope(stream);
  const CudaMemory to(static_cast<size_t>(bytes / 2), stream);
  const double copied = time_of(stream, calls, [&](int i) {
    const CudaTensor &from = i % 2 ? k : v;
    cuda::check(cuda::driver().MemcpyDtoDAsync(
                    reinterpret_cast<cuda::Address>(to.data()),
                    reinterpret_cast<cuda::Address>(from.view().select(0, i % copies).data()),
                    static_cast<size_t>(bytes / 2), scope.stream()),
                "copy");
  });
  std::printf(
      "{\"what\": \"decode\", \"type\": \"%s\", \"batch\": %ld, \"heads\": %ld, \"kv_heads\": %ld, "
      "\"queries\": %ld, "
      "\"keys\": %ld, \"dim\": %ld, \"us\": %.2f, \"GB/s\": %.0f, \"copy_us\": %.2f, \"of_copy\": %.3f}\n",
      name_of(s.type), static_cast<long>(s.batch), static_cast<long>(s.query_heads),
      static_cast<long>(s.kv_heads), static_cast<long>(s.queries), static_cast<long>(s.keys),
      static_cast<long>(s.dim), attended * 1e6, static_cast<double>(bytes) / attended / 1e9, copied * 1e6,
      copied / attended);
  std::fflush(stdout);
}

// What the host spends on a call: small enough that the GPU is never the slower.
void measure_call(const CudaStream &stream) {
  const CudaTensor q = random_tensor(DType::bf16, {1, 1, 1, 64}, stream);
  const CudaTensor k = random_tensor(DType::bf16, {1, 1, 64, 64}, stream);
  const CudaTensor out = random_tensor(DType::bf16, {1, 1, 1, 64}, stream);
  AttendArgs args;
  args.query = q.view(), args.key = k.view(), args.value = k.view(), args.out = out.view();
  const size_t size = attend_workspace_size(args, stream);
  const CudaMemory workspace(size, stream);
  const auto call = [&](int) { attend(args, stream, workspace.data(), size); };
  const double whole = time_of(stream, 200, call);
  // Without waiting: a burst that the queue takes.
  std::vector<double> bursts;
  for (int round = 0; round < 50; ++round) {
    const Clock::time_point start = Clock::now();
    for (int i = 0; i < 20; ++i) call(i);
    bursts.push_back(seconds(start) / 20);
    synchronize(stream);
  }
  std::sort(bursts.begin(), bursts.end());
  std::printf("{\"what\": \"call\", \"launches\": 2, \"host_us\": %.2f, \"us\": %.2f}\n", bursts[25] * 1e6,
              whole * 1e6);
}

int run(bool quick) {
  const CudaStream stream;
  {
    const cuda::Scope scope(stream);
    int version = 0;
    cuda::driver().DriverGetVersion(&version);
    std::printf("{\"what\": \"device\", \"name\": \"%s\", \"driver_cuda\": %d}\n",
                scope.context().name().c_str(), version);
  }
  measure_call(stream);
  for (DType type : {DType::bf16, DType::f32}) {
    for (int64_t heads : {8, 32, 64}) {
      for (int64_t keys : {1024, 4096, 16384, 65536, 131072}) {
        if (quick && (keys == 4096 || keys == 131072 || heads == 64)) continue;
        if (heads * keys > int64_t{32} * 131072 / (type == DType::f32 ? 2 : 1)) continue;
        measure({type, 1, heads, heads, 1, keys, 128}, stream);
      }
    }
    measure({type, 1, 32, 32, 1, 16384, 64}, stream);
    measure({type, 4, 32, 8, 1, 16384, 128}, stream);
    measure({type, 1, 64, 8, 1, 16384, 128}, stream);
  }
  return 0;
}

}  // namespace
}  // namespace posattn

int main(int argc, char **argv) {
  try {
    return posattn::run(argc > 1 && std::strcmp(argv[1], "--quick") == 0);
  } catch (const posattn::Error &error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 2;
  }
}
