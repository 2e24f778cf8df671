#include "runtime/layers/attention_call.h"

#include <cmath>

#include "runtime/error.h"
#include "runtime/layers/addend.h"
#include "runtime/layers/position_rows.h"
#include "runtime/rotary.h"

namespace posattn {
namespace {

void check_shape(const char *name, const TensorView &view, DType type, std::initializer_list<int64_t> shape) {
  bool same = !view.empty() && view.rank() == static_cast<int>(shape.size());
  std::string expected;
  int dim = 0;
  for (int64_t size : shape) {
    same = same && view.size(dim) == size;
    expected += (dim++ ? ", " : "(") + std::to_string(size);
  }
  if (!same) fail(name, ": expected ", expected, "), got ", view.empty() ? "nothing" : view.shape_text());
  if (view.dtype() != type) fail(name, ": expected ", name_of(type), ", got ", name_of(view.dtype()));
}

void check_stream(const char *name, const TensorView &view, DType type, int64_t batch, int64_t channels) {
  if (view.empty() || view.rank() != 3) {
    fail(name, ": expected (B, T, ", channels, "), got ", view.empty() ? "nothing" : view.shape_text());
  }
  check_shape(name, view, type, {batch, view.size(1), channels});
  if (view.stride(2) != 1 && view.size(2) > 1) fail(name, ": expected a contiguous last dimension");
}

// Takes back what a call appended, unless it succeeded.
class Append {
 public:
  explicit Append(KvCache *cache) : cache_(cache), length_(cache ? cache->length() : 0) {}
  ~Append() {
    if (cache_) cache_->truncate(length_);
  }
  void keep() { cache_ = nullptr; }

