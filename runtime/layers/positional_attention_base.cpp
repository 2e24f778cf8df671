#include "runtime/layers/positional_attention_base.h"

#include "runtime/error.h"

namespace posattn {

ForwardResult PositionalAttentionBase::forward(const ForwardArgs &args) const {
  if (args.query.empty() || args.query.rank() != 3) {
    fail("query: expected (B, T, E), got ", args.query.empty() ? "nothing" : args.query.shape_text());
  }
  const int64_t batch = args.query.size(0), queries = args.query.size(1);
  int64_t keys = extra_keys();
  if (args.cache) keys += args.cache->length();
  if (!args.key.empty()) {
    if (args.key.rank() != 3) fail("key: expected (B, T, E), got ", args.key.shape_text());
    keys += args.key.size(1);
  }
  ForwardResult result;
  ForwardOutputs outputs;
  result.out = Tensor(dtype(), {batch, queries, embed_dim()});
  outputs.out = result.out;
  if (args.need_weights != Weights::none) {
    result.weights = args.need_weights == Weights::mean
                         ? Tensor(dtype(), {batch, queries, keys})
                         : Tensor(dtype(), {batch, num_heads(), queries, keys});
    outputs.weights = result.weights;
  }
  if (args.need_lse) {
    result.lse = Tensor(DType::f32, {batch, num_heads(), queries});
    outputs.lse = result.lse;
  }
  forward_from_host(args, outputs);
  return result;
}

std::unique_ptr<KvCacheBase> PositionalAttentionBase::make_cache(int64_t batch, int64_t capacity,
                                                                 CacheFormat format) const {
  return std::make_unique<KvCache>(batch, num_kv_heads(), head_dim(), head_dim(), capacity, dtype(), format);
}

}  // namespace posattn
