// Caches, layers and scratch memory.
#include "runtime/c_api/handles.h"

#include <string>
#include <vector>

#include "runtime/c_api/arguments.h"
#include "runtime/c_api/status.h"
#include "runtime/cuda/layers.h"

namespace posattn::c_api {
namespace {

// "relative+rope" -> both.
std::vector<std::string> split(const char *joined) {
  std::vector<std::string> names;
  std::string rest = joined ? joined : "none";
  for (size_t plus; (plus = rest.find('+')) != std::string::npos; rest.erase(0, plus + 1)) {
    names.push_back(rest.substr(0, plus));
  }
  names.push_back(rest);
  return names;
}

LayerOptions layer_options(const posattn_layer_options &options) {
  LayerOptions result;
  result.num_heads = options.num_heads;
  result.num_kv_heads = options.num_kv_heads;
  if (options.dtype != -1) result.dtype = dtype_of(options.dtype, "dtype");
  result.add_zero_attn = options.add_zero_attn != 0;
  return result;
}

PositionOptions position_options(const posattn_layer_options &options) {
  PositionOptions result;
  result.relative_sign = sign_of(options.relative_sign);
  result.rope_layout = rope_layout_of(options.rope_layout);
  result.rope_base = options.rope_base;
  result.rope_dim = options.rope_dim;
  result.t5_max_distance = options.t5_max_distance;
  result.t5_bidirectional = options.t5_bidirectional != 0;
  result.sinusoidal_layout =
      options.sinusoidal_halves ? SinusoidalEncoder::Layout::halves : SinusoidalEncoder::Layout::interleaved;
  result.sinusoidal_base = options.sinusoidal_base;
  return result;
}

// A call with what it points at.
struct Forward {
  Forward(const posattn_layer &layer, const posattn_forward_args &given) {
    args.query = view_of(given.query, "query");
    args.key = view_of(given.key, "key");
    args.value = view_of(given.value, "value");
    apply(given.options, args);
    args.need_lse = !view_of(given.lse, "lse").empty();
    if (given.cache) args.cache = given.cache->cache.get();
    if (given.scratch) args.scratch = &given.scratch->scratch;
    cuda.stream.handle = given.stream;
    cuda.workspace = given.workspace;
    cuda.workspace_size = given.workspace_size;
    if (layer.on_cuda) args.cuda = &cuda;
  }
  Forward(const Forward &) = delete;
  Forward &operator=(const Forward &) = delete;

  CudaCall cuda;
  ForwardArgs args;
};

}  // namespace
}  // namespace posattn::c_api

using posattn::c_api::guarded;
using posattn::c_api::required;
using posattn::c_api::view_of;

