#include "runtime/kv_cache.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "runtime/cpu.h"
#include "runtime/dispatch.h"
#include "runtime/error.h"
#include "runtime/int8_rows.h"
#include "runtime/packed_buffers.h"

namespace posattn {
namespace {

int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// Whose form the cache takes: the one that packs, or where nothing is packed the one that reads.
const Kernel &layout_kernel(const char *kind, DType type, int64_t head_dim) {
  KernelQuery query;
  query.kind = kind;
  query.type = type;
  query.head_dim = head_dim;
  const TargetList targets = usable_targets();
  if (targets.size == 0) fail("cache: no kernel of this program runs on this machine");
  for (int i = 0; i < targets.size; ++i) {
    query.target = targets.targets[i];
    if (const Kernel *kernel = find_kernel(query)) return *kernel;
  }
  query.target = targets.targets[0];
  fail_no_kernel(query);
}

template <typename Word>
bool any_nonfinite(const Word *row, int64_t count, Word exponent) {
  Word found = 0;
  for (int64_t i = 0; i < count; ++i) found |= static_cast<Word>((row[i] & exponent) == exponent);
  return found != 0;
}

// Rows (b, h, t) whose last dimension is contiguous.
bool any_nonfinite(const TensorView &rows) {
  for (int64_t b = 0; b < rows.size(0); ++b) {
    for (int64_t h = 0; h < rows.size(1); ++h) {
      for (int64_t t = 0; t < rows.size(2); ++t) {
        const int64_t at = b * rows.stride(0) + h * rows.stride(1) + t * rows.stride(2), count = rows.size(3);
        const bool found = rows.dtype() == DType::f32
                               ? any_nonfinite<uint32_t>(rows.as<uint32_t>() + at, count, 0x7f800000u)
                               : any_nonfinite<uint16_t>(rows.as<uint16_t>() + at, count,
                                                         rows.dtype() == DType::bf16 ? 0x7f80u : 0x7c00u);
        if (found) return true;
      }
    }
  }
  return false;
}

}  // namespace

KvCache::KvCache(int64_t batch, int64_t kv_heads, int64_t head_dim, int64_t value_dim, int64_t capacity,
                 DType type, CacheFormat format)
    : KvCacheBase(batch, kv_heads, head_dim, value_dim, capacity, type), format_(format) {
  const bool int8 = format == CacheFormat::int8;
  const Kernel &kernel = layout_kernel(int8 ? "decode_i8" : "pack_keys", type, std::max(head_dim, value_dim));
  target_ = kernel.target;
  const int64_t lanes = cpu_target(target_).key_lanes;
  layout_ = int8 ? PackedLayout{lanes, kernel.info->head_dim, 1} : packed_layout(kernel, lanes);
  const int64_t tiles = round_up(capacity, layout_.lanes) / layout_.lanes;
  keys_ = Tensor(stored_type(), {batch, kv_heads, tiles, layout_.tile_size()});
  values_ = Tensor(stored_type(), {batch, kv_heads, tiles, layout_.tile_size()});
  if (!int8) return;
  key_scales_ = Tensor(DType::f32, {batch, kv_heads, tiles * layout_.lanes});
  value_scales_ = Tensor(DType::f32, {batch, kv_heads, tiles * layout_.lanes});
}

TensorView KvCache::packed_keys() const {
  return static_cast<const TensorView &>(keys_.view()).slice(2, 0, num_tiles());
}

TensorView KvCache::packed_values() const {
  return static_cast<const TensorView &>(values_.view()).slice(2, 0, num_tiles());
}

TensorView KvCache::key_scales() const {
  return static_cast<const TensorView &>(key_scales_.view()).slice(2, 0, num_tiles() * layout_.lanes);
}

TensorView KvCache::value_scales() const {
  return static_cast<const TensorView &>(value_scales_.view()).slice(2, 0, num_tiles() * layout_.lanes);
}

template <typename Index>
Tensor KvCache::rows_of(const Tensor &packed, const Tensor &scales, int64_t dim, const Index &index) const {
  Tensor rows(DType::f32, {batch_, kv_heads_, length_, dim});
  float *to = rows.as<float>();
  for (int64_t b = 0; b < batch_; ++b) {
    for (int64_t h = 0; h < kv_heads_; ++h) {
      const int64_t head = b * packed.view().stride(0) + h * packed.view().stride(1);
      for (int64_t t = 0; t < length_; ++t) {
        for (int64_t d = 0; d < dim; ++d) {
          const int64_t at = head + index(t, d);
          if (format_ == CacheFormat::int8) {
            *to++ = scales.as<float>()[b * scales.view().stride(0) + h * scales.view().stride(1) + t] *
                    static_cast<float>(packed.as<int8_t>()[at]);
          } else if (type_ == DType::f32) {
            *to++ = packed.as<float>()[at];
          } else {
            const uint16_t bits = packed.as<uint16_t>()[at];
            *to++ = type_ == DType::bf16 ? bf16_to_float(bits) : f16_to_float(bits);
          }
        }
      }
    }
  }
  return rows;
}

Tensor KvCache::key_rows() const {
  return rows_of(keys_, key_scales_, head_dim_,
                 [this](int64_t at, int64_t d) { return layout_.key_index(at, d); });
}

Tensor KvCache::value_rows() const {
  return rows_of(values_, value_scales_, value_dim_,
                 [this](int64_t at, int64_t d) { return layout_.value_index(at, d); });
}

template <typename Word>
void KvCache::append_rows(const TensorView &key, const TensorView &value) {
  const size_t tile_bytes = static_cast<size_t>(layout_.tile_size()) * sizeof(Word);
  const auto append = [&](Tensor &packed, const TensorView &rows, const auto &index) {
    for (int64_t b = 0; b < batch_; ++b) {
      for (int64_t h = 0; h < kv_heads_; ++h) {
        Word *to = packed.as<Word>() + b * packed.view().stride(0) + h * packed.view().stride(1);
        const Word *from = rows.as<Word>() + b * rows.stride(0) + h * rows.stride(1);
        for (int64_t t = 0; t < rows.size(2); ++t) {
          const int64_t at = length_ + t;
          // Whatever was here before a truncation.
          if (at % layout_.lanes == 0)
            std::memset(to + at / layout_.lanes * layout_.tile_size(), 0, tile_bytes);
          for (int64_t d = 0; d < rows.size(3); ++d) to[index(at, d)] = from[t * rows.stride(2) + d];
        }
      }
    }
  };
  append(keys_, key, [this](int64_t at, int64_t d) { return layout_.key_index(at, d); });
  append(values_, value, [this](int64_t at, int64_t d) { return layout_.value_index(at, d); });
}

void KvCache::append(const TensorView &key, const TensorView &value) {
  check_append(key, value);
  const int64_t tokens = key.size(2);
  if (tokens == 0 || batch_ == 0) {
    length_ += tokens;
    return;
  }
  if (format_ == CacheFormat::int8) return append_int8(key, value);
  const bool nonfinite = nonfinite_ || any_nonfinite(key) || any_nonfinite(value);
  // Single rows up to a whole tile, whole tiles, single rows again.
  const int64_t lanes = layout_.lanes, head = std::min(tokens, round_up(length_, lanes) - length_);
  const int64_t bulk = (tokens - head) / lanes * lanes;
  const auto add = [&](int64_t begin, int64_t end, bool tiles) {
    if (begin == end) return;
    const TensorView k = key.slice(2, begin, end), v = value.slice(2, begin, end);
    if (tiles) {
      append_tiles(k, v);
    } else if (type_ == DType::f32) {
      append_rows<uint32_t>(k, v);
    } else {
      append_rows<uint16_t>(k, v);
    }
    length_ += end - begin;
  };
  const int64_t before = length_;
  try {
    add(0, head, false);
    add(head, head + bulk, true);
    add(head + bulk, tokens, false);
  } catch (...) {
    truncate(before);
    throw;
  }
  nonfinite_ = nonfinite;
}

void KvCache::append_int8(const TensorView &key, const TensorView &value) {
  float numbers[kMaxHeadDim];
  int8_t row[kMaxHeadDim];
  const auto append = [&](const Tensor &packed, const Tensor &scales, const TensorView &rows,
                          const auto &index) {
    for (int64_t b = 0; b < batch_; ++b) {
      for (int64_t h = 0; h < kv_heads_; ++h) {
        int8_t *to = packed.as<int8_t>() + b * packed.view().stride(0) + h * packed.view().stride(1);
        float *scale = scales.as<float>() + b * scales.view().stride(0) + h * scales.view().stride(1);
        for (int64_t t = 0; t < rows.size(2); ++t) {
          const int64_t at = length_ + t;
          const TensorView from = rows.select(0, b).select(0, h).select(0, t);
          const bool widen = type_ != DType::f32;
          if (widen) copy(from, MutableTensorView(numbers, DType::f32, {rows.size(3)}));
          scale[at] = quantize_row(widen ? numbers : from.as<float>(), rows.size(3), row);
          nonfinite_ |= std::isnan(scale[at]);
          for (int64_t d = 0; d < rows.size(3); ++d) to[index(at, d)] = row[d];
        }
      }
    }
  };
  append(keys_, key_scales_, key, [this](int64_t at, int64_t d) { return layout_.key_index(at, d); });
  append(values_, value_scales_, value, [this](int64_t at, int64_t d) { return layout_.value_index(at, d); });
  length_ += key.size(2);
}

void KvCache::append_tiles(const TensorView &key, const TensorView &value) {
  const int64_t first = length_ / layout_.lanes, tiles = key.size(2) / layout_.lanes;
  static constexpr uint8_t kUnused[64] = {};
  const KernelBuffer unused = KernelBuffer(kUnused, DType::boolean).dim(1, 1).dim(1, 0);
  const auto pack = [&](const char *kind, ArgumentName in, const TensorView &rows, ArgumentName out,
                        const Tensor &packed,
                        KernelBuffer (*buffer)(const PackedLayout &, const PackedMemory &)) {
    KernelQuery query;
    query.kind = kind;
    query.type = type_;
    query.target = target_;
    query.head_dim = layout_.head_dim;
    query.exact_head_dim = true;
    const Kernel &kernel = require_kernel(query);
    const TensorView to = static_cast<const TensorView &>(packed.view()).slice(2, first, first + tiles);
    const auto run = [&](int64_t begin, int64_t end) {
      const TensorView part = to.slice(0, begin, end);
      KernelCall call(kernel);
      call.set(in, kernel_buffer(rows.slice(0, begin, end))).set("has_visible", false).set("visible", unused);
      call.set(out, buffer(layout_, {part.data(), type_, tiles, kv_heads_, part.stride(1), end - begin,
                                     part.stride(0)}));
      call.run();
    };
    if (fits_kernel(kernel_buffer(rows)) && fits_kernel(kernel_buffer(to))) {
      run(0, batch_);
    } else {
      for (int64_t b = 0; b < batch_; ++b) run(b, b + 1);
    }
  };
  pack("pack_keys", "k", key, "keys", keys_, posattn::packed_keys);
  pack("pack_values", "v", value, "values", values_, posattn::packed_values);
}

void KvCache::truncate(int64_t length) {
  check_truncate(length);
  // The rest of the last tile becomes zero; later tiles do when they are entered again. A scale of zero makes
  // zeros of whatever bytes it is for.
  const size_t size = static_cast<size_t>(size_of(type_));
  const bool int8 = format_ == CacheFormat::int8;
  const int64_t end =
      int8 ? length_ : std::min(round_up(length, layout_.lanes), round_up(length_, layout_.lanes));
  for (int64_t b = 0; b < batch_; ++b) {
    for (int64_t h = 0; h < kv_heads_; ++h) {
      if (int8) {
        for (const Tensor *scales : {&key_scales_, &value_scales_}) {
          float *of_head = scales->as<float>() + b * scales->view().stride(0) + h * scales->view().stride(1);
          std::fill(of_head + length, of_head + end, 0.0f);
        }
        continue;
      }
      const auto head_of = [&](const Tensor &packed) {
        return packed.as<char>() +
               static_cast<size_t>(b * packed.view().stride(0) + h * packed.view().stride(1)) * size;
      };
      char *keys = head_of(keys_), *values = head_of(values_);
      for (int64_t at = length; at < end; ++at) {
        for (int64_t d = 0; d < layout_.head_dim; ++d) {
          std::memset(keys + static_cast<size_t>(layout_.key_index(at, d)) * size, 0, size);
          std::memset(values + static_cast<size_t>(layout_.value_index(at, d)) * size, 0, size);
        }
      }
    }
  }
  length_ = length;
  if (length == 0) nonfinite_ = false;
}

void KvCache::reorder(const TensorView &source_rows) {
  check_source_rows(source_rows);
  std::vector<int64_t> source(static_cast<size_t>(batch_));
  bool moves = false;
  for (int64_t b = 0; b < batch_; ++b) {
    const int64_t at = b * source_rows.stride(0);
    const int64_t row =
        source_rows.dtype() == DType::i64 ? source_rows.as<int64_t>()[at] : source_rows.as<int32_t>()[at];
    if (row < 0 || row >= batch_) fail("source_rows: expected rows below ", batch_, ", got ", row, " at ", b);
    source[static_cast<size_t>(b)] = row;
    moves |= row != b;
  }
  if (!moves || length_ == 0) return;

  // A piece of every row at a time: gathered, then written back.
  constexpr size_t kPiece = 1 << 14;
  std::vector<char> pieces(kPiece * static_cast<size_t>(batch_));
  const auto permute = [&](const MutableTensorView &memory, int64_t elements) {
    const size_t size = static_cast<size_t>(size_of(memory.dtype()));
    const size_t used = static_cast<size_t>(elements) * size;
    const size_t row_bytes = static_cast<size_t>(memory.stride(0)) * size;
    for (int64_t h = 0; h < kv_heads_; ++h) {
      char *base = memory.as<char>() + static_cast<size_t>(h * memory.stride(1)) * size;
      for (size_t at = 0; at < used; at += kPiece) {
        const size_t count = std::min(kPiece, used - at);
        for (size_t b = 0; b < source.size(); ++b) {
          std::memcpy(&pieces[b * kPiece], base + static_cast<size_t>(source[b]) * row_bytes + at, count);
        }
        for (size_t b = 0; b < source.size(); ++b)
          std::memcpy(base + b * row_bytes + at, &pieces[b * kPiece], count);
      }
    }
  };
  permute(keys_.view(), num_tiles() * layout_.tile_size());
  permute(values_.view(), num_tiles() * layout_.tile_size());
  if (format_ != CacheFormat::int8) return;
  permute(key_scales_.view(), length_);
  permute(value_scales_.view(), length_);
}

}  // namespace posattn
