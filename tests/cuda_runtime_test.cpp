// attend() on a GPU as far as it can be seen without one: a table of functions in place of NVIDIA's driver,
// which remembers what it is asked for.
#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <set>
#include <string>

#include "runtime/cuda/attend.h"
#include "runtime/cuda/driver.h"
#include "runtime/cuda/staged.h"
#include "runtime/error.h"

namespace posattn {
namespace {

using namespace cuda;

struct Asked {
  int capability = 80, launches = 0, modules = 0, largest_shared = 0;
  bool known_addresses = true;
  Result launch_result = kSuccess;
  std::set<Stream> streams;
};
Asked asked;

Context context() { return reinterpret_cast<Context>(uintptr_t{64}); }

// The whole of it, with memory of the host for that of the GPU.
Driver fake_driver() {
  Driver d = {};
  d.GetErrorName = [](Result, const char **name) -> Result { return *name = "CUDA_ERROR_FAKE", kSuccess; };
  d.GetErrorString = [](Result, const char **text) -> Result { return *text = "a fake error", kSuccess; };
  d.DeviceGetCount = [](int *count) -> Result { return *count = 1, kSuccess; };
  d.DeviceGet = [](Device *device, int) -> Result { return *device = 0, kSuccess; };
  d.DeviceGetName = [](char *name, int, Device) -> Result { return std::strcpy(name, "fake GPU"), kSuccess; };
  d.DeviceGetAttribute = [](int *value, int attribute, Device) -> Result {
    *value = 100000;
    if (attribute == kAttributeCapabilityMajor) *value = asked.capability / 10;
    if (attribute == kAttributeCapabilityMinor) *value = asked.capability % 10;
    return kSuccess;
  };
  d.CtxGetCurrent = [](Context *current) -> Result { return *current = context(), kSuccess; };
  d.CtxPushCurrent = [](Context) -> Result { return kSuccess; };
  d.CtxPopCurrent = [](Context *) -> Result { return kSuccess; };
  d.CtxGetDevice = [](Device *device) -> Result { return *device = 0, kSuccess; };
  // Every test has a context of its own.
  d.CtxGetId = [](Context, unsigned long long *id) -> Result {
    return *id = static_cast<unsigned long long>(asked.capability), kSuccess;
  };
  d.StreamGetCtx = [](Stream, Context *of) -> Result { return *of = context(), kSuccess; };
  d.StreamSynchronize = [](Stream) -> Result { return kSuccess; };
  d.ThreadExchangeStreamCaptureMode = [](int *) -> Result { return kSuccess; };
  d.ModuleLoadData = [](Module *module, const void *) -> Result {
    return *module = reinterpret_cast<Module>(static_cast<uintptr_t>(++asked.modules)), kSuccess;
  };
  d.ModuleGetFunction = [](Function *function, Module, const char *) -> Result {
    return *function = reinterpret_cast<Function>(uintptr_t{64}), kSuccess;
  };
  d.FuncSetAttribute = [](Function, int, int) -> Result { return kSuccess; };
  d.FuncGetAttribute = [](int *value, int, Function) -> Result { return *value = 0, kSuccess; };
  d.LaunchKernel = [](Function, unsigned x, unsigned y, unsigned z, unsigned tx, unsigned ty, unsigned tz,
                      unsigned shared, Stream stream, void **arguments, void **) -> Result {
    EXPECT_GT(uint64_t{x} * y * z * tx * ty * tz, 0u);
    EXPECT_LE(tx * ty * tz, 1024u);
    EXPECT_NE(arguments[0], nullptr);
    ++asked.launches;
    asked.largest_shared = std::max(asked.largest_shared, static_cast<int>(shared));
    asked.streams.insert(stream);
    return asked.launch_result;
  };
  d.PointerGetAttributes = [](unsigned, int *, void **values, Address) -> Result {
    if (!asked.known_addresses) return kErrorInvalidValue;
    *static_cast<unsigned *>(values[0]) = kMemoryTypeDevice;
    *static_cast<int *>(values[1]) = 0;
    return kSuccess;
  };
  d.MemAlloc = [](Address *memory, size_t bytes) -> Result {
    *memory = reinterpret_cast<Address>(std::aligned_alloc(256, (bytes + 255) / 256 * 256));
    return kSuccess;
  };
  d.MemFree = [](Address memory) -> Result { return std::free(reinterpret_cast<void *>(memory)), kSuccess; };
  d.MemAllocAsync = [](Address *memory, size_t bytes, Stream) -> Result {
    *memory = reinterpret_cast<Address>(std::aligned_alloc(256, (bytes + 255) / 256 * 256));
    return kSuccess;
  };
  d.MemFreeAsync = [](Address memory, Stream) -> Result {
    return std::free(reinterpret_cast<void *>(memory)), kSuccess;
  };
  d.MemcpyHtoDAsync = [](Address to, const void *from, size_t bytes, Stream) -> Result {
    return std::memcpy(reinterpret_cast<void *>(to), from, bytes), kSuccess;
  };
  d.MemcpyDtoHAsync = [](void *to, Address from, size_t bytes, Stream) -> Result {
    return std::memcpy(to, reinterpret_cast<void *>(from), bytes), kSuccess;
  };
  d.MemsetD8Async = [](Address to, unsigned char value, size_t bytes, Stream) -> Result {
    return std::memset(reinterpret_cast<void *>(to), value, bytes), kSuccess;
  };
  d.MemsetD32Async = [](Address to, unsigned value, size_t count, Stream) -> Result {
    return std::fill_n(reinterpret_cast<unsigned *>(to), count, value), kSuccess;
  };
  return d;
}

class CudaRuntime : public ::testing::Test {
 protected:
  CudaRuntime()
      : query(DType::f32, {1, 2, 40, 64}), key(DType::f32, {1, 2, 70, 64}), out(DType::f32, {1, 2, 40, 64}) {
    static const Driver table = fake_driver();
    asked = Asked();
    set_driver_for_testing(&table);
    args.query = query.view(), args.key = key.view(), args.value = key.view(), args.out = out.view();
  }
  ~CudaRuntime() override { set_driver_for_testing(nullptr); }

