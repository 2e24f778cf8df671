#include "runtime/cuda/driver.h"

#include <dlfcn.h>

#include <atomic>
#include <mutex>

#include "runtime/error.h"

namespace posattn::cuda {
namespace {

// Contexts' stream-ordered memory came with 11.2; Halide's PTX needs less.
constexpr int kOldestVersion = 11020;
constexpr int kOldestOverlappingVersion = 12030;

struct Loaded {
  Driver table = {};
  std::string failure;  // empty: usable
};

template <typename F>
bool find(void *library, const char *name, F &function) {
  function = reinterpret_cast<F>(dlsym(library, name));
  return function != nullptr;
}

std::string load(Driver &d) {
  void *const library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (!library) return "cuda: NVIDIA's driver was not found (libcuda.so.1)";
  const char *missing = nullptr;
  const auto need = [&](const char *name, auto &function) {
    if (!find(library, name, function) && !missing) missing = name;
  };
  need("cuInit", d.Init);
  need("cuDriverGetVersion", d.DriverGetVersion);
  need("cuGetErrorName", d.GetErrorName);
  need("cuGetErrorString", d.GetErrorString);
  need("cuDeviceGetCount", d.DeviceGetCount);
  need("cuDeviceGet", d.DeviceGet);
  need("cuDeviceGetName", d.DeviceGetName);
  need("cuDeviceGetAttribute", d.DeviceGetAttribute);
  need("cuDevicePrimaryCtxRetain", d.DevicePrimaryCtxRetain);
  need("cuCtxGetCurrent", d.CtxGetCurrent);
  need("cuCtxPushCurrent_v2", d.CtxPushCurrent);
  need("cuCtxPopCurrent_v2", d.CtxPopCurrent);
  need("cuCtxGetDevice", d.CtxGetDevice);
  need("cuStreamGetCtx", d.StreamGetCtx);
  need("cuStreamSynchronize", d.StreamSynchronize);
  need("cuThreadExchangeStreamCaptureMode", d.ThreadExchangeStreamCaptureMode);
  need("cuModuleLoadData", d.ModuleLoadData);
  need("cuModuleGetFunction", d.ModuleGetFunction);
  need("cuFuncSetAttribute", d.FuncSetAttribute);
  need("cuFuncGetAttribute", d.FuncGetAttribute);
  need("cuLaunchKernel", d.LaunchKernel);
  need("cuPointerGetAttributes", d.PointerGetAttributes);
  need("cuMemAlloc_v2", d.MemAlloc);
  need("cuMemFree_v2", d.MemFree);
  need("cuMemAllocAsync", d.MemAllocAsync);
  need("cuMemFreeAsync", d.MemFreeAsync);
  need("cuMemcpyHtoDAsync_v2", d.MemcpyHtoDAsync);
  need("cuMemcpyDtoHAsync_v2", d.MemcpyDtoHAsync);
  need("cuMemcpyDtoDAsync_v2", d.MemcpyDtoDAsync);
  need("cuMemsetD8Async", d.MemsetD8Async);
  need("cuMemsetD32Async", d.MemsetD32Async);
  need("cuMemsetD2D8Async", d.MemsetD2D8Async);
  if (missing) return std::string("cuda: NVIDIA's driver is too old: it has no ") + missing;
  // What only newer drivers have.
  find(library, "cuCtxGetId", d.CtxGetId);
  find(library, "cuTensorMapEncodeTiled", d.TensorMapEncodeTiled);

  int version = 0, devices = 0;
  d.DriverGetVersion(&version);
  if (version < kOldestVersion) {
    return "cuda: NVIDIA's driver is too old: expected one for CUDA 11.2 or later, got " +
           std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
  }
  if (version >= kOldestOverlappingVersion) find(library, "cuLaunchKernelEx", d.LaunchKernelEx);
  const Result result = d.Init(0);
  if (result == kErrorNoDevice) return "cuda: the driver finds no GPU";
  const char *text = nullptr;
  if (result != kSuccess) {
    d.GetErrorString(result, &text);
    return std::string("cuda: the driver does not start: ") + (text ? text : std::to_string(result).c_str());
  }
  if (d.DeviceGetCount(&devices) != kSuccess || devices == 0) return "cuda: the driver finds no GPU";
  return "";
}

std::atomic<const Driver *> for_testing{nullptr};

const Loaded &loaded() {
  static const Loaded *const the_one = [] {
    Loaded *result = new Loaded;  // never destroyed: kernels may run until the process ends
    result->failure = load(result->table);
    return result;
  }();
  return *the_one;
}

}  // namespace

const Driver *find_driver(std::string *why) {
  if (const Driver *testing = for_testing.load(std::memory_order_acquire)) return testing;
  const Loaded &result = loaded();
  if (result.failure.empty()) return &result.table;
  if (why) *why = result.failure;
  return nullptr;
}

const Driver &driver() {
  std::string why;
  if (const Driver *found = find_driver(&why)) return *found;
  fail(why);
}

std::string text_of(Result result) {
  const Driver *const d = find_driver();
  const char *name = nullptr, *text = nullptr;
  if (d) {
    d->GetErrorName(result, &name);
    d->GetErrorString(result, &text);
  }
  return std::string(text ? text : "unknown error") + " (" + (name ? name : "CUDA error") + ", " +
         std::to_string(result) + ")";
}

void check(Result result, const char *what) {
  if (result != kSuccess) fail("cuda: ", what, ": ", text_of(result));
}

void set_driver_for_testing(const Driver *driver) { for_testing.store(driver, std::memory_order_release); }

}  // namespace posattn::cuda
