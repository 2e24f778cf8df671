#include "tests/fake_cuda.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace posattn::oracle {

using namespace cuda;

Asked asked;

namespace {

Context context() { return reinterpret_cast<Context>(uintptr_t{64}); }

}  // namespace

Driver fake_driver() {
  Driver d = {};
  d.GetErrorName = [](Result, const char **name) -> Result { return *name = "CUDA_ERROR_FAKE", kSuccess; };
  d.GetErrorString = [](Result, const char **text) -> Result { return *text = "a fake error", kSuccess; };
  d.DeviceGetCount = [](int *count) -> Result { return *count = 1, kSuccess; };
  d.DeviceGet = [](Device *device, int) -> Result { return *device = 0, kSuccess; };
  d.DeviceGetName = [](char *name, int, Device) -> Result { return std::strcpy(name, "fake GPU"), kSuccess; };
  d.DeviceGetAttribute = [](int *value, int attribute, Device) -> Result {
    *value = 232448;  // as the most shared memory of a block of threads on Hopper
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
  d.TensorMapEncodeTiled = [](void *, int, unsigned, void *, const uint64_t *, const uint64_t *,
                              const unsigned *, const unsigned *, int, int, int,
                              int) -> Result { return kSuccess; };
  d.LaunchKernelEx = [](const LaunchConfig *config, Function function, void **arguments,
                        void **extra) -> Result {
    EXPECT_EQ(config->num_attributes, 1u);
    EXPECT_EQ(config->attributes[0].id, kLaunchProgrammaticSerialization);
    EXPECT_EQ(config->attributes[0].is_allowed, 1);
    ++asked.early_launches;
    const LaunchConfig &c = *config;
    return fake_driver().LaunchKernel(function, c.grid_x, c.grid_y, c.grid_z, c.block_x, c.block_y, c.block_z,
                                      c.shared_bytes, c.stream, arguments, extra);
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
    ++asked.allocations;
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

Blas fake_blas() {
  Blas b = {};
  b.Create = [](BlasHandle *handle) -> BlasStatus {
    return *handle = reinterpret_cast<BlasHandle>(uintptr_t{64}), asked.blas_result;
  };
  b.GetStatusString = [](BlasStatus) { return "a fake status"; };
  b.MatmulDescCreate = [](BlasDesc *desc, int compute, int scale) -> BlasStatus {
    EXPECT_EQ(compute, kComputeFloat32);
    EXPECT_EQ(scale, kBlasFloat32);
    return *desc = reinterpret_cast<BlasDesc>(uintptr_t{64}), 0;
  };
  b.MatmulDescDestroy = [](BlasDesc) -> BlasStatus { return 0; };
  b.MatmulDescSetAttribute = [](BlasDesc, int, const void *, size_t) -> BlasStatus { return 0; };
  b.MatrixLayoutCreate = [](BlasLayout *layout, int, uint64_t rows, uint64_t, int64_t ld) -> BlasStatus {
    EXPECT_GE(ld, static_cast<int64_t>(rows));
    return *layout = reinterpret_cast<BlasLayout>(uintptr_t{64}), 0;
  };
  b.MatrixLayoutDestroy = [](BlasLayout) -> BlasStatus { return 0; };
  b.MatrixLayoutSetAttribute = [](BlasLayout, int, const void *, size_t) -> BlasStatus { return 0; };
  b.MatmulPreferenceCreate = [](BlasPreference *preference) -> BlasStatus {
    return *preference = reinterpret_cast<BlasPreference>(uintptr_t{64}), 0;
  };
  b.MatmulPreferenceDestroy = [](BlasPreference) -> BlasStatus { return 0; };
  b.MatmulPreferenceSetAttribute = [](BlasPreference, int, const void *, size_t) -> BlasStatus { return 0; };
  b.MatmulAlgoGetHeuristic = [](BlasHandle, BlasDesc, BlasLayout, BlasLayout, BlasLayout, BlasLayout,
                                BlasPreference, int, BlasHeuristic *,
                                int *found) -> BlasStatus { return *found = 1, 0; };
  b.Matmul = [](BlasHandle, BlasDesc, const void *, const void *, BlasLayout, const void *, BlasLayout,
                const void *, const void *, BlasLayout, void *, BlasLayout, const BlasAlgo *, void *, size_t,
                Stream stream) -> BlasStatus {
    ++asked.products;
    asked.streams.insert(stream);
    return asked.blas_result;
  };
  return b;
}

}  // namespace posattn::oracle
