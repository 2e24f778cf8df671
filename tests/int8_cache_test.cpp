// Caches of 8-bit integers: what they hold, and that attention on them is as exact as on the rows that they
// hold.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "runtime/attend.h"
#include "runtime/error.h"
#include "runtime/int8_rows.h"
#include "runtime/kv_cache.h"
#include "runtime/layers/layers.h"
#include "tests/case.h"
#include "tests/check.h"
#include "tests/random_layer.h"

namespace posattn::oracle {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

TEST(QuantizeRow, IsWithinHalfAStep) {
  Random random(1);
  for (const float magnitude : {1e-29f, 1e-3f, 1.f, 1e30f, 3e38f}) {
    for (const int64_t count : {1, 7, 64, 256}) {
      float row[256];
      int8_t bytes[256];
      for (float &x : row) x = magnitude * static_cast<float>(2 * random.uniform() - 1);
      const float scale = quantize_row(row, count, bytes);
      float largest = 0;
      for (int64_t i = 0; i < count; ++i) largest = std::max(largest, std::fabs(row[i]));
      EXPECT_FLOAT_EQ(scale, largest / 127);
      for (int64_t i = 0; i < count; ++i) {
        EXPECT_GE(bytes[i], -127);
        EXPECT_NEAR(row[i] / scale, bytes[i], 0.5f + 1e-4f);
      }
    }
  }
}

TEST(QuantizeRow, ZerosAndWhatIsNotFinite) {
  int8_t bytes[3] = {1, 2, 3};
  for (const float tiny : {0.f, -0.f, 1e-45f, 9e-31f}) {
    const float row[3] = {tiny, 0, -tiny};
    EXPECT_EQ(quantize_row(row, 3, bytes), 0);
    for (const int8_t byte : bytes) EXPECT_EQ(byte, 0);
  }
  for (const float bad :
       {kNan, -kNan, std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity()}) {
    const float row[3] = {1, bad, 2};
    EXPECT_TRUE(std::isnan(quantize_row(row, 3, bytes)));
    for (const int8_t byte : bytes) EXPECT_NE(byte, 0);
  }
}

KvCache cache_for(const CaseSpec &s, int64_t capacity, CacheFormat format = CacheFormat::int8) {
  return KvCache(s.batch, s.kv_heads, s.head_dim, s.value_dim, capacity, s.type, format);
}

const DType kTypes[] = {DType::f32, DType::bf16};

CaseSpec spec_of(uint64_t seed, int64_t queries, int64_t keys) {
  CaseSpec s;
  s.seed = seed;
  s.queries = queries;
  s.keys = keys;
  return s;
}

// attend() with the cache in place of key and value, and what it should compute: attention to the cache's
// rows.
struct FromCache {
  Tensor key, value;
  AttendArgs exact;
  Outputs outputs;

