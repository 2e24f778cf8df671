#include "runtime/cuda/linear.h"

#include <algorithm>
#include <array>
#include <limits>

#include "runtime/cuda/blas.h"
#include "runtime/error.h"

namespace posattn::cuda {
namespace {

// Plans of a map that are kept: many lengths of a sequence, and not all that a server ever sees.
constexpr size_t kMostPlans = 512;

int blas_type(DType type) {
  return type == DType::f32 ? kBlasFloat32 : type == DType::bf16 ? kBlasBFloat16 : kBlasFloat16;
}

// Tokens of a view (B, T, channels) as columns of a matrix, as cuBLASLt sees it, or of one for each batch.
struct Columns {
  int64_t batches, count, step, batch_step;
};
Columns columns_of(const TensorView &view) {
  const int64_t B = view.size(0), T = view.size(1);
  const int64_t token = T > 1 ? view.stride(1) : view.size(2), batch = B > 1 ? view.stride(0) : T * token;
  return {B, T, token, batch};
}
bool is_one_matrix(const Columns &c) {
  return c.batches == 1 || c.count == 1 || c.batch_step == c.count * c.step;
}
Columns as_one_matrix(const Columns &c) {
  const int64_t step = c.count == 1 && c.batches > 1 ? c.batch_step : c.step;
  return {1, c.batches * c.count, step, 0};
}

// Largest power of two, up to 256, that the address is a multiple of, and those of what is `step` bytes on.
uint32_t alignment_of(const void *data, int64_t step = 0) {
  const uintptr_t bits = reinterpret_cast<uintptr_t>(data) | static_cast<uintptr_t>(step) | 256;
  return static_cast<uint32_t>(bits & (~bits + 1));
}
// Of every batch's first number.
uint32_t alignment_of(const TensorView &view, const Columns &c) {
  return alignment_of(view.data(), c.batches > 1 ? c.batch_step * size_of(view.dtype()) : 0);
}

// As many pieces of `total` as pieces of `most` would be, but of the same size, nearly.
int64_t even(int64_t total, int64_t most) {
  const int64_t pieces = (total + most - 1) / most;
  return (total + pieces - 1) / pieces;
}

// Tokens that are split at a time: more only take more memory, and kernels address 2^31 elements.
int64_t most_tokens(const SplitForm &form) {
  constexpr int64_t kMostBytes = int64_t{256} << 20;
  return std::max<int64_t>(1, kMostBytes / (form.width() * size_of(DType::bf16)));
}

template <typename View>
View as_one_batch(const View &view) {
  const Columns c = as_one_matrix(columns_of(view));
  const int64_t shape[] = {1, c.count, view.size(2)}, strides[] = {c.count * c.step, c.step, 1};
  return View(view.data(), view.dtype(), 3, shape, strides);
}

}  // namespace

// Of x and the weight as they are, or of a group of features of what is split.
struct CudaLinear::Product {
  int64_t begin, end;  // output features
  int64_t group = -1;
  bool is_split() const { return group >= 0; }
};

struct CudaLinear::Key {
  Columns x, y;
  int64_t begin, end;
  bool is_split, has_bias;
  uint32_t x_alignment, y_alignment;
  const ContextState *context;
  auto tie() const {
    return std::array<int64_t, 15>{
        x.batches,    x.count,      x.step,
        x.batch_step, y.batches,    y.count,
        y.step,       y.batch_step, begin,
        end,          is_split,     has_bias,
        x_alignment,  y_alignment,  static_cast<int64_t>(reinterpret_cast<intptr_t>(context))};
  }
  bool operator<(const Key &other) const { return tie() < other.tie(); }
};

struct CudaLinear::Plan {
  BlasDesc desc = nullptr;
  BlasLayout weight = nullptr, x = nullptr, y = nullptr;
  BlasHeuristic chosen = {};

