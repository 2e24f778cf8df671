// NVIDIA's driver, found when a GPU is first asked for: programs load and run without one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace posattn::cuda {

// The driver's own types (cuda.h), which are fixed: opaque handles, and addresses in the GPU's memory.
using Context = struct CUctx_st *;
using Module = struct CUmod_st *;
using Function = struct CUfunc_st *;
using Stream = struct CUstream_st *;
using Address = unsigned long long;
using Device = int;
using Result = int;  // 0: success

// A launch with attributes: cuda.h's CUlaunchConfig and CUlaunchAttribute.
struct LaunchAttribute {
  int id;
  int padding = 0;
  union {
    char bytes[64];
    int is_allowed;
  };
};
struct LaunchConfig {
  unsigned grid_x, grid_y, grid_z, block_x, block_y, block_z, shared_bytes;
  Stream stream;
  LaunchAttribute *attributes;
  unsigned num_attributes;
};

// What posattn calls. Names are those of cuda.h without "cu"; semantics, too.
struct Driver {
  Result (*Init)(unsigned flags);
  Result (*DriverGetVersion)(int *version);
  Result (*GetErrorName)(Result, const char **);
  Result (*GetErrorString)(Result, const char **);
  Result (*DeviceGetCount)(int *);
  Result (*DeviceGet)(Device *, int ordinal);
  Result (*DeviceGetName)(char *, int, Device);
  Result (*DeviceGetAttribute)(int *, int attribute, Device);
  Result (*DevicePrimaryCtxRetain)(Context *, Device);
  Result (*CtxGetCurrent)(Context *);
  Result (*CtxPushCurrent)(Context);
  Result (*CtxPopCurrent)(Context *);
  Result (*CtxGetDevice)(Device *);
  Result (*CtxGetId)(Context, unsigned long long *);  // null before CUDA 12
  Result (*StreamGetCtx)(Stream, Context *);
  Result (*StreamSynchronize)(Stream);
  Result (*ThreadExchangeStreamCaptureMode)(int *mode);
  Result (*ModuleLoadData)(Module *, const void *image);
  Result (*ModuleGetFunction)(Function *, Module, const char *name);
  Result (*FuncSetAttribute)(Function, int attribute, int value);
  Result (*FuncGetAttribute)(int *, int attribute, Function);
  Result (*LaunchKernel)(Function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                         unsigned block_y, unsigned block_z, unsigned shared_bytes, Stream, void **arguments,
                         void **extra);
  // Null before 12.3, which is the first whose graphs keep the attribute below.
  Result (*LaunchKernelEx)(const LaunchConfig *, Function, void **arguments, void **extra);
  Result (*PointerGetAttributes)(unsigned count, int *attributes, void **values, Address);
  Result (*MemAlloc)(Address *, size_t);
  Result (*MemFree)(Address);
  Result (*MemAllocAsync)(Address *, size_t, Stream);
  Result (*MemFreeAsync)(Address, Stream);
  Result (*MemcpyHtoDAsync)(Address, const void *, size_t, Stream);
  Result (*MemcpyDtoHAsync)(void *, Address, size_t, Stream);
  Result (*MemcpyDtoDAsync)(Address, Address, size_t, Stream);
  Result (*MemsetD8Async)(Address, unsigned char, size_t count, Stream);
  Result (*MemsetD32Async)(Address, unsigned, size_t count, Stream);
  Result (*MemsetD2D8Async)(Address, size_t pitch, unsigned char, size_t width, size_t height, Stream);
  Result (*TensorMapEncodeTiled)(void *map, int type, unsigned rank, void *address, const uint64_t *sizes,
                                 const uint64_t *strides, const unsigned *box, const unsigned *steps,
                                 int interleave, int swizzle, int promotion, int fill);  // null before 12
};

// The driver, initialised. Throws Error that says what is missing: no driver, one that is too old, no GPU.
const Driver &driver();
// Null where driver() throws, with its text in `why`.
const Driver *find_driver(std::string *why = nullptr);

// "out of memory (CUDA_ERROR_OUT_OF_MEMORY, 2)".
std::string text_of(Result result);
// Throws Error "what: text" unless it is a success.
void check(Result result, const char *what);

// For tests: takes the place of the driver until it is called with null. Not while another thread calls.
void set_driver_for_testing(const Driver *driver);

// Attributes and constants of cuda.h that are used here.
constexpr int kAttributeMultiprocessors = 16, kAttributeCapabilityMajor = 75, kAttributeCapabilityMinor = 76,
              kAttributeSharedMemory = 97;
constexpr int kFunctionSharedBytes = 1, kFunctionMaxDynamicShared = 8;
constexpr int kLaunchProgrammaticSerialization = 6;
constexpr int kPointerMemoryType = 2, kPointerDeviceOrdinal = 9;
constexpr unsigned kMemoryTypeHost = 1, kMemoryTypeDevice = 2, kMemoryTypeUnified = 4;
constexpr Result kSuccess = 0, kErrorInvalidValue = 1, kErrorNoDevice = 100;
constexpr int kCaptureModeRelaxed = 2;

}  // namespace posattn::cuda
