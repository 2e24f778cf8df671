#include "runtime/cuda/blas.h"

#include <dlfcn.h>

#include <atomic>
#include <map>
#include <mutex>

#include "runtime/error.h"

namespace posattn::cuda {
namespace {

struct Loaded {
  Blas table = {};
  std::string failure;  // empty: usable
};

std::string load(Blas &b) {
  void *library = nullptr;
  // The newest first, of those whose functions are the ones declared here; or one that is loaded already.
  for (const char *name : {"libcublasLt.so.13", "libcublasLt.so.12"}) {
    if (!library) library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
  }
  if (!library) {
    return "cuda: layers need NVIDIA's cuBLASLt, which was not found (libcublasLt.so.13 or .12, of the CUDA "
           "toolkit or its pip package; LD_LIBRARY_PATH may name its folder)";
  }
  const char *missing = nullptr;
  const auto need = [&](const char *name, auto &function) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
    if (!function && !missing) missing = name;
  };
  need("cublasLtCreate", b.Create);
  need("cublasLtGetStatusString", b.GetStatusString);
  need("cublasLtMatmulDescCreate", b.MatmulDescCreate);
  need("cublasLtMatmulDescDestroy", b.MatmulDescDestroy);
  need("cublasLtMatmulDescSetAttribute", b.MatmulDescSetAttribute);
  need("cublasLtMatrixLayoutCreate", b.MatrixLayoutCreate);
  need("cublasLtMatrixLayoutDestroy", b.MatrixLayoutDestroy);
  need("cublasLtMatrixLayoutSetAttribute", b.MatrixLayoutSetAttribute);
  need("cublasLtMatmulPreferenceCreate", b.MatmulPreferenceCreate);
  need("cublasLtMatmulPreferenceDestroy", b.MatmulPreferenceDestroy);
  need("cublasLtMatmulPreferenceSetAttribute", b.MatmulPreferenceSetAttribute);
  need("cublasLtMatmulAlgoGetHeuristic", b.MatmulAlgoGetHeuristic);
  need("cublasLtMatmul", b.Matmul);
  return missing ? std::string("cuda: this cuBLASLt has no ") + missing : "";
}

std::atomic<const Blas *> for_testing{nullptr};

}  // namespace

const Blas &blas() {
  if (const Blas *testing = for_testing.load(std::memory_order_acquire)) return *testing;
  static const Loaded *const loaded = [] {
    Loaded *result = new Loaded;  // never destroyed, as the driver's
    result->failure = load(result->table);
    return result;
  }();
  if (!loaded->failure.empty()) fail(loaded->failure);
  return loaded->table;
}

BlasHandle blas_handle(ContextState &context) {
  static std::mutex *const mutex = new std::mutex;
  static auto *const handles = new std::map<std::pair<const Blas *, ContextState *>, BlasHandle>;
  const Blas &b = blas();
  const std::lock_guard<std::mutex> lock(*mutex);
  BlasHandle &handle = (*handles)[{&b, &context}];
  if (!handle) check_blas(b.Create(&handle), "starting it");
  return handle;
}

void check_blas(BlasStatus status, const char *what) {
  if (status == 0) return;
  const char *text = blas().GetStatusString(status);
  fail("cuda: cuBLASLt: ", what, ": ", text ? text : "unknown error", " (", status, ")");
}

void set_blas_for_testing(const Blas *blas) { for_testing.store(blas, std::memory_order_release); }

}  // namespace posattn::cuda
