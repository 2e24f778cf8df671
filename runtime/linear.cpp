#include "runtime/linear.h"

#include <algorithm>

#include "runtime/dispatch.h"
#include "runtime/error.h"
#include "runtime/kernel_call.h"

namespace posattn {

// As the projection kernel reads it: panels of `width` output features, (lane, k, panel), k padded with zeros
// to what the kernel sums at a time. Where the kernel takes words of `pairs` = 2 numbers, k and k + 1 share
// one.
struct Linear::Packed {
  const Kernel *kernel;
  DType type;
  int64_t width, depth, pairs;  // depth: the padded number of inputs
  Tensor weights;               // (panels, depth, width)
  Tensor bias;                  // (panels * width)
};

namespace {

bool is_float(DType type) { return type == DType::f32 || type == DType::bf16 || type == DType::f16; }

void check_float(const char *argument, const TensorView &view) {
  if (!is_float(view.dtype())) {
    fail(argument, ": expected type f32, bf16 or f16, got ", name_of(view.dtype()));
  }
}

const Kernel &projection_kernel(DType type) {
  KernelQuery query;
  query.kind = "projection";
  query.type = type;
  const TargetList targets = usable_targets();
  if (targets.size == 0) fail("linear: no kernel of this program runs on this machine");
  for (int i = 0; i < targets.size; ++i) {
    query.target = targets.targets[i];
    if (const Kernel *kernel = find_kernel(query)) return *kernel;
  }
  query.target = targets.targets[0];
  fail_no_kernel(query);
}

template <typename T>
void pack(const T *rows, int64_t out, int64_t in, int64_t width, int64_t depth, int64_t pairs, T *packed) {
  for (int64_t n = 0; n < out; ++n) {
    T *column = packed + (n / width) * depth * width + n % width * pairs;
    for (int64_t k = 0; k < in; ++k) column[k / pairs * pairs * width + k % pairs] = rows[n * in + k];
  }
}

bool takes_words(const Kernel &projection) {
  const int weights = projection.find("weights");
  return weights >= 0 && projection.arguments[weights].type.code == halide_type_int;
}

// (batch, token, feature) of any view of rank 2 or 3.
struct Rows {
  const void *data;
  DType type;
  int64_t batches, tokens, features, batch_stride, token_stride;

  explicit Rows(const TensorView &view)
      : data(view.data()),
        type(view.dtype()),
        batches(view.rank() == 3 ? view.size(0) : 1),
        tokens(view.size(-2)),
        features(view.size(-1)),
        batch_stride(batches > 1 ? view.stride(0) : 0),
        token_stride(tokens > 1 ? view.stride(-2) : 0) {}

