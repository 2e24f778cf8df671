// What of a layer depends on where it is: its weights' memory, and the steps of its calls. attention_call.h
// says which steps a call takes, in what order and on what; it is the same everywhere.
#pragma once

#include <memory>
#include <vector>

#include "runtime/layers/layer_dims.h"

namespace posattn {

// Positions of the tokens of one side, and their mask; positions that are not given are first, first + 1, ...
struct TokenArgs {
  TensorView positions, mask;
  int64_t first = 0;
};

// A layer as AttentionCall knows it; tensors lie where the layer is.
struct LayerFacts {
  LayerDims dims;
  bool encodes = false;  // adds positions to the query and key streams
  const Rope *rope = nullptr;
  TensorView dense;
  std::vector<const LogitBranch *> branches;
  int extra_keys = 0;
};

// Of one call. Views are of memory where the layer is.
class LayerSteps {
 public:
  virtual ~LayerSteps() = default;

  // Whether arguments may be read to check what they hold.
  virtual bool on_host() const = 0;
  // That memory is where the layer is. Throws Error.
  virtual void check_memory(const char *name, const TensorView &view) const = 0;
  virtual void check_cache(const KvCacheBase &cache) const = 0;

  // Memory for the rest of the call, not initialised.
  virtual MutableTensorView take(DType type, std::initializer_list<int64_t> shape) = 0;
  virtual TensorView counting(int64_t first, int64_t count) = 0;  // positions first, first + 1, ...
  // What the layer's encoder adds to a stream: f32, broadcasts to (batch, tokens, E). `what` names positions.
  virtual TensorView encode(const TokenArgs &tokens, int64_t batch, int64_t count, const char *what) = 0;
  // y = (x + addend) W^T + b with the stacked rows of query, key and value, of which parts [first, last).
  virtual void project(int first, int last, const TensorView &x, const TensorView &addend,
                       const MutableTensorView &y) = 0;
  virtual void project_out(const TensorView &x, const MutableTensorView &y) = 0;
  virtual void rotate(const TensorView &x, const TokenArgs &tokens, const MutableTensorView &y) = 0;
  // key is rotated first if `rotation` is given.
  virtual void append(KvCacheBase &cache, const TensorView &key, const TensorView &value,
                      const TokenArgs *rotation) = 0;
  // Whether attend() rotates a query before cached keys (which are rotated already), or wants it rotated.
  virtual bool rotates_before_cache() const = 0;
  // With a cache in place of key and value, of which it sees `length` tokens.
  virtual void attend(AttendArgs &args, const KvCacheBase *cache, int64_t length) = 0;
  // args as attend() left them: keys that every query sees are merged into what it wrote. weights: empty, or
  // with columns for them; mean: over heads, where that is asked for.
  virtual void merge_extra_keys(const AttendArgs &args, float scale, const MutableTensorView &weights,
                                const MutableTensorView &mean) = 0;
};

// A layer with its weights where its calls run. Immutable.
class PlacedLayer {
 public:
  explicit PlacedLayer(PositionSet positions) : positions_(std::move(positions)) {}
  virtual ~PlacedLayer() = default;
  PlacedLayer(const PlacedLayer &) = delete;
  PlacedLayer &operator=(const PlacedLayer &) = delete;

  const LayerFacts &facts() const { return facts_; }
  const PositionSet &positions() const { return positions_; }  // on the host

  // As PositionalAttentionBase has them.
  virtual void forward_into(const ForwardArgs &args, const ForwardOutputs &outputs) const = 0;
  virtual void forward_from_host(const ForwardArgs &args, const ForwardOutputs &outputs) const = 0;
  virtual size_t workspace_size(const ForwardArgs &args) const = 0;
  virtual std::unique_ptr<KvCacheBase> make_cache(int64_t batch, int64_t capacity,
                                                  CacheFormat format) const = 0;

 protected:
  PositionSet positions_;
  LayerFacts facts_;
};

// Where layers are made: see LayerOptions.
class LayerDevice {
 public:
  virtual ~LayerDevice() = default;
  virtual std::shared_ptr<const PlacedLayer> place(const LayerWeights &weights, const LayerDims &dims,
                                                   bool add_zero_attn, PositionSet positions) const = 0;
};

std::shared_ptr<const PlacedLayer> place_on_cpu(const LayerWeights &weights, const LayerDims &dims,
                                                bool add_zero_attn, PositionSet positions);

}  // namespace posattn
