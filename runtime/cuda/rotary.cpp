#include "runtime/cuda/rotary.h"

#include "runtime/cuda/token_call.h"
#include "runtime/tensor.h"

namespace posattn::cuda {

int64_t rotation_table_size(const Rope &rope, int64_t tokens, int64_t batches) {
  const int64_t angles = checked_product(rope.inv_freq.size(0), tokens, "rope");
  return checked_product(2, checked_product(angles, batches, "rope"), "rope");
}

void run_rotary(const RotaryKernels &kernels, const Rope &rope, const Rotation &rotation,
                const TensorView &positions, const TensorView &mask, int64_t first, const KernelBuffer &x,
                const KernelBuffer &y, const void *unused, Launch &launch) {
  const int64_t pairs = rope.inv_freq.size(0), tokens = x.extent[1], batch = x.extent[3];
  const int64_t angles = pairs * tokens, count = angles * rotation.batches;
  KernelCall tables(*kernels.rotation, launch);
  set_positions(tables, positions, mask, rotation.batches, first, unused);
  tables.set("inv_freq", KernelBuffer(rope.inv_freq.data(), DType::f32).dim(pairs, rope.inv_freq.stride(0)));
  KernelBuffer both(rotation.tables, DType::f32);
  both.dim(pairs, 1).dim(tokens, pairs).dim(rotation.batches, angles).dim(2, count);
  tables.set("out", both).run();

  const auto table = [&](const float *data) {
    const int64_t step = rotation.batches > 1 ? angles : 0;
    return KernelBuffer(data, DType::f32).dim(pairs, 1).dim(tokens, pairs).dim(batch, step);
  };
  const KernelBuffer cos = table(rotation.tables), sin = table(rotation.tables + count);
  const bool fits = fits_kernel(x) && fits_kernel(y) && fits_kernel(cos);
  const int64_t step = fits ? batch : 1;
  for (int64_t b = 0; b < batch; b += step) {
    KernelCall call(*kernels.rotary, launch);
    call.set("x", slice(x, 3, b, b + step)).set("y", slice(y, 3, b, b + step));
    call.set("cos", slice(cos, 2, b, b + step)).set("sin", slice(sin, 2, b, b + step));
    call.set("interleaved", rope.layout == Rope::Layout::interleaved).run();
  }
}

}  // namespace posattn::cuda
