#include "runtime/cuda/staged.h"

#include <cstring>

#include "runtime/attend_problem.h"
#include "runtime/cuda/moved_branch.h"
#include "runtime/error.h"

namespace posattn {
namespace {

struct Reach {
  int64_t before = 0, behind = 0;  // bytes from the first element
};

Reach reach_of(const TensorView &view) {
  Reach reach;
  if (view.num_elements() == 0) return reach;
  const int64_t size = size_of(view.dtype());
  for (int d = 0; d < view.rank(); ++d) {
    const int64_t bytes = view.size(d) > 1 ? (view.size(d) - 1) * view.stride(d) * size : 0;
    (bytes < 0 ? reach.before : reach.behind) += bytes < 0 ? -bytes : bytes;
  }
  reach.behind += size;
  return reach;
}

template <typename View>
View at(const TensorView &view, void *data) {
  int64_t shape[kMaxRank], strides[kMaxRank];
  for (int d = 0; d < view.rank(); ++d) shape[d] = view.size(d), strides[d] = view.stride(d);
  return View(data, view.dtype(), view.rank(), shape, strides);
}

}  // namespace

StagedAttend::StagedAttend(const AttendArgs &host, const CudaStream &stream, size_t guard)
    : stream_(stream), guard_(guard), args_(host) {
  // Memory of the host is what is copied: everything about it is checked before.
  const AttendProblem problem = check_shapes(host);
  check_memory(host);
  check_values(host, problem);
  for (TensorView *view : {&args_.query, &args_.key, &args_.value, &args_.keep_mask, &args_.block_mask,
                           &args_.add_mask, &args_.dense_bias, &args_.key_keep_mask, &args_.key_block_mask,
                           &args_.key_add_mask, &args_.key_lengths, &args_.q_positions, &args_.k_positions,
                           &args_.q_position_mask, &args_.k_position_mask}) {
    *view = upload(*view);
  }
  for (MutableTensorView *view : {&args_.out, &args_.lse, &args_.weights}) *view = upload_output(*view);
  for (const LogitBranch *&branch : args_.branches) {
    if (!branch) continue;
    branches_.push_back(
        std::make_unique<MovedBranch>(*branch, [&](const TensorView &view) { return upload(view); }));
    branch = branches_.back().get();
  }
  if (host.rope) {
    rope_ = {upload(host.rope->inv_freq), host.rope->layout};
    args_.rope = &rope_;
  }
}

TensorView StagedAttend::upload(const TensorView &view) {
  if (view.empty() || view.num_elements() == 0) return view;
  const Reach reach = reach_of(view);
  const size_t bytes = static_cast<size_t>(reach.before + reach.behind) + 2 * guard_;
  char *const host = const_cast<char *>(view.as<char>()) - reach.before - guard_;
  // As far from a multiple of 256 as on the host, so that what is aligned there is here.
  const size_t shift = reinterpret_cast<uintptr_t>(host) % 256;
  CudaMemory memory(bytes + shift, stream_);
  char *const data = static_cast<char *>(memory.data()) + shift;
  copy_to_cuda(data, host, bytes, stream_);
  pieces_.push_back({host, std::move(memory), MutableTensorView()});
  return at<TensorView>(view, data + guard_ + reach.before);
}

MutableTensorView StagedAttend::upload_output(const MutableTensorView &view) {
  const TensorView uploaded = upload(view);
  if (view.empty() || view.num_elements() == 0) return view;
  pieces_.back().output = view;
  return at<MutableTensorView>(view, const_cast<void *>(uploaded.data()));
}

void StagedAttend::download(bool all) {
  synchronize(stream_);
  for (Piece &piece : pieces_) {
    if (!all && piece.output.empty()) continue;
    const size_t shift = reinterpret_cast<uintptr_t>(piece.host) % 256, bytes = piece.memory.size() - shift;
    if (all) {
      copy_from_cuda(piece.host, static_cast<char *>(piece.memory.data()) + shift, bytes, stream_);
      continue;
    }
    // What lies between the elements may be the caller's.
    std::vector<char> copied(bytes);
    copy_from_cuda(copied.data(), static_cast<char *>(piece.memory.data()) + shift, bytes, stream_);
    copy(at<TensorView>(piece.output, copied.data() + (piece.output.as<char>() - piece.host)), piece.output);
  }
}

void attend_staged(const AttendArgs &host, const CudaStream &stream) {
  StagedAttend staged(host, stream);
  attend(staged.args(), stream);
  staged.download();
}

}  // namespace posattn