  template <typename F>
  static std::string error_of(const F &call) {
    try {
      call();
    } catch (const Error &error) {
      return error.what();
    }
    return "none";
  }
  static bool has(const std::string &text, const char *part) { return text.find(part) != std::string::npos; }

  const CudaStream stream{reinterpret_cast<void *>(uintptr_t{4096}), 0};
  Tensor query, key, out;
  AttendArgs args;
};

TEST_F(CudaRuntime, LaunchesOnTheCallersStreamAndLoadsOnce) {
  attend(args, stream);
  EXPECT_EQ(asked.launches, 1);
  EXPECT_EQ(asked.modules, 1);
  EXPECT_EQ(asked.streams, std::set<Stream>{static_cast<Stream>(stream.handle)});
  EXPECT_GT(asked.largest_shared, 0);
  attend(args, stream);
  EXPECT_EQ(asked.launches, 2);
  EXPECT_EQ(asked.modules, 1);
}

TEST_F(CudaRuntime, RefusesMemoryOfTheHost) {
  asked.known_addresses = false;
  const std::string text = error_of([&] { attend(args, stream); });
  EXPECT_TRUE(has(text, "expected memory of the GPU")) << text;
  EXPECT_EQ(asked.launches, 0);
}

TEST_F(CudaRuntime, RefusesASmallWorkspace) {
  const size_t size = attend_workspace_size(args, stream);
  const CudaMemory memory(size, stream);
  EXPECT_TRUE(
      has(error_of([&] { attend(args, stream, memory.data(), size / 2); }), "workspace: expected at least"));
  EXPECT_TRUE(has(error_of([&] { attend(args, stream, nullptr, size); }), "got null"));
  EXPECT_TRUE(
      has(error_of([&] { attend(args, stream, static_cast<char *>(memory.data()) + 16, size); }), "aligned"));
  EXPECT_EQ(asked.launches, 0);
  attend(args, stream, memory.data(), size);
  EXPECT_EQ(asked.launches, 1);
}

TEST_F(CudaRuntime, RefusesAnOldCard) {
  asked.capability = 75;
  const std::string text = error_of([&] { attend(args, stream); });
  EXPECT_TRUE(has(text, "no kernel of this program runs on fake GPU, compute capability 7.5")) << text;
  asked.capability = 80;
  attend(args, stream);
  EXPECT_EQ(asked.launches, 1);
}

TEST_F(CudaRuntime, SaysWhatALaunchFailedOfAndGoesOn) {
  asked.launch_result = 701;
  const std::string text = error_of([&] { attend(args, stream); });
  EXPECT_TRUE(has(text, "launching a kernel: a fake error (CUDA_ERROR_FAKE, 701)")) << text;
  asked.launch_result = kSuccess;
  EXPECT_EQ(error_of([&] { attend(args, stream); }), "none");
}

TEST_F(CudaRuntime, NoKeysGiveZerosWithoutAKernel) {
  std::fill_n(out.as<float>(), out.view().num_elements(), 3.f);
  args.key = args.value = key.view().slice(2, 0, 0);
  attend(args, stream);
  EXPECT_EQ(asked.launches, 0);
  for (int64_t i = 0; i < out.view().num_elements(); ++i) ASSERT_EQ(out.as<float>()[i], 0.f);
}

TEST(CudaWithoutDriver, SaysSoAndLeavesTheProcessUsable) {
  std::string why;
  if (find_driver(&why)) GTEST_SKIP() << "this machine has a GPU";
  EXPECT_FALSE(why.empty());
  const Tensor query(DType::f32, {1, 1, 3, 64}), out(DType::f32, {1, 1, 3, 64});
  AttendArgs args;
  args.query = args.key = args.value = query.view();
  args.out = out.view();
  EXPECT_THROW(attend(args, CudaStream()), Error);
  EXPECT_THROW(attend_staged(args, CudaStream()), Error);
  attend(args);
}

}  // namespace
}  // namespace posattn
