// Memory on a GPU for those who have no other source of it: the command line, tests, examples.
#pragma once

#include "runtime/cuda/stream.h"
#include "runtime/tensor.h"

namespace posattn {

// Owns memory on the GPU of a stream. Moves, is not copied. Freeing waits for the GPU's work.
class CudaMemory {
 public:
  CudaMemory() = default;
  CudaMemory(size_t bytes, const CudaStream &stream);
  CudaMemory(CudaMemory &&other) noexcept;
  CudaMemory &operator=(CudaMemory &&other) noexcept;
  ~CudaMemory();

  void *data() const { return data_; }
  size_t size() const { return size_; }

 private:
  void *data_ = nullptr;
  size_t size_ = 0;
  CudaStream stream_;
};

// Copies bytes to and from a GPU, after what the stream holds; they return when it is done.
void copy_to_cuda(void *to, const void *from, size_t bytes, const CudaStream &stream);
void copy_from_cuda(void *to, const void *from, size_t bytes, const CudaStream &stream);
// Waits for all that the stream holds. Throws Error if any of it failed.
void synchronize(const CudaStream &stream);

// A tensor on a GPU.
class CudaTensor {
 public:
  CudaTensor() = default;
  CudaTensor(DType type, int rank, const int64_t *shape, const CudaStream &stream);
  // A contiguous copy of a tensor on the host.
  CudaTensor(const TensorView &host, const CudaStream &stream);

  operator const MutableTensorView &() const { return view_; }  // NOLINT: used where a view is asked for
  const MutableTensorView &view() const { return view_; }
  bool empty() const { return view_.empty(); }
  // Waits, and copies to a tensor of the same shape on the host.
  void download(const MutableTensorView &host) const;

 private:
  CudaMemory memory_;
  CudaStream stream_;
  MutableTensorView view_;
};

}  // namespace posattn
