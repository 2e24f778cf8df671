#include "runtime/rotary.h"

#include <cmath>

#include "runtime/error.h"
#include "runtime/rotary_call.h"

namespace posattn {
namespace {

void check_tokens(const char *argument, const TensorView &view, int64_t batch, int64_t tokens) {
  const bool fits =
      (view.rank() == 1 || (view.rank() == 2 && (view.size(0) == 1 || view.size(0) == batch))) &&
      view.size(-1) == tokens;
  if (!fits) {
    fail(argument, ": expected shape (", tokens, "), (1, ", tokens, ") or (", batch, ", ", tokens, "), got ",
         view.shape_text());
  }
}

void check(const Rope &rope, const TensorView &x, const TensorView &positions, const TensorView &mask,
           const MutableTensorView &out) {
  if (x.empty() || x.rank() != 4)
    fail("x: expected a tensor (batch, heads, tokens, head_dim), got ", x.shape_text());
  if (x.dtype() != DType::f32 && x.dtype() != DType::bf16 && x.dtype() != DType::f16) {
    fail("x: expected type f32, bf16 or f16, got ", name_of(x.dtype()));
  }
  if (out.empty() || out.rank() != 4 || out.dtype() != x.dtype()) {
    fail("out: expected a tensor of x's type and shape ", x.shape_text(), ", got ", out.shape_text());
  }
  for (int d = 0; d < 4; ++d) {
    if (out.size(d) != x.size(d)) fail("out: expected shape ", x.shape_text(), ", got ", out.shape_text());
  }
  if (x.num_elements() > 0 && x.size(3) > 1 && (x.stride(3) != 1 || out.stride(3) != 1)) {
    fail("x: expected a contiguous last dimension, of out too");
  }
  const TensorView &frequencies = rope.inv_freq;
  if (frequencies.empty() || frequencies.rank() != 1 || frequencies.dtype() != DType::f32) {
    fail("inv_freq: expected a tensor (rotary_dim / 2) of type f32, got ", frequencies.shape_text());
  }
  if (frequencies.size(0) < 1 || 2 * frequencies.size(0) > x.size(3)) {
    fail("inv_freq: expected 1 to ", x.size(3) / 2, " frequencies for head_dim ", x.size(3), ", got ",
         frequencies.size(0));
  }
  if (!positions.empty()) {
    check_tokens("positions", positions, x.size(0), x.size(2));
    const DType type = positions.dtype();
    if (type != DType::f32 && type != DType::f64 && type != DType::i32 && type != DType::i64) {
      fail("positions: expected type f32, f64, i32 or i64, got ", name_of(type));
    }
  }
  if (!mask.empty()) {
    check_tokens("position_mask", mask, x.size(0), x.size(2));
    if (mask.dtype() != DType::boolean)
      fail("position_mask: expected type bool, got ", name_of(mask.dtype()));
  }
}

}  // namespace

RotationTables RotationTables::take(Workspace &workspace, int64_t pairs, int64_t tokens, int64_t batches) {
  const int64_t count = checked_product(checked_product(pairs, tokens, "rope"), batches, "rope");
  RotationTables tables;
  tables.cos = workspace.take<float>(count);
  tables.sin = workspace.take<float>(count);
  tables.scratch = workspace.take<double>(rotation_scratch(pairs));
  return tables;
}

void run_rotary(const Kernel &kernel, const Rope &rope, const TokenPositions &positions, int64_t batches,
                const RotationTables &tables, const KernelBuffer &x, const KernelBuffer &y) {
  const int64_t pairs = rope.inv_freq.size(0), tokens = positions.tokens(), batch = x.extent[3];
  fill_rotation(positions, rope.inv_freq, batches, tables.scratch, tables.cos, tables.sin);
  const auto table = [&](const float *data) {
    return KernelBuffer(data, DType::f32)
        .dim(pairs, 1)
        .dim(tokens, pairs)
        .dim(batch, batches > 1 ? pairs * tokens : 0);
  };
  const KernelBuffer cos = table(tables.cos), sin = table(tables.sin);
  const bool fits = fits_kernel(x) && fits_kernel(y) && fits_kernel(cos);
  const int64_t step = fits ? batch : 1;
  for (int64_t b = 0; b < batch; b += step) {
    KernelCall call(kernel);
    call.set("x", slice(x, 3, b, b + step)).set("y", slice(y, 3, b, b + step));
    call.set("cos", slice(cos, 2, b, b + step)).set("sin", slice(sin, 2, b, b + step));
    call.set("interleaved", rope.layout == Rope::Layout::interleaved).run();
  }
}

void rotate(const Rope &rope, const TensorView &x, const TensorView &positions,
            const TensorView &position_mask, const MutableTensorView &out) {
  check(rope, x, positions, position_mask, out);
  if (x.num_elements() == 0) return;
  const TokenPositions tokens(positions, position_mask, x.size(2));
  const int64_t batches = tokens.per_batch() ? x.size(0) : 1;
  for (int64_t b = 0; b < batches; ++b) {
    for (int64_t t = 0; t < tokens.tokens(); ++t) {
      if (!std::isfinite(tokens.at(b, t))) fail("positions: expected finite numbers, got ", tokens.at(b, t));
    }
  }
  KernelQuery query;
  query.kind = "rotary";
  query.type = x.dtype();
  const TargetList targets = usable_targets();
  if (targets.size == 0) fail("rope: no kernel of this program runs on this machine");
  const Kernel *kernel = nullptr;
  for (int i = targets.size - 1; i >= 0; --i) {
    query.target = targets.targets[i];
    if (const Kernel *found = find_kernel(query)) kernel = found;  // the best comes last
  }
  if (!kernel) fail_no_kernel(query);

  Workspace measure(nullptr);
  RotationTables::take(measure, rope.inv_freq.size(0), x.size(2), batches);
  const Tensor memory(DType::boolean, {measure.size()});
  Workspace workspace(memory.view().data());
  run_rotary(*kernel, rope, tokens, batches,
             RotationTables::take(workspace, rope.inv_freq.size(0), x.size(2), batches), kernel_buffer(x),
             kernel_buffer(out));
}

}  // namespace posattn
