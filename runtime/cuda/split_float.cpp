#include "runtime/cuda/split_float.h"

#include <algorithm>
#include <cmath>

#include "runtime/cuda/launch.h"
#include "runtime/cuda/token_call.h"
#include "runtime/float_bits.h"

namespace posattn::cuda {
namespace {

// Which part of the weight meets which of the input, 2, 0, 1, 1, 0, 0 (generators/split_bfloat16.h).
constexpr int kWeightParts[SplitForm::kProducts] = {0, 2, 1, 0, 1, 0};

// Of a finite number below bfloat16's largest.
void split(float value, uint16_t (&parts)[3]) {
  for (uint16_t &part : parts) {
    part = static_cast<uint16_t>((bits_of(value) + 0x8000u) >> 16);
    value -= bf16_to_float(part);
  }
}

KernelBuffer rows_of(const TensorView &x) {  // (feature, token, batch)
  return KernelBuffer(x.data(), DType::f32)
      .dim(x.size(2), 1)
      .dim(x.size(1), x.size(1) > 1 ? x.stride(1) : 0)
      .dim(x.size(0), x.size(0) > 1 ? x.stride(0) : 0);
}

}  // namespace

SplitForm::SplitForm(int64_t count) : features(count) {
  constexpr int64_t kStep = 16;  // features that tensor cores sum at once
  groups = (count + kMostSummed - 1) / kMostSummed;
  group = (count + groups * kStep - 1) / (groups * kStep) * kStep;
}

bool split_pays(int capability, int64_t rows, int64_t in_features, int64_t out_features) {
  // A100, H100, B200 and B300. Others multiply float32 on CUDA cores as fast as a sixth of what their tensor
  // cores do in bfloat16, or faster.
  const bool far_ahead = capability == 80 || capability == 90 || capability == 100 || capability == 103;
  // Splitting a row moves 16 bytes a feature, the time of some 300 of H100's multiply-adds in float32, and
  // few rows are waiting for weights, of which there are three times as many.
  return far_ahead && rows >= 256 && in_features >= 128 && out_features >= 384;
}

bool split_keeps(const TensorView &weight) {
  constexpr float kSmallest = 0x1p-64f, kLargest = 0x1p+64f;
  for (int64_t row = 0; row < weight.size(0); ++row) {
    const float *const numbers = weight.as<float>() + row * weight.stride(0);
    float largest = 0;
    for (int64_t i = 0; i < weight.size(1); ++i) {
      if (!std::isfinite(numbers[i])) return false;
      largest = std::max(largest, std::abs(numbers[i]));
    }
    if (largest > kLargest || (largest != 0 && largest < kSmallest)) return false;
  }
  return true;
}

Tensor split_weight(const TensorView &weight, const SplitForm &form) {
  Tensor result(DType::bf16, {weight.size(0), form.width()});  // zeros
  for (int64_t row = 0; row < weight.size(0); ++row) {
    const float *const from = weight.as<float>() + row * weight.stride(0);
    uint16_t *const to = static_cast<uint16_t *>(result.view().data()) + row * form.width();
    for (int64_t i = 0; i < form.features; ++i) {
      uint16_t parts[3];
      split(from[i], parts);
      uint16_t *const group = to + i / form.group * form.summed() + i % form.group;
      for (int64_t p = 0; p < SplitForm::kProducts; ++p) group[p * form.group] = parts[kWeightParts[p]];
    }
  }
  return result;
}

void split_rows(const TensorView &x, const SplitForm &form, void *out, const Scope &scope) {
  Launch launch{&scope.context(), scope.stream(), {}, {}};
  KernelBuffer pairs(out, DType::i32);
  const int64_t group = form.group / 2, product = SplitForm::kProducts * group, row = form.groups * product;
  pairs.dim(group, 1).dim(SplitForm::kProducts, group).dim(form.groups, product);
  pairs.dim(x.size(1), row).dim(x.size(0), x.size(1) * row);
  KernelCall(simt_kernel("split_rows"), launch).set("x", rows_of(x)).set("out", pairs).run();
}

bool can_split(const TensorView &x) { return fits_kernel(rows_of(x)); }

}  // namespace posattn::cuda
