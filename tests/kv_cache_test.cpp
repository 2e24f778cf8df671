// What a KvCache stores, element by element. That attend() reads it right is attend_cache_test's business.
#include "runtime/kv_cache.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "runtime/error.h"
#include "runtime/kernel_registry.h"

namespace posattn {
namespace {

const DType kTypes[] = {DType::f32, DType::bf16, DType::f16};

template <typename Body>
void on_every_target(const Body &body) {
  for (const TargetInfo &target : targets()) {
    if (!target.cpu_has_it || !target.linked) continue;
    SCOPED_TRACE(target.name);
    set_target(target.name);
    body();
  }
  set_target("");
}

Tensor random_tensor(DType type, std::initializer_list<int64_t> shape, uint32_t seed) {
  Tensor f32(DType::f32, shape);
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  for (int64_t i = 0; i < f32.view().num_elements(); ++i) f32.as<float>()[i] = normal(random);
  return f32.to(type);
}

uint32_t bits_at(const TensorView &view, std::initializer_list<int64_t> index) {
  int64_t at = 0, d = 0;
  for (int64_t i : index) at += i * view.stride(static_cast<int>(d++));
  return size_of(view.dtype()) == 4 ? view.as<uint32_t>()[at] : view.as<uint16_t>()[at];
}

// Every element that kernels may read: the tokens that were appended, and zero everywhere else.
void expect_holds(const KvCache &cache, const TensorView &key, const TensorView &value) {
  const TensorView keys = cache.packed_keys(), values = cache.packed_values();
  const PackedLayout &layout = cache.layout();
  ASSERT_EQ(cache.length(), key.size(2));
  ASSERT_EQ(keys.size(2), values.size(2));
  ASSERT_GE(values.size(2) * layout.lanes, cache.length());
  ASSERT_EQ(keys.size(3), layout.tile_size());
  ASSERT_EQ(values.size(3), layout.tile_size());
  const auto packed = [](const TensorView &view, int64_t b, int64_t h, int64_t at) {
    return bits_at(view, {b, h, at / view.size(3), at % view.size(3)});
  };
  for (int64_t b = 0; b < cache.batch(); ++b) {
    for (int64_t h = 0; h < cache.kv_heads(); ++h) {
      for (int64_t t = 0; t < values.size(2) * layout.lanes; ++t) {
        for (int64_t d = 0; d < layout.head_dim; ++d) {
          const bool in_key = t < cache.length() && d < cache.head_dim();
          const bool in_value = t < cache.length() && d < cache.value_dim();
          ASSERT_EQ(packed(keys, b, h, layout.key_index(t, d)), in_key ? bits_at(key, {b, h, t, d}) : 0u)
              << "key " << b << " " << h << " " << t << " " << d;
          ASSERT_EQ(packed(values, b, h, layout.value_index(t, d)),
                    in_value ? bits_at(value, {b, h, t, d}) : 0u)
              << "value " << b << " " << h << " " << t << " " << d;
        }
      }
    }
  }
}

std::string error_of(const std::function<void()> &body) {
  try {
    body();
  } catch (const Error &error) {
    return error.what();
  }
  return "";
}

TEST(KvCache, HoldsWhatWasAppendedInAnyPieces) {
  on_every_target([] {
    for (DType type : kTypes) {
      const Tensor key = random_tensor(type, {2, 3, 150, 59}, 1),
                   value = random_tensor(type, {2, 3, 150, 33}, 2);
      for (const std::vector<int64_t> &pieces : std::vector<std::vector<int64_t>>{
               {150}, {1, 1, 1, 147}, {31, 1, 33, 64, 21}, {5, 0, 100, 45}, {32, 32, 32, 32, 22}}) {
        KvCache cache(2, 3, 59, 33, 150, type);
        int64_t at = 0;
        for (int64_t piece : pieces) {
          cache.append(key.view().slice(2, at, at + piece), value.view().slice(2, at, at + piece));
          at += piece;
          expect_holds(cache, key.view().slice(2, 0, at), value.view().slice(2, 0, at));
        }
      }
    }
  });
}

TEST(KvCache, TakesStridedViews) {
  on_every_target([] {
    // (B, T, H, d), as a projection leaves it, heads apart from each other.
    const Tensor both = random_tensor(DType::f32, {2, 70, 6, 64}, 3);
    const TensorView key = both.view().transposed(1, 2).slice(1, 0, 3),
                     value = both.view().transposed(1, 2).slice(1, 3, 6);
    KvCache cache(2, 3, 64, 64, 80, DType::f32);
    cache.append(key, value);
    expect_holds(cache, key, value);
  });
}

TEST(KvCache, TruncatedAndFilledAgain) {
  on_every_target([] {
    for (DType type : kTypes) {
      const Tensor key = random_tensor(type, {1, 2, 100, 32}, 4),
                   value = random_tensor(type, {1, 2, 100, 32}, 5);
      const auto part = [](const Tensor &t, int64_t begin, int64_t end) {
        return t.view().slice(2, begin, end);
      };
      for (int64_t keep : {0, 1, 31, 32, 33, 64, 99, 100}) {
        KvCache cache(1, 2, 32, 32, 100, type);
        cache.append(key, value);
        cache.truncate(keep);
        expect_holds(cache, part(key, 0, keep), part(value, 0, keep));
        // A shorter continuation must not show what was there before.
        const int64_t more = std::min<int64_t>(100 - keep, 7);
        Tensor k = copy_of(part(key, 0, keep + more), type), v = copy_of(part(value, 0, keep + more), type);
        const Tensor new_key = random_tensor(type, {1, 2, more, 32}, 6),
                     new_value = random_tensor(type, {1, 2, more, 32}, 7);
        copy(new_key, k.view().slice(2, keep, keep + more));
        copy(new_value, v.view().slice(2, keep, keep + more));
        cache.append(new_key, new_value);
        expect_holds(cache, k, v);
      }
    }
  });
}

TEST(KvCache, ReordersRows) {
  on_every_target([] {
    const Tensor key = random_tensor(DType::bf16, {4, 2, 45, 64}, 8),
                 value = random_tensor(DType::bf16, {4, 2, 45, 40}, 9);
    for (const std::vector<int64_t> &rows : std::vector<std::vector<int64_t>>{
             {0, 1, 2, 3}, {3, 2, 1, 0}, {1, 2, 3, 0}, {2, 2, 0, 2}, {0, 0, 0, 0}}) {
      KvCache cache(4, 2, 64, 40, 64, DType::bf16);
      cache.append(key, value);
      Tensor k(DType::bf16, {4, 2, 45, 64}), v(DType::bf16, {4, 2, 45, 40});
      for (int64_t b = 0; b < 4; ++b) {
        const int64_t from = rows[static_cast<size_t>(b)];
        copy(key.view().slice(0, from, from + 1), k.view().slice(0, b, b + 1));
        copy(value.view().slice(0, from, from + 1), v.view().slice(0, b, b + 1));
      }
      cache.reorder(TensorView(rows.data(), DType::i64, {4}));
      expect_holds(cache, k, v);
    }
  });
}

TEST(KvCache, ErrorsLeaveItAsItWas) {
  on_every_target([] {
    const Tensor key = random_tensor(DType::f32, {2, 2, 10, 16}, 10),
                 value = random_tensor(DType::f32, {2, 2, 10, 8}, 11);
    KvCache cache(2, 2, 16, 8, 12, DType::f32);
    cache.append(key, value);
    const auto refuses = [&](const std::string &text, const std::function<void()> &body) {
      const std::string message = error_of(body);
      EXPECT_NE(message.find(text), std::string::npos) << "got: " << message;
      expect_holds(cache, key, value);
    };
    const TensorView k = key.view().slice(2, 0, 2), v = value.view().slice(2, 0, 2);
    refuses("at most 2 more tokens (10 of 12 are in use), got 3",
            [&] { cache.append(key.view().slice(2, 0, 3), value.view().slice(2, 0, 3)); });
    refuses("key: expected a tensor", [&] { cache.append(TensorView(), v); });
    refuses("key: expected shape (2, 2, tokens, 16)", [&] { cache.append(v, v); });
    refuses("key: expected shape", [&] { cache.append(key.view().slice(0, 0, 1), v); });
    refuses("key: expected shape", [&] { cache.append(key.view().select(0, 0), v); });
    refuses("value: expected shape (2, 2, tokens, 8)", [&] { cache.append(k, k); });
    refuses("value: expected 2 tokens as in key, got 1", [&] { cache.append(k, v.slice(2, 0, 1)); });
    refuses("key: expected type f32, got bf16", [&] {
      const Tensor other = copy_of(k, DType::bf16);
      cache.append(other, v);
    });
    refuses("key: expected a contiguous last dimension", [&] {
      const Tensor wide(DType::f32, {2, 2, 16, 2});
      cache.append(wide.view().transposed(2, 3), v);
    });
    refuses("key: expected data, got null", [&] {
      cache.append(TensorView(nullptr, DType::f32, {2, 2, 2, 16}), v);
    });
    refuses("length of 0 to 10", [&] { cache.truncate(11); });
    refuses("length of 0 to 10", [&] { cache.truncate(-1); });
    const int64_t rows[] = {0, 2}, negative[] = {-1, 0};
    refuses("rows below 2, got 2 at 1", [&] { cache.reorder(TensorView(rows, DType::i64, {2})); });
    refuses("rows below 2, got -1", [&] { cache.reorder(TensorView(negative, DType::i64, {2})); });
    refuses("source_rows: expected shape (2)", [&] { cache.reorder(TensorView(rows, DType::i64, {1})); });
    refuses("source_rows: expected type", [&] { cache.reorder(TensorView(rows, DType::f64, {2})); });
  });
}

TEST(KvCache, KnowsWhenItMayHoldNonfiniteNumbers) {
  on_every_target([] {
    for (DType type : kTypes) {
      for (const double bad : {std::nan(""), -std::numeric_limits<double>::infinity()}) {
        for (const bool in_key : {true, false}) {
          Tensor key = random_tensor(type, {1, 1, 40, 16}, 12),
                 value = random_tensor(type, {1, 1, 40, 16}, 13);
          KvCache cache(1, 1, 16, 16, 80, type);
          cache.append(key, value);
          EXPECT_FALSE(cache.may_hold_nonfinite());
          copy(TensorView(&bad, DType::f64, {1, 1, 1, 1}),
               (in_key ? key : value).view().slice(2, 37, 38).slice(3, 15, 16));
          cache.append(key, value);
          EXPECT_TRUE(cache.may_hold_nonfinite());
          cache.clear();
          EXPECT_FALSE(cache.may_hold_nonfinite());
        }
      }
      // The largest finite number is one.
      Tensor key = random_tensor(type, {1, 1, 1, 16}, 14);
      if (type == DType::f32) key.as<float>()[3] = std::numeric_limits<float>::max();
      if (type == DType::bf16) key.as<uint16_t>()[3] = 0x7f7f;
      if (type == DType::f16) key.as<uint16_t>()[3] = 0x7bff;
      KvCache cache(1, 1, 16, 16, 1, type);
      cache.append(key, key);
      EXPECT_FALSE(cache.may_hold_nonfinite());
    }
  });
}

TEST(KvCache, SizesAreChecked) {
  const auto make = [](int64_t b, int64_t h, int64_t d, int64_t dv, int64_t capacity,
                       DType type = DType::f32) {
    return error_of([&] { KvCache(b, h, d, dv, capacity, type); });
  };
  EXPECT_EQ(make(1, 1, 16, 16, 0), "");
  EXPECT_EQ(make(0, 1, 16, 16, 5), "");
  EXPECT_NE(make(-1, 1, 16, 16, 5).find("batch"), std::string::npos);
  EXPECT_NE(make(1, 0, 16, 16, 5).find("head"), std::string::npos);
  EXPECT_NE(make(1, 1, 0, 16, 5).find("head_dim"), std::string::npos);
  EXPECT_NE(make(1, 1, 257, 16, 5).find("head_dim"), std::string::npos);
  EXPECT_NE(make(1, 1, 16, 0, 5).find("value_dim"), std::string::npos);
  EXPECT_NE(make(1, 1, 16, 16, -1).find("capacity"), std::string::npos);
  EXPECT_NE(make(1, 1, 16, 16, int64_t{1} << 62).find("capacity"), std::string::npos);
  EXPECT_NE(make(int64_t{1} << 60, 1 << 10, 16, 16, 1 << 10).find("63 bits"), std::string::npos);
  EXPECT_NE(make(1, 1, 16, 16, 5, DType::i32).find("type"), std::string::npos);
}

TEST(KvCache, MovesWithItsContents) {
  const Tensor key = random_tensor(DType::f32, {1, 1, 5, 16}, 15);
  KvCache first(1, 1, 16, 16, 8, DType::f32);
  first.append(key, key);
  KvCache second = std::move(first);
  expect_holds(second, key, key);
  first = KvCache(1, 1, 16, 16, 8, DType::f32);
  EXPECT_EQ(first.length(), 0);
}

}  // namespace
}  // namespace posattn