  Rows part(int64_t first_batch, int64_t num_batches, int64_t first_token, int64_t num_tokens) const {
    Rows rows = *this;
    const int64_t offset = first_batch * batch_stride + first_token * token_stride;
    rows.data = static_cast<const char *>(data) + offset * size_of(type);
    rows.batches = num_batches, rows.tokens = num_tokens;
    return rows;
  }
  KernelBuffer buffer() const {
    return KernelBuffer(data, type).dim(features, 1).dim(tokens, token_stride).dim(batches, batch_stride);
  }
  // With batch and token as one dimension; only if uniform().
  KernelBuffer flat() const {
    return KernelBuffer(data, type)
        .dim(features, 1)
        .dim(batches * tokens, tokens > 1 ? token_stride : batch_stride);
  }
  bool uniform() const { return batches == 1 || tokens == 1 || batch_stride == tokens * token_stride; }
};

// `addend` over x's tokens: dimensions that are 1 or missing repeat.
Rows broadcast(const TensorView &addend, const Rows &x) {
  const int rank = addend.rank();
  Rows rows = x;
  rows.data = addend.data(), rows.type = addend.dtype();
  rows.token_stride = rank >= 2 && addend.size(-2) > 1 ? addend.stride(-2) : 0;
  rows.batch_stride = rank == 3 && addend.size(0) > 1 ? addend.stride(0) : 0;
  return rows;
}

void check_last(const char *argument, const TensorView &view) {
  if (view.num_elements() > 0 && view.size(-1) > 1 && view.stride(-1) != 1) {
    fail(argument, ": expected a contiguous last dimension, got stride ", view.stride(-1));
  }
}

void check_addend(const TensorView &addend, const TensorView &x) {
  if (addend.dtype() != DType::f32) fail("addend: expected type f32, got ", name_of(addend.dtype()));
  bool fits = addend.rank() >= 1 && addend.rank() <= x.rank() && addend.size(-1) == x.size(-1);
  for (int d = 2; fits && d <= addend.rank(); ++d) {
    fits = addend.size(-d) == 1 || addend.size(-d) == x.size(-d);
  }
  if (!fits)
    fail("addend: expected a shape that broadcasts to ", x.shape_text(), ", got ", addend.shape_text());
  check_last("addend", addend);
}

// Splits what 32-bit offsets or the kernel's single row dimension of y cannot express.
template <typename Run>
void in_parts(const Rows &x, const Rows &y, const Rows &addend, const Run &run) {
  if (y.uniform() && fits_kernel(x.buffer()) && fits_kernel(y.flat()) && fits_kernel(addend.buffer())) {
    run(x, y, addend);
    return;
  }
  const bool by_batch = x.batches > 1;
  const int64_t whole = by_batch ? x.batches : x.tokens, half = whole / 2;
  if (half == 0) fail("x: too large: a row has ", x.features, " elements");
  for (const auto &[first, count] : {std::pair(int64_t{0}, half), std::pair(half, whole - half)}) {
    const auto part = [&, first = first, count = count](const Rows &rows) {
      return by_batch ? rows.part(first, count, 0, x.tokens) : rows.part(0, 1, first, count);
    };
    in_parts(part(x), part(y), part(addend), run);
  }
}

}  // namespace

Linear::Linear(const TensorView &weight, const TensorView &bias, DType type) {
  if (!is_float(type)) fail("linear: expected type f32, bf16 or f16, got ", name_of(type));
  if (weight.empty() || weight.rank() != 2 || weight.size(0) < 1 || weight.size(1) < 1) {
    fail("weight: expected a matrix (out, in), got ", weight.empty() ? "none" : weight.shape_text());
  }
  check_float("weight", weight);
  in_ = weight.size(1), out_ = weight.size(0);
  if (!bias.empty()) {
    if (bias.rank() != 1 || bias.size(0) != out_) {
      fail("bias: expected shape (", out_, "), got ", bias.shape_text());
    }
    check_float("bias", bias);
  }

  const auto packed = std::make_shared<Packed>();
  packed->kernel = &projection_kernel(type);
  packed->type = type;
  packed->width = packed->kernel->estimate("weights", 0, 1);
  packed->pairs = takes_words(*packed->kernel) ? 2 : 1;
  const int64_t unit = packed->kernel->estimate("weights", 1, 1) * packed->pairs;
  packed->depth = (in_ + unit - 1) / unit * unit;
  const int64_t panels = (out_ + packed->width - 1) / packed->width;
  packed->weights = Tensor(type, {panels, packed->depth, packed->width});
  packed->bias = Tensor(DType::f32, {panels * packed->width});
  const Tensor rows = copy_of(weight, type);
  if (type == DType::f32) {
    pack(rows.as<uint32_t>(), out_, in_, packed->width, packed->depth, packed->pairs,
         packed->weights.as<uint32_t>());
  } else {
    pack(rows.as<uint16_t>(), out_, in_, packed->width, packed->depth, packed->pairs,
         packed->weights.as<uint16_t>());
  }
  if (!bias.empty()) copy(bias, packed->bias.view().slice(0, 0, out_));
  packed_ = packed;
}

std::optional<Linear> Linear::columns(int64_t begin, int64_t end) const {
  if (begin < 0 || end > out_ || begin >= end) fail("columns: [", begin, ", ", end, ") of ", out_);
  if ((begin_ + begin) % packed_->width != 0) return std::nullopt;
  Linear part;
  part.packed_ = packed_;
  part.in_ = in_, part.begin_ = begin_ + begin, part.out_ = end - begin;
  return part;
}

void Linear::forward(const TensorView &x, const MutableTensorView &y, const TensorView &addend) const {
  const Packed &p = *packed_;
  if (x.empty() || (x.rank() != 2 && x.rank() != 3) || x.size(-1) != in_) {
    fail("x: expected shape (tokens, ", in_, ") or (batch, tokens, ", in_, "), got ",
         x.empty() ? "none" : x.shape_text());
  }
  if (x.dtype() != p.type) fail("x: expected type ", name_of(p.type), ", got ", name_of(x.dtype()));
  bool fits = !y.empty() && y.rank() == x.rank() && y.size(-1) == out_;
  for (int d = 0; fits && d < x.rank() - 1; ++d) fits = y.size(d) == x.size(d);
  if (!fits) {
    fail("y: expected x's shape ", x.shape_text(), " with ", out_, " in place of ", in_, ", got ",
         y.empty() ? "none" : y.shape_text());
  }
  if (y.dtype() != p.type) fail("y: expected type ", name_of(p.type), ", got ", name_of(y.dtype()));
  check_last("x", x);
  check_last("y", y);
  if (!addend.empty()) check_addend(addend, x);
  if (x.num_elements() == 0) return;

  const int64_t panels = (out_ + p.width - 1) / p.width, first_panel = begin_ / p.width;
  const int64_t panel_size = p.depth * p.width;
  const KernelBuffer weights = slice(KernelBuffer(p.weights.view().data(), p.pairs == 2 ? DType::i32 : p.type)
                                         .dim(p.width, 1)
                                         .dim(p.depth / p.pairs, p.width)
                                         .dim(first_panel + panels, panel_size / p.pairs),
                                     2, first_panel, first_panel + panels);
  const KernelBuffer bias = KernelBuffer(p.bias.as<float>() + begin_, DType::f32).dim(panels * p.width, 1);
  if (!fits_kernel(weights)) fail("weight: too large: kernels address 2^31 elements of a tensor");
  const Rows rows(x);
  const Rows added = addend.empty() ? rows : broadcast(addend, rows);  // a stand-in that is not read
  in_parts(rows, Rows(y), added, [&](const Rows &x_part, const Rows &y_part, const Rows &added_part) {
    KernelBuffer addend_buffer = added_part.buffer();
    addend_buffer.type = DType::f32;
    KernelCall(*p.kernel)
        .set("x", x_part.buffer())
        .set("has_addend", !addend.empty())
        .set("addend", addend_buffer)
        .set("weights", weights)
        .set("bias", bias)
        .set("out", y_part.flat())
        .run();
  });
}

}  // namespace posattn
