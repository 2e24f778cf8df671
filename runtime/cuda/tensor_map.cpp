#include "runtime/cuda/tensor_map.h"

#include "runtime/cuda/driver.h"
#include "runtime/error.h"

namespace posattn::cuda {
namespace {

constexpr int kChannels = 64, kAlignment = 16, kElement = 2;
// Of cuda.h: CU_TENSOR_MAP_...
constexpr int kFloat16 = 6, kBFloat16 = 9, kNoInterleave = 0, kSwizzle128 = 3, kPromote256 = 3, kFillZero = 0;

}  // namespace

bool can_map(const KernelBuffer &buffer) {
  if (buffer.dimensions != 4 || size_of(buffer.type) != kElement || buffer.stride[0] != 1) return false;
  if (reinterpret_cast<uintptr_t>(buffer.data) % kAlignment != 0) return false;
  for (int d = 0; d < 4; ++d) {
    if (buffer.extent[d] < 1) return false;
    if (d == 0 || buffer.extent[d] == 1) continue;
    // A step of 0 repeats what is there, which maps cannot say.
    if (buffer.stride[d] <= 0 || buffer.stride[d] * kElement % kAlignment != 0) return false;
  }
  return true;
}

TensorMap tensor_map(const KernelBuffer &buffer, int64_t tokens) {
  if (!can_map(buffer)) fail("cuda: this tensor can have no tensor map");
  const Driver &d = driver();
  if (!d.TensorMapEncodeTiled) fail("cuda: the driver is too old for tensor maps");
  uint64_t sizes[4], strides[3];
  for (int i = 0; i < 4; ++i) {
    sizes[i] = static_cast<uint64_t>(buffer.extent[i]);
    // That of a single element is never used.
    if (i > 0)
      strides[i - 1] = sizes[i] == 1 ? kAlignment : static_cast<uint64_t>(buffer.stride[i]) * kElement;
  }
  const unsigned box[4] = {kChannels, static_cast<unsigned>(tokens), 1, 1}, steps[4] = {1, 1, 1, 1};
  TensorMap map;
  check(d.TensorMapEncodeTiled(&map, buffer.type == DType::bf16 ? kBFloat16 : kFloat16, 4,
                               const_cast<void *>(buffer.data), sizes, strides, box, steps, kNoInterleave,
                               kSwizzle128, kPromote256, kFillZero),
        "making a tensor map");
  return map;
}

}  // namespace posattn::cuda