extern "C" {

posattn_status posattn_cache_create(int64_t batch, int64_t kv_heads, int64_t head_dim, int64_t value_dim,
                                    int64_t capacity, posattn_dtype dtype, posattn_cache **cache) {
  return guarded([&] {
    required(cache, "cache");
    const posattn::DType type = posattn::c_api::dtype_of(dtype, "dtype");
    *cache = new posattn_cache{
        std::make_unique<posattn::KvCache>(batch, kv_heads, head_dim, value_dim, capacity, type)};
  });
}

posattn_status posattn_cache_create_for_layer(const posattn_layer *layer, int64_t batch, int64_t capacity,
                                              posattn_cache **cache) {
  return guarded([&] {
    required(cache, "cache");
    *cache = new posattn_cache{required(layer, "layer").layer.make_cache(batch, capacity)};
  });
}

posattn_status posattn_cache_create_int8(int64_t batch, int64_t kv_heads, int64_t head_dim, int64_t value_dim,
                                         int64_t capacity, posattn_dtype dtype, posattn_cache **cache) {
  return guarded([&] {
    required(cache, "cache");
    const posattn::DType type = posattn::c_api::dtype_of(dtype, "dtype");
    *cache = new posattn_cache{std::make_unique<posattn::KvCache>(
        batch, kv_heads, head_dim, value_dim, capacity, type, posattn::CacheFormat::int8)};
  });
}

posattn_status posattn_cache_create_int8_for_layer(const posattn_layer *layer, int64_t batch,
                                                   int64_t capacity, posattn_cache **cache) {
  return guarded([&] {
    required(cache, "cache");
    *cache = new posattn_cache{
        required(layer, "layer").layer.make_cache(batch, capacity, posattn::CacheFormat::int8)};
  });
}

void posattn_cache_free(posattn_cache *cache) { delete cache; }

int64_t posattn_cache_length(const posattn_cache *cache) { return cache ? cache->cache->length() : 0; }

int64_t posattn_cache_capacity(const posattn_cache *cache) { return cache ? cache->cache->capacity() : 0; }

posattn_status posattn_cache_append(posattn_cache *cache, const posattn_tensor *key,
                                    const posattn_tensor *value) {
  return guarded(
      [&] { required(cache, "cache").cache->append(view_of(key, "key"), view_of(value, "value")); });
}

posattn_status posattn_cache_reorder(posattn_cache *cache, const posattn_tensor *source_rows) {
  return guarded([&] { required(cache, "cache").cache->reorder(view_of(source_rows, "source_rows")); });
}

posattn_status posattn_cache_truncate(posattn_cache *cache, int64_t length) {
  return guarded([&] { required(cache, "cache").cache->truncate(length); });
}

void posattn_layer_options_init(posattn_layer_options *options) {
  const posattn::PositionOptions defaults;
  *options = {};
  options->rope_base = defaults.rope_base;
  options->t5_max_distance = defaults.t5_max_distance;
  options->t5_bidirectional = defaults.t5_bidirectional;
  options->sinusoidal_base = defaults.sinusoidal_base;
  options->dtype = -1;
}

posattn_status posattn_layer_load(const char *path, const char *prefix, const posattn_layer_options *options,
                                  posattn_layer **layer) {
  return guarded([&] {
    required(path, "path");
    required(layer, "layer");
    const posattn_layer_options &given = required(options, "options");
    const posattn::SafeTensors file = posattn::SafeTensors::open(path);
    const bool on_cuda = posattn::c_api::is_cuda(given.device);
    const posattn::CudaDevice gpu({given.stream, 0});
    posattn::LayerOptions layer_options = posattn::c_api::layer_options(given);
    if (on_cuda) layer_options.device = &gpu;
    *layer = new posattn_layer{posattn::CombinedAttention::load(file, prefix ? prefix : "", layer_options,
                                                                posattn::c_api::split(given.positions),
                                                                posattn::c_api::position_options(given)),
                               on_cuda};
  });
}

void posattn_layer_free(posattn_layer *layer) { delete layer; }

posattn_status posattn_layer_describe(const posattn_layer *layer, posattn_layer_info *info) {
  return guarded([&] {
    const posattn::AttentionLayer &it = required(layer, "layer").layer;
    required(info, "info") = {
        it.embed_dim(),    it.key_dim(),  it.value_dim(),  it.num_heads(),
        it.num_kv_heads(), it.head_dim(), it.extra_keys(), static_cast<int>(it.dtype())};
  });
}

posattn_status posattn_scratch_create(posattn_scratch **scratch) {
  return guarded([&] { required(scratch, "scratch") = new posattn_scratch; });
}

void posattn_scratch_free(posattn_scratch *scratch) { delete scratch; }

void posattn_forward_args_init(posattn_forward_args *args) {
  *args = {};
  args->options.window_left = args->options.window_right = -1;
}

posattn_status posattn_layer_forward(const posattn_layer *layer, const posattn_forward_args *args) {
  return guarded([&] {
    const posattn_layer &it = required(layer, "layer");
    const posattn_forward_args &given = required(args, "args");
    const posattn::c_api::Forward forward(it, given);
    using posattn::c_api::mutable_view_of;
    it.layer.forward_into(forward.args,
                          {mutable_view_of(given.out, "out"), mutable_view_of(given.weights, "weights"),
                           mutable_view_of(given.lse, "lse")});
  });
}

posattn_status posattn_layer_workspace_size(const posattn_layer *layer, const posattn_forward_args *args,
                                            size_t *size) {
  return guarded([&] {
    const posattn_layer &it = required(layer, "layer");
    const posattn::c_api::Forward forward(it, required(args, "args"));
    required(size, "size") = it.layer.workspace_size(forward.args);
  });
}

}  // extern "C"
