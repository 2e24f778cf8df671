#include "runtime/cuda/token_call.h"

#include "runtime/cuda/targets.h"
#include "runtime/dispatch.h"

namespace posattn::cuda {

const Kernel &simt_kernel(const char *kind, DType type) {
  KernelQuery query;
  query.kind = kind;
  query.type = type;
  query.target = find_target("simt");
  return require_kernel(query);
}

KernelBuffer unused_buffer(const void *memory, DType type, int dimensions) {
  KernelBuffer buffer(memory, type);
  for (int d = 0; d < dimensions; ++d) buffer.dim(1, d == 0 ? 1 : 0);
  return buffer;
}

KernelBuffer of_tokens(const TensorView &view, DType type, int64_t batches, const void *unused) {
  if (view.empty()) return unused_buffer(unused, type, 2);
  const int64_t step = view.rank() == 2 && view.size(0) > 1 ? view.stride(0) : 0;
  return KernelBuffer(view.data(), view.dtype()).dim(view.size(-1), view.stride(-1)).dim(batches, step);
}

void set_positions(KernelCall &call, const TensorView &positions, const TensorView &mask, int64_t batches,
                   int64_t first, const void *unused) {
  const DType types[] = {DType::f32, DType::f64, DType::i32, DType::i64};
  const ArgumentName names[] = {"p_f32", "p_f64", "p_i32", "p_i64"};
  int32_t form = 0;
  for (int i = 0; i < 4; ++i) {
    const bool is_it = !positions.empty() && positions.dtype() == types[i];
    if (is_it) form = i + 1;
    call.set(names[i], of_tokens(is_it ? positions : TensorView(), types[i], batches, unused));
  }
  call.set("form", form).set("first", static_cast<int32_t>(first)).set("has_mask", !mask.empty());
  call.set("mask", of_tokens(mask, DType::boolean, batches, unused));
}

}  // namespace posattn::cuda
