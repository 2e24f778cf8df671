// What the opaque handles of posattn.h hold.
#pragma once

#include <memory>

#include "runtime/c_api/posattn.h"
#include "runtime/kv_cache.h"
#include "runtime/layers/layers.h"
#include "runtime/layers/scratch.h"

struct posattn_cache {
  std::unique_ptr<posattn::KvCacheBase> cache;
};

struct posattn_layer {
  posattn::CombinedAttention layer;
  bool on_cuda;
};

struct posattn_scratch {
  posattn::Scratch scratch;
};
