#include "runtime/cuda/context.h"

#include <map>
#include <memory>
#include <vector>

#include "runtime/error.h"

namespace posattn::cuda {
namespace {

struct Known {
  unsigned long long id;
  std::unique_ptr<ContextState> state;
};

ContextState &state_of(Context context) {
  static std::mutex *const mutex = new std::mutex;
  static auto *const all = new std::map<std::pair<const Driver *, Context>, Known>;
  static auto *const retired = new std::vector<std::unique_ptr<ContextState>>;
  const Driver &d = driver();
  // A new context may come to lie where an old one was.
  unsigned long long id = 0;
  if (d.CtxGetId) d.CtxGetId(context, &id);
  const std::lock_guard<std::mutex> lock(*mutex);
  Known &known = (*all)[{&d, context}];
  if (!known.state || known.id != id) {
    Device device = 0;
    check(d.CtxGetDevice(&device), "the context's GPU");
    // Kept, if there was one: another thread may still hold it.
    if (known.state) retired->push_back(std::move(known.state));
    known.id = id;
    known.state = std::make_unique<ContextState>(context, device);
  }
  return *known.state;
}

}  // namespace

OutsideOfCapture::OutsideOfCapture() : mode_(kCaptureModeRelaxed) {
  driver().ThreadExchangeStreamCaptureMode(&mode_);
}
OutsideOfCapture::~OutsideOfCapture() { driver().ThreadExchangeStreamCaptureMode(&mode_); }

ContextState::ContextState(Context context, Device device) : context_(context), device_(device) {
  const Driver &d = driver();
  const auto attribute = [&](int which) {
    int value = 0;
    check(d.DeviceGetAttribute(&value, which, device), "a property of the GPU");
    return value;
  };
  capability_ = 10 * attribute(kAttributeCapabilityMajor) + attribute(kAttributeCapabilityMinor);
  multiprocessors_ = attribute(kAttributeMultiprocessors);
  most_shared_bytes_ = attribute(kAttributeSharedMemory);
  char name[128] = {};
  if (d.DeviceGetName(name, sizeof(name) - 1, device) == kSuccess) name_ = name;
}

ContextState::Loaded ContextState::load(const void *image, const char *name) {
  const Driver &d = driver();
  const OutsideOfCapture outside;
  Module &module = modules_[image];
  if (!module) {
    const Result result = d.ModuleLoadData(&module, image);
    if (result != kSuccess) {
      module = nullptr;
      fail("cuda: loading a kernel on ", name_, " (compute capability ", capability_ / 10, ".",
           capability_ % 10, "): ", text_of(result));
    }
  }
  Function function = nullptr;
  check(d.ModuleGetFunction(&function, module, name), name);
  constexpr int kWithoutAsking = 48 * 1024;
  return {function, kWithoutAsking};
}

Function ContextState::function(const void *image, const char *name, int shared_bytes) {
  const std::lock_guard<std::mutex> lock(mutex_);
  auto found = functions_.find({image, name});
  if (found == functions_.end()) found = functions_.emplace(Key{image, name}, load(image, name)).first;
  Loaded &loaded = found->second;
  if (shared_bytes > loaded.shared_bytes) {
    if (shared_bytes > most_shared_bytes_) {
      fail("cuda: a kernel needs ", shared_bytes, " bytes of shared memory, and ", name_, " has ",
           most_shared_bytes_, " for a block of threads");
    }
    check(driver().FuncSetAttribute(loaded.function, kFunctionMaxDynamicShared, shared_bytes),
          "shared memory");
    loaded.shared_bytes = shared_bytes;
  }
  return loaded.function;
}

Scope::Scope(const CudaStream &stream) : stream_(static_cast<Stream>(stream.handle)) {
  const Driver &d = driver();
  Context current = nullptr, context = nullptr;
  check(d.CtxGetCurrent(&current), "the thread's context");
  // The first values are the default streams, of whatever context is current (cuda.h's CU_STREAM_LEGACY and
  // CU_STREAM_PER_THREAD).
  const uintptr_t handle = reinterpret_cast<uintptr_t>(stream.handle);
  if (handle > 2) {
    check(d.StreamGetCtx(stream_, &context), "stream");
  } else if (current) {
    context = current;
  } else {
    int count = 0;
    check(d.DeviceGetCount(&count), "GPUs");
    if (stream.device < 0 || stream.device >= count) {
      fail("device: expected 0 to ", count - 1, ", got ", stream.device);
    }
    Device device = 0;
    check(d.DeviceGet(&device, stream.device), "device");
    // Retained for the life of the process: its kernels stay loaded.
    check(d.DevicePrimaryCtxRetain(&context, device), "the GPU's context");
  }
  if (context != current) {
    check(d.CtxPushCurrent(context), "the stream's context");
    pushed_ = true;
  }
  try {
    state_ = &state_of(context);
  } catch (...) {
    if (pushed_) d.CtxPopCurrent(&context);
    throw;
  }
}

Scope::~Scope() {
  Context context;
  if (pushed_) driver().CtxPopCurrent(&context);
}

void check_address(const char *name, const void *data, const Scope &scope) {
  unsigned type = 0;
  int ordinal = -1;
  int attributes[] = {kPointerMemoryType, kPointerDeviceOrdinal};
  void *values[] = {&type, &ordinal};
  const Result result = driver().PointerGetAttributes(2, attributes, values, reinterpret_cast<Address>(data));
  if (result != kSuccess || type == 0) {
    fail(name, ": expected memory of the GPU, got an address that the driver does not know");
  }
  if (type == kMemoryTypeDevice && ordinal != scope.context().ordinal()) {
    fail(name, ": expected memory of GPU ", scope.context().ordinal(), ", the stream's, got some of GPU ",
         ordinal);
  }
}

}  // namespace posattn::cuda
