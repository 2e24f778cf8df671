#include "runtime/cuda/memory.h"

#include <utility>

#include "runtime/cuda/context.h"
#include "runtime/error.h"

namespace posattn {
namespace {

cuda::Address address(const void *data) { return reinterpret_cast<cuda::Address>(data); }

}  // namespace

CudaMemory::CudaMemory(size_t bytes, const CudaStream &stream) : size_(bytes), stream_(stream) {
  const cuda::Scope scope(stream);
  cuda::Address memory = 0;
  cuda::check(cuda::driver().MemAlloc(&memory, bytes > 0 ? bytes : 1), "memory of the GPU");
  data_ = reinterpret_cast<void *>(memory);
}

CudaMemory::CudaMemory(CudaMemory &&other) noexcept { *this = std::move(other); }

CudaMemory &CudaMemory::operator=(CudaMemory &&other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(stream_, other.stream_);
  return *this;
}

CudaMemory::~CudaMemory() {
  if (!data_) return;
  try {
    const cuda::Scope scope(stream_);
    cuda::driver().MemFree(address(data_));
  } catch (const Error &) {  // the context is gone, and the memory with it
  }
}

void copy_to_cuda(void *to, const void *from, size_t bytes, const CudaStream &stream) {
  if (bytes == 0) return;
  const cuda::Scope scope(stream);
  const cuda::Driver &d = cuda::driver();
  cuda::check(d.MemcpyHtoDAsync(address(to), from, bytes, scope.stream()), "copying to the GPU");
  cuda::check(d.StreamSynchronize(scope.stream()), "copying to the GPU");
}

void copy_from_cuda(void *to, const void *from, size_t bytes, const CudaStream &stream) {
  if (bytes == 0) return;
  const cuda::Scope scope(stream);
  const cuda::Driver &d = cuda::driver();
  cuda::check(d.MemcpyDtoHAsync(to, address(from), bytes, scope.stream()), "copying from the GPU");
  cuda::check(d.StreamSynchronize(scope.stream()), "copying from the GPU");
}

void synchronize(const CudaStream &stream) {
  const cuda::Scope scope(stream);
  cuda::check(cuda::driver().StreamSynchronize(scope.stream()), "the stream's work");
}

CudaTensor::CudaTensor(DType type, int rank, const int64_t *shape, const CudaStream &stream)
    : stream_(stream) {
  const TensorView checked(nullptr, type, rank, shape);
  memory_ = CudaMemory(static_cast<size_t>(checked.num_elements() * size_of(type)), stream);
  view_ = MutableTensorView(memory_.data(), type, rank, shape);
}

CudaTensor::CudaTensor(const TensorView &host, const CudaStream &stream) : stream_(stream) {
  if (host.empty()) return;
  int64_t shape[kMaxRank];
  for (int d = 0; d < host.rank(); ++d) shape[d] = host.size(d);
  *this = CudaTensor(host.dtype(), host.rank(), shape, stream);
  const Tensor contiguous = host.contiguous() ? Tensor() : copy_of(host, host.dtype());
  copy_to_cuda(memory_.data(), contiguous.empty() ? host.data() : contiguous.view().data(), memory_.size(),
               stream);
}

void CudaTensor::download(const MutableTensorView &host) const {
  Tensor contiguous(view_.dtype(), {});
  int64_t shape[kMaxRank];
  for (int d = 0; d < view_.rank(); ++d) shape[d] = view_.size(d);
  contiguous = Tensor(view_.dtype(), view_.rank(), shape);
  copy_from_cuda(contiguous.view().data(), memory_.data(), memory_.size(), stream_);
  copy(contiguous, host);
}

}  // namespace posattn