  FromCache(const KvCache &cache, const AttendArgs &args)
      : key(cache.key_rows()), value(cache.value_rows()), exact(args) {
    exact.key = key.view(), exact.value = value.view();
    AttendArgs from = args;
    from.key = from.value = TensorView();
    from.cache = &cache;
    outputs = outputs_of(from);
  }
  ::testing::AssertionResult accurate() { return oracle::accurate(exact, outputs); }
};

void expect_holds_rows_in_any_pieces(DType type) {
  on_every_target([type] {
    CaseSpec s = spec_of(1, 1, 90);
    s.type = type;
    s.head_dim = 59, s.value_dim = 33;
    s.layout = Layout::bthd;
    const Case c(s);
    const TensorView key = c.args().key, value = c.args().value;
    KvCache whole = cache_for(s, 100), pieces = cache_for(s, 100);
    whole.append(key, value);
    EXPECT_EQ(whole.length(), 90);
    const Tensor rows = whole.key_rows();
    for (int64_t b = 0; b < s.batch; ++b) {
      for (int64_t h = 0; h < s.kv_heads; ++h) {
        for (int64_t t = 0; t < s.keys; ++t) {
          float row[59];
          int8_t bytes[59];
          copy(key.select(0, b).select(0, h).select(0, t), MutableTensorView(row, DType::f32, {59}));
          const float scale = quantize_row(row, 59, bytes);
          const MutableTensorView held = rows.view().select(0, b).select(0, h).select(0, t);
          for (int64_t d = 0; d < 59; ++d) ASSERT_EQ(held.as<float>()[d], scale * bytes[d]);
        }
      }
    }
    pieces.append(key.slice(2, 0, 50), value.slice(2, 0, 50));
    pieces.append(key.slice(2, 60, 90), value.slice(2, 60, 90));  // dropped again
    pieces.truncate(50);
    for (int64_t at = 50; at < 90; at += 8) {
      pieces.append(key.slice(2, at, at + 8), value.slice(2, at, at + 8));
    }
    EXPECT_TRUE(same_bits(pieces.key_rows(), whole.key_rows()));
    EXPECT_TRUE(same_bits(pieces.value_rows(), whole.value_rows()));
    EXPECT_TRUE(same_bits(pieces.key_scales(), whole.key_scales()));
  });
}

TEST(Int8Cache, HoldsRowsInAnyPieces) {
  for (const DType type : kTypes) expect_holds_rows_in_any_pieces(type);
}

TEST(Int8Cache, ReordersRows) {
  CaseSpec s = spec_of(2, 1, 40);
  s.batch = 3;
  const Case c(s);
  KvCache cache = cache_for(s, 70);
  cache.append(c.args().key, c.args().value);
  const Tensor before = cache.key_rows(), values = cache.value_rows();
  const int64_t source[] = {2, 0, 2};
  cache.reorder(TensorView(source, DType::i64, {3}));
  for (int64_t b = 0; b < 3; ++b) {
    const auto row = [](const Tensor &rows, int64_t i) { return TensorView(rows.view().select(0, i)); };
    EXPECT_TRUE(same_bits(row(cache.key_rows(), b), row(before, source[b])));
    EXPECT_TRUE(same_bits(row(cache.value_rows(), b), row(values, source[b])));
  }
}

TEST(Int8Cache, AttentionIsExactForItsRows) {
  on_every_target([] {
    uint64_t seed = 100;
    for (const int64_t head_dim : {64, 128, 41}) {
      for (const int64_t queries : {1, 3, 50}) {
        for (const std::vector<std::string> &branches : linked_branch_sets()) {
          ++seed;
          CaseSpec s = spec_of(seed, queries, seed % 2 ? 75 : 400);
          s.head_dim = head_dim;
          s.value_dim = seed % 3 ? head_dim : 37;
          s.causal = seed % 2 ? Causal::bottom_right : Causal::none;
          s.window_left = seed % 5 ? -1 : 20;
          s.branches = branches;
          s.logit_std = seed % 4 ? 1 : 6;
          for (const DType type : kTypes) {
            s.type = type;
            const Case c(s);
            KvCache cache = cache_for(s, s.keys + 9);
            cache.append(c.args().key, c.args().value);
            EXPECT_TRUE(FromCache(cache, c.args()).accurate()) << describe(s);
          }
        }
      }
    }
  });
}

TEST(Int8Cache, HiddenRowsMayBeNan) {
  on_every_target([] {
    for (const int64_t queries : {1, 20}) {
      CaseSpec s = spec_of(200, queries, 75);
      s.type = kTypes[queries % 2];
      s.keep.given = s.add.given = true;
      s.key_lengths = s.key_keep = true;  // hidden keys are NaN
      const Case c(s);
      KvCache cache = cache_for(s, 80);
      cache.append(c.args().key, c.args().value);
      EXPECT_TRUE(cache.may_hold_nonfinite());
      EXPECT_TRUE(FromCache(cache, c.args()).accurate());
    }
  });
}

TEST(Int8Cache, VisibleNanIsSeen) {
  CaseSpec s = spec_of(210, 1, 40);
  s.batch = 2;
  const Case c(s);
  const Tensor key = copy_of(c.args().key, DType::f32);
  *key.view().select(0, 1).select(0, 0).select(0, 5).as<float>() = kNan;
  KvCache cache = cache_for(s, 40);
  cache.append(key.view(), c.args().value);
  FromCache from(cache, c.args());
  EXPECT_FALSE(std::isnan(from.outputs.out.view().select(0, 0).as<float>()[0]));
  EXPECT_TRUE(std::isnan(from.outputs.out.view().select(0, 1).as<float>()[0]));
}

TEST(Int8Cache, IsCloseToTheExactCache) {
  on_every_target([] {
    for (const int64_t queries : {1, 40}) {
      const CaseSpec s = spec_of(220, queries, 900);
      const Case c(s);
      KvCache cache = cache_for(s, 900);
      cache.append(c.args().key, c.args().value);
      const FromCache from(cache, c.args());
      const Outputs exact = outputs_of(c.args());
      double most = 0;
      for (int64_t i = 0; i < exact.out.view().num_elements(); ++i)
        most = std::max(most, double{std::fabs(exact.out.as<float>()[i] - from.outputs.out.as<float>()[i])});
      // Values of deviation 1 have magnitudes of up to 4: steps of 0.03, of which half averages out over
      // keys.
      EXPECT_GT(most, 0);
      EXPECT_LT(most, 0.02);
    }
  });
}

TEST(Int8Cache, LayersDecodeWithIt) {
  const int64_t E = 128, T = 40;
  for (const DType type : kTypes) {
    const RandomLayer random_layer(7, E, 0, type);
    Random random(8);
    const Tensor x = random_tensor(random, type, {2, T, E});
    LayerOptions options;
    options.num_heads = 2;
    const PlainAttention layer(random_layer.weights, options);
    const auto exact = layer.make_cache(2, T), int8 = layer.make_cache(2, T, CacheFormat::int8);
    for (const auto &[begin, end] : {std::pair(0, 30), std::pair(30, 31), std::pair(31, 40)}) {
      ForwardArgs args;
      args.query = args.key = args.value = x.view().slice(1, begin, end);
      args.causal = Causal::bottom_right;
      args.cache = exact.get();
      const Tensor expected = copy_of(layer.forward(args).out, DType::f32);
      args.cache = int8.get();
      const Tensor out = copy_of(layer.forward(args).out, DType::f32);
      EXPECT_EQ(int8->length(), end);
      for (int64_t i = 0; i < out.view().num_elements(); ++i)
        ASSERT_NEAR(out.as<float>()[i], expected.as<float>()[i], type == DType::f32 ? 0.03 : 0.06);
    }
  }
}

TEST(Int8Cache, Errors) {
  EXPECT_THROW(KvCache(1, 1, 64, 64, 8, DType::f16, CacheFormat::int8), Error);  // no kernels are linked
  CaseSpec s = spec_of(230, 1, 20);
  s.weights = Weights::heads;
  const Case c(s);
  KvCache cache = cache_for(s, 20);
  cache.append(c.args().key, c.args().value);
  EXPECT_THROW(cache.append(c.args().key, c.args().value), Error);
  EXPECT_EQ(cache.length(), 20);
  EXPECT_THROW(FromCache(cache, c.args()), Error);
}

}  // namespace
}  // namespace posattn::oracle
