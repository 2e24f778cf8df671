// attend() of tensors on the host, on a GPU: everything is copied there and back. For programs whose data is
// on the host anyway, such as the command line and the tests.
#pragma once

#include <memory>
#include <vector>

#include "runtime/cuda/attend.h"
#include "runtime/cuda/memory.h"

namespace posattn {

class StagedAttend {
 public:
  // Checks shapes, and copies all tensors, outputs included, with `guard` bytes before and behind each, which
  // must be readable.
  StagedAttend(const AttendArgs &host, const CudaStream &stream, size_t guard = 0);
  StagedAttend(const StagedAttend &) = delete;
  StagedAttend &operator=(const StagedAttend &) = delete;

  // The same call with every tensor on the GPU.
  const AttendArgs &args() const { return args_; }
  // Waits for the GPU, and copies outputs back. With `all`, everything, guards too: what should not have been
  // written is then seen on the host.
  void download(bool all = false);

 private:
  struct Piece {
    char *host;
    CudaMemory memory;
    MutableTensorView output;  // on the host; empty for an input
  };
  TensorView upload(const TensorView &view);
  MutableTensorView upload_output(const MutableTensorView &view);

  CudaStream stream_;
  size_t guard_;
  AttendArgs args_;
  Rope rope_;
  std::vector<Piece> pieces_;
  std::vector<std::unique_ptr<LogitBranch>> branches_;
};

// attend() through a StagedAttend.
void attend_staged(const AttendArgs &host, const CudaStream &stream);

}  // namespace posattn
