// Products of float32 on a GPU's tensor cores: every number as a sum of three of bfloat16, which is exact,
// and six products of the parts of two numbers, which is all but 2^-23 of their product.
//
// Six products of bfloat16 take the time of three of tf32, the other way to do this, and sum 16 at a time
// where tf32 sums 8. That matters, because tensor cores cut their sums off where others round, so that a sum
// becomes too small by up to its last bit with every step. Therefore a product has kMostSummed features at
// most, and those of further ones are added to its result by instructions that round. Largest errors of
// random rows and weights whose results have a standard deviation of 1 (emulated; two bits kept beyond the
// sum's last one), beside plain float32 sums in turn, as cuBLAS has them on CUDA cores:
//
//   features                                       512      768      1024     4096
//   float32                                        3.0e-6   3.1e-6   3.7e-6   7.2e-6
//   bfloat16, 384 features a product               1.1e-6   1.3e-6   1.7e-6   1.2e-6
//   bfloat16, one product                          2.1e-6   3.2e-6   4.5e-6   1.5e-5
//   tf32, 256 features a product                   2.3e-6   2.5e-6   2.7e-6   2.1e-6
//   tf32, one product, the small parts not first   1.8e-5   2.6e-5   5.1e-5   1.2e-4
#pragma once

#include "runtime/cuda/context.h"
#include "runtime/tensor.h"

namespace posattn::cuda {

// How rows of `features` numbers are laid out for that: groups of as many features, zeros beyond the last
// one, and of each group its parts one after the other, once for every product.
struct SplitForm {
  explicit SplitForm(int64_t features);

  static constexpr int64_t kMostSummed = 384;
  static constexpr int64_t kProducts = 6;
  // Rows and groups begin at multiples of 64 bytes if the first row does.
  static constexpr uint32_t kAlignment = 64;

  int64_t features, groups, group;
  int64_t summed() const { return kProducts * group; }  // numbers of one product's rows
  int64_t width() const { return groups * summed(); }   // of a row
};

// Whether it is faster than float32 on CUDA cores: by tensor cores this far ahead of them, which only cards
// for servers have, and with enough to multiply for what was split.
bool split_pays(int capability, int64_t rows, int64_t in_features, int64_t out_features);

// Whether a weight (out, in) f32 on the host keeps all of its precision: numbers that are tiny, or huge for
// tiny inputs, have parts below what bfloat16 holds, and infinities have none. Rows are seen as a whole.
bool split_keeps(const TensorView &weight);

// The weight's rows, (out, form.width()) bf16.
Tensor split_weight(const TensorView &weight, const SplitForm &form);

// x (B, T, features) f32 -> (B, T, form.width()) bf16 at `out`, contiguous, 64-byte aligned; less than 2^31
// elements of both. On the GPU, last dimension contiguous.
void split_rows(const TensorView &x, const SplitForm &form, void *out, const Scope &scope);
// Whether x's last element is near enough.
bool can_split(const TensorView &x);

}  // namespace posattn::cuda
