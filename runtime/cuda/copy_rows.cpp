#include "runtime/cuda/copy_rows.h"

#include "runtime/cuda/launch.h"
#include "runtime/cuda/token_call.h"
#include "runtime/error.h"

namespace posattn::cuda {

void copy_rows(const TensorView &from, const TensorView &source, const MutableTensorView &to,
               const Scope &scope) {
  if (to.num_elements() == 0) return;
  const Kernel &kernel = simt_kernel("copy_rows", from.dtype());
  Launch launch{&scope.context(), scope.stream(), {}, {}};
  const auto run = [&](const KernelBuffer &in, const KernelBuffer &rows, const KernelBuffer &out) {
    KernelCall call(kernel, launch);
    call.set("has_source", !source.empty()).set("source", rows).set("in", in).set("out", out).run();
  };
  const KernelBuffer in = kernel_buffer(from), out = kernel_buffer(to);
  KernelBuffer rows = unused_buffer(from.data(), DType::i32, 1);
  if (!source.empty()) {
    // The low half of 64 bits: rows are few.
    const int64_t step = source.stride(0) * (source.dtype() == DType::i64 ? 2 : 1);
    rows = KernelBuffer(source.data(), DType::i32).dim(source.size(0), step);
  }
  if (fits_kernel(in) && fits_kernel(out)) return run(in, rows, out);
  // The source of a row is known to the GPU alone.
  if (!source.empty()) fail("source_rows: expected tensors of less than 2^31 elements on a GPU");
  for (int64_t b = 0; b < to.size(0); ++b) run(slice(in, 3, b, b + 1), rows, slice(out, 3, b, b + 1));
}

}  // namespace posattn::cuda
