// Layers on the CPU.
#include "runtime/error.h"
#include "runtime/layers/addend.h"
#include "runtime/layers/attention_call.h"
#include "runtime/layers/extra_keys.h"
#include "runtime/layers/position_rows.h"
#include "runtime/rotary.h"

namespace posattn {
namespace {

class CpuLayer : public PlacedLayer {
 public:
  CpuLayer(const LayerWeights &weights, const LayerDims &dims, bool add_zero_attn, PositionSet positions)
      : PlacedLayer(std::move(positions)),
        in_(weights, dims.type),
        out_(stacked({{weights.out, weights.out_bias}}, dims.type)),
        extra_(weights.bias_k, weights.bias_v, add_zero_attn, dims.kv_heads, dims.type) {
    facts_.dims = dims;
    facts_.encodes = positions_.encoder() != nullptr;
    facts_.rope = positions_.rope();
    facts_.dense = positions_.dense();
    for (const auto &branch : positions_.logit_branches()) facts_.branches.push_back(branch.get());
    facts_.extra_keys = extra_.count();
  }

  void forward_into(const ForwardArgs &args, const ForwardOutputs &outputs) const override;
  void forward_from_host(const ForwardArgs &args, const ForwardOutputs &outputs) const override {
    forward_into(args, outputs);
  }
  size_t workspace_size(const ForwardArgs &) const override { return 0; }
  std::unique_ptr<KvCacheBase> make_cache(int64_t batch, int64_t capacity,
                                          CacheFormat format) const override {
    const LayerDims &d = facts_.dims;
    return std::make_unique<KvCache>(batch, d.kv_heads, d.head_dim, d.head_dim, capacity, d.type, format);
  }

 private:
  friend class CpuSteps;
  Projections in_;
  Linear out_;
  ExtraKeys extra_;
};

class CpuSteps : public LayerSteps {
 public:
  CpuSteps(const CpuLayer &layer, Scratch &scratch) : layer_(layer), scratch_(scratch) { scratch.reset(); }

  bool on_host() const override { return true; }
  void check_memory(const char *, const TensorView &) const override {}
  void check_cache(const KvCacheBase &cache) const override {
    if (!dynamic_cast<const KvCache *>(&cache)) fail("cache: expected one in the host's memory");
  }

  MutableTensorView take(DType type, std::initializer_list<int64_t> shape) override {
    return scratch_.take(type, shape);
  }
  TensorView counting(int64_t first, int64_t count) override {
    return posattn::counting(first, count, scratch_);
  }
  TensorView encode(const TokenArgs &tokens, int64_t batch, int64_t count, const char *what) override {
    return addend(*layer_.positions_.encoder(), tokens.positions, tokens.mask, tokens.first, batch, count,
                  what, scratch_);
  }
  void project(int first, int last, const TensorView &x, const TensorView &addend,
               const MutableTensorView &y) override {
    layer_.in_.forward(first, last, x, addend, y);
  }
  void project_out(const TensorView &x, const MutableTensorView &y) override { layer_.out_.forward(x, y); }
  void rotate(const TensorView &x, const TokenArgs &tokens, const MutableTensorView &y) override {
    TensorView positions = tokens.positions;
    if (positions.empty() && tokens.first) positions = counting(tokens.first, x.size(2));
    posattn::rotate(*layer_.facts_.rope, x, positions, tokens.mask, y);
  }
  void append(KvCacheBase &cache, const TensorView &key, const TensorView &value,
              const TokenArgs *rotation) override {
    if (!rotation) return cache.append(key, value);
    const int64_t channels = key.size(1) * key.size(3);
    const MutableTensorView rotated =
        take(key.dtype(), {key.size(0), key.size(2), channels}).heads(key.size(1));
    rotate(key, *rotation, rotated);
    cache.append(rotated, value);
  }
  bool rotates_before_cache() const override { return true; }
  void attend(AttendArgs &args, const KvCacheBase *cache, int64_t) override {
    args.cache = static_cast<const KvCache *>(cache);
    const size_t workspace = attend_workspace_size(args);
    posattn::attend(args, scratch_.take_bytes(workspace), workspace);
  }
  void merge_extra_keys(const AttendArgs &args, float scale, const MutableTensorView &weights,
                        const MutableTensorView &mean) override {
    layer_.extra_.merge(args.query, scale, args.softcap, args.out, args.lse, weights);
    if (!mean.empty()) mean_over_heads(weights, mean);
  }

 private:
  const CpuLayer &layer_;
  Scratch &scratch_;
};

void CpuLayer::forward_into(const ForwardArgs &args, const ForwardOutputs &outputs) const {
  if (args.cuda) fail("cuda: expected none, this layer is on the CPU");
  Scratch own;
  CpuSteps steps(*this, args.scratch ? *args.scratch : own);
  AttentionCall(facts_, args, outputs, steps).run(steps);
}

}  // namespace

std::shared_ptr<const PlacedLayer> place_on_cpu(const LayerWeights &weights, const LayerDims &dims,
                                                bool add_zero_attn, PositionSet positions) {
  return std::make_shared<const CpuLayer>(weights, dims, add_zero_attn, std::move(positions));
}

}  // namespace posattn
