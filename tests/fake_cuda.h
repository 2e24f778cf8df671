// A table of functions in place of NVIDIA's driver, and one in place of cuBLASLt, which remember what they
// are asked for. Memory of the GPU is memory of the host; kernels do nothing.
#pragma once

#include <gtest/gtest.h>

#include <set>
#include <vector>

#include "runtime/cuda/blas.h"
#include "runtime/cuda/driver.h"

namespace posattn::oracle {

// A product y = x W^T as cuBLASLt was asked for it; steps in elements.
struct AskedProduct {
  int type;  // of x and W
  int64_t summed, out, tokens, batches;
  int64_t weight_step, x_step, y_step, y_batch_step;
  float added;  // times y
  const void *bias;
  const char *weight, *x, *y;
};

struct Asked {
  // early_launches: those of all launches that may start while the kernel before them runs.
  int capability = 80, launches = 0, early_launches = 0, modules = 0, largest_shared = 0, products = 0,
      allocations = 0;
  bool known_addresses = true;
  cuda::Result launch_result = cuda::kSuccess;
  cuda::BlasStatus blas_result = 0;
  std::set<cuda::Stream> streams;
  std::vector<AskedProduct> multiplied;
};
extern Asked asked;

cuda::Driver fake_driver();
// Its products do nothing.
cuda::Blas fake_blas();

}  // namespace posattn::oracle
