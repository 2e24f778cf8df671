// The steps of a layer's call on a GPU.
#pragma once

#include "runtime/cuda/layer_weights.h"
#include "runtime/workspace.h"

namespace posattn::cuda {

// What a call of `layer` with these weights does on a stream, in memory that it is given; or how much memory
// that is.
class CudaSteps : public LayerSteps {
 public:
  // memory: null to measure only, when nothing is launched and no address looked at.
  CudaSteps(const PlacedLayer &layer, const LayerMemory &weights, const CudaStream &stream,
            const Scope &scope, void *memory);
  int64_t memory_taken() const { return workspace_.size(); }

  bool on_host() const override { return false; }
  void check_memory(const char *name, const TensorView &view) const override;
  void check_cache(const KvCacheBase &cache) const override;
  MutableTensorView take(DType type, std::initializer_list<int64_t> shape) override;
  TensorView counting(int64_t first, int64_t count) override;
  TensorView encode(const TokenArgs &tokens, int64_t batch, int64_t count, const char *what) override;
  void project(int first, int last, const TensorView &x, const TensorView &addend,
               const MutableTensorView &y) override;
  void project_out(const TensorView &x, const MutableTensorView &y) override;
  void rotate(const TensorView &x, const TokenArgs &tokens, const MutableTensorView &y) override;
  void append(KvCacheBase &cache, const TensorView &key, const TensorView &value,
              const TokenArgs *rotation) override;
  // Queries and keys that attend() rotates are of one call.
  bool rotates_before_cache() const override { return false; }
  void attend(AttendArgs &args, const KvCacheBase *cache, int64_t length) override;
  void merge_extra_keys(const AttendArgs &args, float scale, const MutableTensorView &weights,
                        const MutableTensorView &mean) override;

 private:
  TensorView spread_out(const TensorView &x);
  // y = x W^T + b of a map's output features [begin, end).
  void multiply(const CudaLinear &map, int64_t begin, int64_t end, const TensorView &x,
                const MutableTensorView &y);

  const PlacedLayer &layer_;
  const LayerMemory &weights_;
  const CudaStream &stream_;
  const Scope &scope_;
  const bool runs_;
  Workspace workspace_;
  Launch launch_;
  void *blas_workspace_;
  // What products split their inputs into, one after the other.
  void *split_ = nullptr;
  int64_t split_size_ = 0;
};

}  // namespace posattn::cuda
