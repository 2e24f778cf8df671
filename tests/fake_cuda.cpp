#include "tests/fake_cuda.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace posattn::oracle {

using namespace cuda;

Asked asked;

namespace {

Context context() { return reinterpret_cast<Context>(uintptr_t{64}); }

struct FakeDesc {
  const void *bias = nullptr;
  bool has_epilogue = false;
};
struct FakeLayout {
  int type;
  int64_t rows, columns, step;
  int32_t batches = 1;
  int64_t batch_step = 0;
};
FakeDesc &of(BlasDesc desc) { return *reinterpret_cast<FakeDesc *>(desc); }
FakeLayout &of(BlasLayout layout) { return *reinterpret_cast<FakeLayout *>(layout); }

void remember_product(BlasDesc desc, const void *a, BlasLayout weight, const void *b, BlasLayout x,
                      float added, const void *c, void *d, BlasLayout y) {
  EXPECT_EQ(c, d);
  EXPECT_EQ(of(desc).has_epilogue, of(desc).bias != nullptr);
  EXPECT_EQ(of(weight).type, of(x).type);
  EXPECT_EQ(of(weight).rows, of(x).rows);
  EXPECT_EQ(of(weight).columns, of(y).rows);
  EXPECT_EQ(of(x).columns, of(y).columns);
  EXPECT_EQ(of(x).batches, of(y).batches);
  EXPECT_EQ(of(weight).batches, of(x).batches);
  EXPECT_EQ(of(weight).batch_step, 0);
  const auto address = [](const void *data) { return static_cast<const char *>(data); };
  asked.multiplied.push_back({of(x).type, of(x).rows, of(y).rows, of(y).columns, of(y).batches,
                              of(weight).step, of(x).step, of(y).step, of(y).batch_step, added, of(desc).bias,
                              address(a), address(b), address(d)});
}

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
    return *desc = reinterpret_cast<BlasDesc>(new FakeDesc), 0;
  };
  b.MatmulDescDestroy = [](BlasDesc desc) -> BlasStatus { return delete &of(desc), 0; };
  b.MatmulDescSetAttribute = [](BlasDesc desc, int attribute, const void *value, size_t) -> BlasStatus {
    if (attribute == kDescEpilogue) of(desc).has_epilogue = true;
    if (attribute == kDescBiasPointer) of(desc).bias = *static_cast<const void *const *>(value);
    return 0;
  };
  b.MatrixLayoutCreate = [](BlasLayout *layout, int type, uint64_t rows, uint64_t columns,
                            int64_t ld) -> BlasStatus {
    EXPECT_GE(ld, static_cast<int64_t>(rows));
    const auto count = [](uint64_t size) { return static_cast<int64_t>(size); };
    return *layout = reinterpret_cast<BlasLayout>(new FakeLayout{type, count(rows), count(columns), ld}), 0;
  };
  b.MatrixLayoutDestroy = [](BlasLayout layout) -> BlasStatus { return delete &of(layout), 0; };
  b.MatrixLayoutSetAttribute = [](BlasLayout layout, int attribute, const void *value, size_t) -> BlasStatus {
    if (attribute == kLayoutBatches) of(layout).batches = *static_cast<const int32_t *>(value);
    if (attribute == kLayoutBatchStride) of(layout).batch_step = *static_cast<const int64_t *>(value);
    return 0;
  };
  b.MatmulPreferenceCreate = [](BlasPreference *preference) -> BlasStatus {
    return *preference = reinterpret_cast<BlasPreference>(uintptr_t{64}), 0;
  };
  b.MatmulPreferenceDestroy = [](BlasPreference) -> BlasStatus { return 0; };
  b.MatmulPreferenceSetAttribute = [](BlasPreference, int, const void *, size_t) -> BlasStatus { return 0; };
  b.MatmulAlgoGetHeuristic = [](BlasHandle, BlasDesc, BlasLayout, BlasLayout, BlasLayout, BlasLayout,
                                BlasPreference, int, BlasHeuristic *,
                                int *found) -> BlasStatus { return *found = 1, 0; };
  b.Matmul = [](BlasHandle, BlasDesc desc, const void *, const void *weight, BlasLayout weight_layout,
                const void *x, BlasLayout x_layout, const void *added, const void *c, BlasLayout, void *y,
                BlasLayout y_layout, const BlasAlgo *, void *, size_t, Stream stream) -> BlasStatus {
    ++asked.products;
    asked.streams.insert(stream);
    remember_product(desc, weight, weight_layout, x, x_layout, *static_cast<const float *>(added), c, y,
                     y_layout);
    return asked.blas_result;
  };
  return b;
}

}  // namespace posattn::oracle
