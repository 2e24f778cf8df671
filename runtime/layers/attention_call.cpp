#include "runtime/layers/attention_call.h"

#include <cmath>

#include "runtime/error.h"
#include "runtime/layers/position_rows.h"

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
  explicit Append(KvCacheBase *cache) : cache_(cache), length_(cache ? cache->length() : 0) {}
  ~Append() {
    if (cache_) cache_->truncate(length_);
  }
  void keep() { cache_ = nullptr; }

 private:
  KvCacheBase *cache_;
  int64_t length_;
};

}  // namespace

AttentionCall::AttentionCall(const LayerFacts &layer, const ForwardArgs &args, const ForwardOutputs &outputs,
                             const LayerSteps &steps)
    : layer_(layer), args_(args), outputs_(outputs) {
  check_streams();
  check_cache(steps);
  check_positions_and_bias(steps);
  check_outputs();
  check_memory(steps);
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

void AttentionCall::check_cache(const LayerSteps &steps) const {
  const KvCacheBase *cache = args_.cache;
  const LayerDims &dims = layer_.dims;
  if (!cache) return;
  steps.check_cache(*cache);
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

void AttentionCall::check_positions_and_bias(const LayerSteps &steps) const {
  const int64_t keys = cached_ + fresh_;
  const bool values = steps.on_host();
  check_positions(args_.q_positions, "q_positions", batch_, queries_, values);
  check_positions(args_.k_positions, "k_positions", batch_, keys, values);
  check_position_mask(args_.q_position_mask, "q_position_mask", batch_, queries_);
  check_position_mask(args_.k_position_mask, "k_position_mask", batch_, keys);
  if (!args_.dense_bias.empty() && !layer_.dense.empty()) {
    fail("dense_bias: this layer has one already");
  }
}

void AttentionCall::check_outputs() const {
  const LayerDims &dims = layer_.dims;
  check_shape("out", outputs_.out, dims.type, {batch_, queries_, dims.embed});
  const int64_t columns = cached_ + fresh_ + layer_.extra_keys;
  if (args_.need_weights == Weights::heads) {
    check_shape("weights", outputs_.weights, dims.type, {batch_, dims.heads, queries_, columns});
  } else if (args_.need_weights == Weights::mean) {
    check_shape("weights", outputs_.weights, dims.type, {batch_, queries_, columns});
  }
  if (args_.need_lse || !outputs_.lse.empty()) {
    check_shape("lse", outputs_.lse, DType::f32, {batch_, dims.heads, queries_});
  }
}

void AttentionCall::check_memory(const LayerSteps &steps) const {
  const std::pair<const char *, const TensorView &> used[] = {
      {"query", args_.query},
      {"key", args_.key},
      {"value", args_.value},
      {"out", outputs_.out},
      {"weights", outputs_.weights},
      {"lse", outputs_.lse},
      {"q_positions", args_.q_positions},
      {"k_positions", args_.k_positions},
      {"q_position_mask", args_.q_position_mask},
      {"k_position_mask", args_.k_position_mask},
      {"keep_mask", args_.keep_mask},
      {"block_mask", args_.block_mask},
      {"add_mask", args_.add_mask},
      {"dense_bias", args_.dense_bias},
      {"key_keep_mask", args_.key_keep_mask},
      {"key_block_mask", args_.key_block_mask},
      {"key_add_mask", args_.key_add_mask},
      {"key_lengths", args_.key_lengths},
  };
  for (const auto &[name, view] : used) {
    if (!view.empty() && view.num_elements() > 0) steps.check_memory(name, view);
  }
}

void AttentionCall::run(LayerSteps &steps) {
  const Projected projected = project(steps);
  Append append(fresh_ ? args_.cache : nullptr);
  set_query(projected, steps);
  set_keys(projected, steps);
  const MutableTensorView mixed = steps.take(layer_.dims.type, {batch_, queries_, layer_.dims.embed});
  set_outputs(mixed, steps);
  set_options();
  steps.attend(attention_, args_.cache, cached_ + fresh_);
  if (layer_.extra_keys) merge_extra_keys(steps);
  if (mixed.num_elements() > 0) steps.project_out(mixed, outputs_.out);
  append.keep();
}

Projected AttentionCall::project(LayerSteps &steps) const {
  Streams streams{args_.query, args_.key, args_.value, {}, {}};
  if (layer_.encodes) {
    const TokenArgs queries{args_.q_positions, args_.q_position_mask, fresh_ ? cached_ : 0};
    streams.query_addend = steps.encode(queries, batch_, queries_, "q_positions");
    const TokenArgs keys{last_columns(args_.k_positions, fresh_), last_columns(args_.k_position_mask, fresh_),
                         cached_};
    const bool same = same_view(args_.query, args_.key) && same_view(queries.positions, keys.positions) &&
                      same_view(queries.mask, keys.mask);
    if (same) {
      streams.key_addend = streams.query_addend;
    } else if (fresh_) {
      streams.key_addend = steps.encode(keys, batch_, fresh_, "k_positions");
    }
  }
  return posattn::project(streams, layer_.dims, steps);
}

void AttentionCall::set_query(const Projected &projected, LayerSteps &steps) {
  const int64_t heads = layer_.dims.heads;
  // Queries that continue a cached sequence count on from its end.
  TokenArgs tokens{args_.q_positions, args_.q_position_mask, fresh_ ? cached_ : 0};
  const bool rotates = rotates_first(steps), attend_needs = !rotates || !layer_.branches.empty();
  if (tokens.positions.empty() && uses_positions() && tokens.first && attend_needs) {
    tokens.positions = steps.counting(tokens.first, queries_);
  }
  if (uses_positions() && attend_needs) {
    attention_.q_positions = tokens.positions;
    attention_.k_positions = args_.k_positions;
    attention_.q_position_mask = args_.q_position_mask;
    attention_.k_position_mask = args_.k_position_mask;
  }
  attention_.query = projected.query.heads(heads);
  if (rotates) {
    const MutableTensorView y =
        steps.take(layer_.dims.type, {batch_, queries_, layer_.dims.embed}).heads(heads);
    steps.rotate(attention_.query, tokens, y);
    attention_.query = y;
  } else {
    attention_.rope = layer_.rope;
  }
}

void AttentionCall::set_keys(const Projected &projected, LayerSteps &steps) {
  if (args_.cache && !fresh_) return;
  const int64_t heads = layer_.dims.kv_heads;
  const TensorView key = projected.key.heads(heads), value = projected.value.heads(heads);
  const TokenArgs tokens{last_columns(args_.k_positions, fresh_), last_columns(args_.k_position_mask, fresh_),
                         cached_};
  if (args_.cache) {
    steps.append(*args_.cache, key, value, layer_.rope ? &tokens : nullptr);
    return;
  }
  attention_.key = key;
  attention_.value = value;
  if (rotates_first(steps)) {
    const MutableTensorView y =
        steps.take(layer_.dims.type, {batch_, fresh_, heads * layer_.dims.head_dim}).heads(heads);
    steps.rotate(key, tokens, y);
    attention_.key = y;
  }
}

void AttentionCall::set_outputs(const MutableTensorView &mixed, LayerSteps &steps) {
  const LayerDims &dims = layer_.dims;
  attention_.out = mixed.heads(dims.heads);
  attention_.lse = outputs_.lse;
  attention_.need_weights = args_.need_weights;
  attention_.weights = outputs_.weights;
  const int64_t extra = layer_.extra_keys, keys = cached_ + fresh_;
  if (!extra) return;
  // Merging reads each row's sum of exponentials, and each head's weights.
  if (outputs_.lse.empty()) attention_.lse = steps.take(DType::f32, {batch_, dims.heads, queries_});
  if (args_.need_weights == Weights::none) return;
  all_weights_ = args_.need_weights == Weights::heads
                     ? outputs_.weights
                     : steps.take(dims.type, {batch_, dims.heads, queries_, keys + extra});
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
  attention_.dense_bias = args_.dense_bias.empty() ? layer_.dense : args_.dense_bias;
  attention_.key_keep_mask = args_.key_keep_mask;
  attention_.key_block_mask = args_.key_block_mask;
  attention_.key_add_mask = args_.key_add_mask;
  attention_.key_lengths = args_.key_lengths;
  size_t branch = 0;
  for (const LogitBranch *logit : layer_.branches) attention_.branches[branch++] = logit;
}

void AttentionCall::merge_extra_keys(LayerSteps &steps) const {
  const float scale = args_.scale.value_or(1 / std::sqrt(static_cast<float>(layer_.dims.head_dim)));
  const bool mean = args_.need_weights == Weights::mean;
  steps.merge_extra_keys(attention_, scale, all_weights_, mean ? outputs_.weights : MutableTensorView());
}

}  // namespace posattn
