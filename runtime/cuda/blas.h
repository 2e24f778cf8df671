// NVIDIA's cuBLASLt, which multiplies matrices for layers: found when a layer is first placed on a GPU.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "runtime/cuda/context.h"

namespace posattn::cuda {

// Opaque or fixed types of cublasLt.h.
using BlasHandle = struct cublasLtContext *;
using BlasDesc = struct BlasDescOpaque *;      // cublasLtMatmulDesc_t
using BlasLayout = struct BlasLayoutOpaque *;  // cublasLtMatrixLayout_t
using BlasPreference = struct BlasPreferenceOpaque *;
using BlasStatus = int;  // 0: success
struct BlasAlgo {
  uint64_t data[8];
};
struct BlasHeuristic {
  BlasAlgo algo;
  size_t workspace_size;
  BlasStatus state;
  float waves;
  int reserved[4];
};

// What posattn calls, by the names of cublasLt.h without "cublasLt".
struct Blas {
  BlasStatus (*Create)(BlasHandle *);
  const char *(*GetStatusString)(BlasStatus);
  BlasStatus (*MatmulDescCreate)(BlasDesc *, int compute_type, int scale_type);
  BlasStatus (*MatmulDescDestroy)(BlasDesc);
  BlasStatus (*MatmulDescSetAttribute)(BlasDesc, int attribute, const void *, size_t);
  BlasStatus (*MatrixLayoutCreate)(BlasLayout *, int type, uint64_t rows, uint64_t columns, int64_t ld);
  BlasStatus (*MatrixLayoutDestroy)(BlasLayout);
  BlasStatus (*MatrixLayoutSetAttribute)(BlasLayout, int attribute, const void *, size_t);
  BlasStatus (*MatmulPreferenceCreate)(BlasPreference *);
  BlasStatus (*MatmulPreferenceDestroy)(BlasPreference);
  BlasStatus (*MatmulPreferenceSetAttribute)(BlasPreference, int attribute, const void *, size_t);
  BlasStatus (*MatmulAlgoGetHeuristic)(BlasHandle, BlasDesc, BlasLayout a, BlasLayout b, BlasLayout c,
                                       BlasLayout d, BlasPreference, int wanted, BlasHeuristic *, int *found);
  BlasStatus (*Matmul)(BlasHandle, BlasDesc, const void *alpha, const void *a, BlasLayout, const void *b,
                       BlasLayout, const void *beta, const void *c, BlasLayout, void *d, BlasLayout,
                       const BlasAlgo *, void *workspace, size_t workspace_size, Stream);
};

// Throws Error that says what is missing.
const Blas &blas();
// Of the current context, for as long as the process lives. Throws Error.
BlasHandle blas_handle(ContextState &context);
// Throws Error "what: text" unless it is a success.
void check_blas(BlasStatus status, const char *what);

// For tests: takes the place of cuBLASLt until it is called with null. Not while another thread calls.
void set_blas_for_testing(const Blas *blas);

// Constants of cublasLt.h, cublas_api.h and library_types.h.
// CUBLAS_COMPUTE_32F: float32 stays float32, without tf32, and products of others are summed in it.
constexpr int kComputeFloat32 = 68;
constexpr int kBlasFloat32 = 0, kBlasFloat16 = 2, kBlasBFloat16 = 14;
constexpr int kTransposed = 1;
constexpr int kDescTransposeA = 3, kDescEpilogue = 7, kDescBiasPointer = 8;
constexpr int kEpilogueBias = 4;
constexpr int kLayoutBatches = 5, kLayoutBatchStride = 6;
constexpr int kPreferWorkspace = 1, kPreferAlignmentA = 5;  // then B, C and D

}  // namespace posattn::cuda