 private:
  KvCache *cache_;
  int64_t length_;
};

}  // namespace

AttentionCall::AttentionCall(const LayerParts &layer, const ForwardArgs &args, const ForwardOutputs &outputs)
    : layer_(layer), args_(args), outputs_(outputs) {
  check_streams();
  check_cache();
  check_positions_and_bias();
  check_outputs();
}

void AttentionCall::check_streams() {
  const LayerDims &dims = layer_.dims;
  const TensorView &query = args_.query, &key = args_.key, &value = args_.value;
  batch_ = !query.empty() && query.rank() == 3 ? query.size(0) : 0;
  check_stream("query", query, dims.type, batch_, dims.embed);
  queries_ = query.size(1);
  cached_ = args_.cache ? args_.cache->length() : 0;
  if (key.empty() && value.empty() && args_.cache) return;
  check_stream("key", key, dims.type, batch_, dims.key);
  check_stream("value", value, dims.type, batch_, dims.value);
  fresh_ = key.size(1);
  if (value.size(1) != fresh_) {
    fail("value: expected ", fresh_, " tokens as in key, got ", value.shape_text());
  }
}

void AttentionCall::check_cache() const {
  const KvCache *cache = args_.cache;
  const LayerDims &dims = layer_.dims;
  if (!cache) return;
  if (cache->batch() != batch_ || cache->kv_heads() != dims.kv_heads || cache->head_dim() != dims.head_dim ||
      cache->value_dim() != dims.head_dim || cache->dtype() != dims.type) {
    fail("cache: expected batch ", batch_, ", ", dims.kv_heads, " heads of ", dims.head_dim, " in ",
         name_of(dims.type), ", got batch ", cache->batch(), ", ", cache->kv_heads(), " heads of ",
         cache->head_dim(), " and ", cache->value_dim(), " in ", name_of(cache->dtype()));
  }
  if (cached_ + fresh_ > cache->capacity()) {
    fail("cache: full: ", cached_, " of ", cache->capacity(), " tokens are taken, ", fresh_,
         " more do not fit");
  }
}

void AttentionCall::check_positions_and_bias() const {
  const int64_t keys = cached_ + fresh_;
  check_positions(args_.q_positions, "q_positions", batch_, queries_);
  check_positions(args_.k_positions, "k_positions", batch_, keys);
  check_position_mask(args_.q_position_mask, "q_position_mask", batch_, queries_);
  check_position_mask(args_.k_position_mask, "k_position_mask", batch_, keys);
  if (!args_.dense_bias.empty() && !layer_.positions.dense().empty()) {
    fail("dense_bias: this layer has one already");
  }
}

void AttentionCall::check_outputs() const {
  const LayerDims &dims = layer_.dims;
  check_shape("out", outputs_.out, dims.type, {batch_, queries_, dims.embed});
  const int64_t columns = cached_ + fresh_ + layer_.extra.count();
  if (args_.need_weights == Weights::heads) {
    check_shape("weights", outputs_.weights, dims.type, {batch_, dims.heads, queries_, columns});
  } else if (args_.need_weights == Weights::mean) {
    check_shape("weights", outputs_.weights, dims.type, {batch_, queries_, columns});
  }
  if (args_.need_lse || !outputs_.lse.empty()) {
    check_shape("lse", outputs_.lse, DType::f32, {batch_, dims.heads, queries_});
  }
}

void AttentionCall::run(Scratch &scratch) {
  scratch.reset();
  const Projected projected = project(scratch);
  Append append(fresh_ ? args_.cache : nullptr);
  set_query(projected, scratch);
  set_keys(projected, scratch);
  const MutableTensorView mixed = scratch.take(layer_.dims.type, {batch_, queries_, layer_.dims.embed});
  set_outputs(mixed, scratch);
  set_options();
  const size_t workspace = attend_workspace_size(attention_);
  attend(attention_, scratch.take_bytes(workspace), workspace);
  if (layer_.extra.count()) merge_extra_keys();
  if (mixed.num_elements() > 0) layer_.out.forward(mixed, outputs_.out);
  append.keep();
}

Projected AttentionCall::project(Scratch &scratch) const {
  Streams streams{args_.query, args_.key, args_.value, {}, {}};
  const PositionEncoder *encoder = layer_.positions.encoder();
  if (encoder) {
    const int64_t first_query = fresh_ ? cached_ : 0;
    streams.query_addend = addend(*encoder, args_.q_positions, args_.q_position_mask, first_query, batch_,
                                  queries_, "q_positions", scratch);
    const TensorView positions = last_columns(args_.k_positions, fresh_);
    const TensorView mask = last_columns(args_.k_position_mask, fresh_);
    const bool same = same_view(args_.query, args_.key) && same_view(args_.q_positions, positions) &&
                      same_view(args_.q_position_mask, mask);
    if (same) {
      streams.key_addend = streams.query_addend;
    } else if (fresh_) {
      streams.key_addend = addend(*encoder, positions, mask, cached_, batch_, fresh_, "k_positions", scratch);
    }
  }
  return layer_.in.project(streams, scratch);
}

MutableTensorView AttentionCall::rotated(const TensorView &x, int64_t heads, const TensorView &positions,
                                         const TensorView &mask, Scratch &scratch) const {
  const int64_t channels = heads * layer_.dims.head_dim;
  const MutableTensorView y = scratch.take(layer_.dims.type, {x.size(0), x.size(1), channels}).heads(heads);
  rotate(*layer_.positions.rope(), x.heads(heads), positions, mask, y);
  return y;
}

void AttentionCall::set_query(const Projected &projected, Scratch &scratch) {
  TensorView positions = args_.q_positions;
  // Queries that continue a cached sequence count on from its end.
  if (positions.empty() && uses_positions() && fresh_ && cached_) {
    positions = counting(cached_, queries_, scratch);
  }
  if (uses_positions()) {
    attention_.q_positions = positions;
    attention_.k_positions = args_.k_positions;
    attention_.q_position_mask = args_.q_position_mask;
    attention_.k_position_mask = args_.k_position_mask;
  }
  if (rotates_first()) {
    attention_.query = rotated(projected.query, layer_.dims.heads, positions, args_.q_position_mask, scratch);
  } else {
    attention_.query = projected.query.heads(layer_.dims.heads);
    attention_.rope = layer_.positions.rope();
  }
}

void AttentionCall::set_keys(const Projected &projected, Scratch &scratch) {
  attention_.cache = args_.cache;
  if (args_.cache && !fresh_) return;
  const int64_t heads = layer_.dims.kv_heads;
  TensorView key = projected.key.heads(heads);
  const TensorView value = projected.value.heads(heads);
  if (layer_.positions.rope() && (args_.cache || rotates_first())) {
    TensorView positions = last_columns(args_.k_positions, fresh_);
    if (positions.empty()) positions = counting(cached_, fresh_, scratch);
    key = rotated(projected.key, heads, positions, last_columns(args_.k_position_mask, fresh_), scratch);
  }
  if (args_.cache) {
    args_.cache->append(key, value);
  } else {
    attention_.key = key;
    attention_.value = value;
  }
}

void AttentionCall::set_outputs(const MutableTensorView &mixed, Scratch &scratch) {
  const LayerDims &dims = layer_.dims;
  attention_.out = mixed.heads(dims.heads);
  attention_.lse = outputs_.lse;
  attention_.need_weights = args_.need_weights;
  attention_.weights = outputs_.weights;
  const int64_t extra = layer_.extra.count(), keys = cached_ + fresh_;
  if (!extra) return;
  // Merging reads each row's sum of exponentials, and each head's weights.
  if (outputs_.lse.empty()) attention_.lse = scratch.take(DType::f32, {batch_, dims.heads, queries_});
  if (args_.need_weights == Weights::none) return;
  all_weights_ = args_.need_weights == Weights::heads
                     ? outputs_.weights
                     : scratch.take(dims.type, {batch_, dims.heads, queries_, keys + extra});
  attention_.need_weights = Weights::heads;
  attention_.weights = all_weights_.slice(3, 0, keys);
}

void AttentionCall::set_options() {
  attention_.scale = args_.scale;
  attention_.softcap = args_.softcap;
  attention_.causal = args_.causal;
  attention_.window_left = args_.window_left;
  attention_.window_right = args_.window_right;
  attention_.keep_mask = args_.keep_mask;
  attention_.block_mask = args_.block_mask;
  attention_.add_mask = args_.add_mask;
  attention_.dense_bias = args_.dense_bias.empty() ? layer_.positions.dense() : args_.dense_bias;
  attention_.key_keep_mask = args_.key_keep_mask;
  attention_.key_block_mask = args_.key_block_mask;
  attention_.key_add_mask = args_.key_add_mask;
  attention_.key_lengths = args_.key_lengths;
  size_t branch = 0;
  for (const auto &logit : layer_.positions.logit_branches()) attention_.branches[branch++] = logit.get();
}

void AttentionCall::merge_extra_keys() const {
  const float scale = args_.scale.value_or(1 / std::sqrt(static_cast<float>(layer_.dims.head_dim)));
  layer_.extra.merge(attention_.query, scale, args_.softcap, attention_.out, attention_.lse, all_weights_);
  if (args_.need_weights == Weights::mean) mean_over_heads(all_weights_, outputs_.weights);
}

}  // namespace posattn