  Plan() = default;
  Plan(const Plan &) = delete;
  Plan &operator=(const Plan &) = delete;
  ~Plan() {
    const Blas &b = blas();
    if (desc) b.MatmulDescDestroy(desc);
    for (BlasLayout layout : {weight, x, y}) {
      if (layout) b.MatrixLayoutDestroy(layout);
    }
  }
};

struct CudaLinear::Plans {
  std::mutex mutex;
  std::map<Key, std::shared_ptr<const Plan>> by_key;
};

CudaLinear::CudaLinear(const std::vector<Part> &parts, DType type, const CudaStream &stream)
    : type_(type), plans_(std::make_shared<Plans>()) {
  in_ = parts.front().weight.size(1);
  for (const Part &part : parts) {
    out_ += part.weight.size(0);
    biased_ |= !part.bias.empty();
  }
  const Tensor weight(type, {out_, in_}), bias(type, {out_});  // zero where a part has none
  int64_t row = 0;
  for (const Part &part : parts) {
    const int64_t end = row + part.weight.size(0);
    copy(part.weight, weight.view().slice(0, row, end));
    if (!part.bias.empty()) copy(part.bias, bias.view().slice(0, row, end));
    row = end;
  }
  const auto upload = [&](const Tensor &host) {
    const size_t bytes = static_cast<size_t>(host.view().num_elements() * size_of(host.dtype()));
    CudaMemory memory(bytes, stream);
    copy_to_cuda(memory.data(), host.view().data(), bytes, stream);
    return memory;
  };
  weight_ = upload(weight);
  if (biased_) bias_ = upload(bias);
  // Found now, not in the middle of a call or a capture.
  const Scope scope(stream);
  blas_handle(scope.context());
  capability_ = scope.context().capability();
  const bool pays = split_pays(capability_, std::numeric_limits<int64_t>::max(), in_, out_);
  if (type != DType::f32 || !pays || !split_keeps(weight.view())) return;
  form_.emplace(in_);
  split_weight_ = upload(split_weight(weight.view(), *form_));
}

std::shared_ptr<const CudaLinear::Plan> CudaLinear::plan_for(const Key &key, const Scope &scope) const {
  const std::lock_guard<std::mutex> lock(plans_->mutex);
  std::shared_ptr<const Plan> &known = plans_->by_key[key];
  if (known) return known;
  const Blas &b = blas();
  const auto plan = std::make_shared<Plan>();
  const int type = blas_type(key.is_split ? DType::bf16 : type_);
  // Column by column, y^T = W x^T + b: the weight's rows are columns of W^T.
  check_blas(b.MatmulDescCreate(&plan->desc, kComputeFloat32, kBlasFloat32), "a product");
  const int transposed = kTransposed;
  check_blas(b.MatmulDescSetAttribute(plan->desc, kDescTransposeA, &transposed, sizeof(transposed)), "W^T");
  const char *const bias = static_cast<const char *>(bias_.data()) + key.begin * size_of(type_);
  if (key.has_bias) {
    const int epilogue = kEpilogueBias;
    check_blas(b.MatmulDescSetAttribute(plan->desc, kDescEpilogue, &epilogue, sizeof(epilogue)), "a bias");
    check_blas(b.MatmulDescSetAttribute(plan->desc, kDescBiasPointer, &bias, sizeof(bias)), "a bias");
  }
  const int64_t out = key.end - key.begin;
  const auto layout = [&](BlasLayout &of, int of_type, int64_t rows, const Columns &c) {
    check_blas(b.MatrixLayoutCreate(&of, of_type, static_cast<uint64_t>(rows), static_cast<uint64_t>(c.count),
                                    c.step),
               "a matrix");
    if (key.x.batches == 1) return;
    const auto batches = static_cast<int32_t>(key.x.batches);
    check_blas(b.MatrixLayoutSetAttribute(of, kLayoutBatches, &batches, sizeof(batches)), "batches");
    check_blas(b.MatrixLayoutSetAttribute(of, kLayoutBatchStride, &c.batch_step, sizeof(c.batch_step)),
               "batches");
  };
  const int64_t summed = key.is_split ? form_->summed() : in_;
  layout(plan->weight, type, summed, {1, out, key.is_split ? form_->width() : in_, 0});
  layout(plan->x, type, summed, key.x);
  layout(plan->y, blas_type(type_), out, key.y);

  BlasPreference preference = nullptr;
  check_blas(b.MatmulPreferenceCreate(&preference), "a preference");
  const uint64_t workspace = kWorkspace;
  b.MatmulPreferenceSetAttribute(preference, kPreferWorkspace, &workspace, sizeof(workspace));
  const uint32_t weight =
      key.is_split ? SplitForm::kAlignment : alignment_of(weight_of({key.begin, key.end}));
  const uint32_t alignments[] = {weight, key.x_alignment, key.y_alignment, key.y_alignment};
  for (int i = 0; i < 4; ++i) {
    b.MatmulPreferenceSetAttribute(preference, kPreferAlignmentA + i, &alignments[i], sizeof(uint32_t));
  }
  int found = 0;
  const BlasStatus status =
      b.MatmulAlgoGetHeuristic(blas_handle(scope.context()), plan->desc, plan->weight, plan->x, plan->y,
                               plan->y, preference, 1, &plan->chosen, &found);
  b.MatmulPreferenceDestroy(preference);
  check_blas(status, "choosing an algorithm");
  if (found == 0) fail("cuda: cuBLASLt has no algorithm for a product of this shape");
  // Calls that use the others hold them.
  if (plans_->by_key.size() > kMostPlans) {
    plans_->by_key.clear();
    return plans_->by_key[key] = plan;
  }
  return known = plan;
}

const void *CudaLinear::weight_of(const Product &product) const {
  if (!product.is_split()) {
    return static_cast<const char *>(weight_.data()) + product.begin * in_ * size_of(type_);
  }
  const int64_t first = product.begin * form_->width() + product.group * form_->summed();
  return static_cast<const char *>(split_weight_.data()) + first * size_of(DType::bf16);
}

// y = x W^T, with y added for every group but the first, and with the bias for the last one.
void CudaLinear::multiply(const Product &product, const TensorView &x, const MutableTensorView &y,
                          const Scope &scope, void *workspace) const {
  Columns from = columns_of(x), to = columns_of(y);
  if (is_one_matrix(from) && is_one_matrix(to)) from = as_one_matrix(from), to = as_one_matrix(to);
  const bool is_last = !product.is_split() || product.group + 1 == form_->groups;
  // One plan serves every group.
  const uint32_t x_alignment = product.is_split() ? SplitForm::kAlignment : alignment_of(x, from);
  const Key key{from,
                to,
                product.begin,
                product.end,
                product.is_split(),
                biased_ && is_last,
                x_alignment,
                alignment_of(y, to),
                &scope.context()};
  const std::shared_ptr<const Plan> plan = plan_for(key, scope);
  const float one = 1, added = product.group > 0 ? 1 : 0;
  // Its kernels are loaded when they are first launched.
  const OutsideOfCapture outside;
  check_blas(blas().Matmul(blas_handle(scope.context()), plan->desc, &one, weight_of(product), plan->weight,
                           x.data(), plan->x, &added, y.data(), plan->y, y.data(), plan->y,
                           &plan->chosen.algo, workspace, plan->chosen.workspace_size, scope.stream()),
             "multiplying");
}

int64_t CudaLinear::split_size(int64_t tokens, int64_t begin, int64_t end) const {
  if (!form_ || !split_pays(capability_, tokens, in_, end - begin)) return 0;
  return std::min(tokens, most_tokens(*form_)) * form_->width() * size_of(DType::bf16);
}

void CudaLinear::forward(const TensorView &x, const MutableTensorView &y, int64_t begin, int64_t end,
                         const Scope &scope, void *workspace, void *split) const {
  if (split_size(x.size(0) * x.size(1), begin, end) == 0) {
    return multiply({begin, end}, x, y, scope, workspace);
  }
  if (is_one_matrix(columns_of(x)) && is_one_matrix(columns_of(y))) {
    return multiply_split(as_one_batch(x), as_one_batch(y), begin, end, scope, workspace, split);
  }
  multiply_split(x, y, begin, end, scope, workspace, split);
}

void CudaLinear::multiply_split(const TensorView &x, const MutableTensorView &y, int64_t begin, int64_t end,
                                const Scope &scope, void *workspace, void *split) const {
  const int64_t B = x.size(0), T = x.size(1), most = most_tokens(*form_), width = form_->width();
  int64_t tokens = even(T, most), batches = tokens == T ? even(B, std::max<int64_t>(1, most / T)) : 1;
  while (!can_split(x.slice(0, 0, batches).slice(1, 0, tokens))) {
    if (batches == 1) tokens = (tokens + 1) / 2;
    batches = 1;
  }
  for (int64_t b = 0; b < B; b += batches) {
    for (int64_t t = 0; t < T; t += tokens) {
      const int64_t b_end = std::min(b + batches, B), t_end = std::min(t + tokens, T);
      split_rows(x.slice(0, b, b_end).slice(1, t, t_end), *form_, split, scope);
      const int64_t shape[] = {b_end - b, t_end - t, form_->summed()};
      const int64_t strides[] = {shape[1] * width, width, 1};
      for (int64_t group = 0; group < form_->groups; ++group) {
        const void *const first =
            static_cast<const char *>(split) + group * form_->summed() * size_of(DType::bf16);
        multiply({begin, end, group}, TensorView(first, DType::bf16, 3, shape, strides),
                 y.slice(0, b, b_end).slice(1, t, t_end), scope, workspace);
      }
    }
  }
}

}  // namespace posattn::cuda
