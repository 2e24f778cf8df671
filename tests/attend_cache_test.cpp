// attend() on a KvCache equals attend() on the keys and values themselves.
#include <gtest/gtest.h>

#include "runtime/attend.h"
#include "runtime/error.h"
#include "runtime/kv_cache.h"
#include "tests/case.h"
#include "tests/check.h"

namespace posattn::oracle {
namespace {

const DType kTypes[] = {DType::f32, DType::bf16, DType::f16};

CaseSpec self_attention(uint64_t seed, DType type) {
  CaseSpec s;
  s.seed = seed;
  s.type = type;
  s.queries = s.keys = 75;
  s.causal = Causal::bottom_right;
  return s;
}

KvCache cache_for(const CaseSpec &s, int64_t capacity) {
  return KvCache(s.batch, s.kv_heads, s.head_dim, s.value_dim, capacity, s.type);
}

// What attend() computes from the cache's rows in place of key and value.
AttendArgs from(const KvCache &cache, AttendArgs args) {
  args.key = args.value = TensorView();
  args.cache = &cache;
  return args;
}

TEST(AttendCache, StepsEqualTheWhole) {
  on_every_target([] {
    uint64_t seed = 400;
    for (DType type : kTypes) {
      for (int64_t step : {1, 3, 16, 40, 75}) {
        CaseSpec s = self_attention(++seed, type);
        if (seed % 2) {
          s.head_dim = 59;
          s.value_dim = 33;
          s.layout = Layout::bthd;
        }
        s.branches = {"relative"};
        s.window_left = seed % 3 ? -1 : 20;
        Case c(s);
        KvCache cache = cache_for(s, 80);
        for (int64_t begin = 0; begin < s.keys; begin += step) {
          const int64_t end = std::min(begin + step, s.keys);
          cache.append(c.args().key.slice(2, begin, end), c.args().value.slice(2, begin, end));
          ASSERT_EQ(cache.length(), end);
          AttendArgs part = from(cache, c.args());
          part.query = part.query.slice(2, begin, end);
          part.out = part.out.slice(2, begin, end);
          part.lse = part.lse.slice(2, begin, end);
          Tensor positions(DType::i64, {end - begin});
          for (int64_t i = begin; i < end; ++i) positions.as<int64_t>()[i - begin] = i;
          part.q_positions = positions;
          attend(part);
        }
        EXPECT_TRUE(accurate(c.args())) << "in steps of " << step << ": " << describe(s);
      }
    }
  });
}

TEST(AttendCache, ComposesWithMasks) {
  on_every_target([] {
    uint64_t seed = 430;
    for (DType type : kTypes) {
      for (int64_t queries : {1, 20}) {
        CaseSpec s = self_attention(++seed, type);
        s.queries = queries;
        s.keep.given = s.add.given = true;
        s.key_lengths = s.key_keep = true;  // hidden keys in the cache are NaN
        s.weights = Weights::heads;
        Case c(s);
        KvCache cache = cache_for(s, 75);
        cache.append(c.args().key, c.args().value);
        EXPECT_TRUE(accurate(c.args(), outputs_of(from(cache, c.args())))) << describe(s);
      }
    }
  });
}

TEST(AttendCache, HoldsRotatedKeys) {
  on_every_target([] {
    for (int64_t queries : {1, 20}) {
      CaseSpec s = self_attention(440, DType::f32);
      s.queries = queries;
      s.rotary_dim = 64;
      s.positions = PositionKind::times;
      Case c(s);
      KvCache cache = cache_for(s, 75);
      cache.append(reference_rotated(c.args().key, *c.args().rope, c.args().k_positions), c.args().value);
      EXPECT_TRUE(accurate(c.args(), outputs_of(from(cache, c.args()))));
    }
  });
}

TEST(AttendCache, ReorderedRows) {
  on_every_target([] {
    for (DType type : kTypes) {
      CaseSpec s = self_attention(450, type);
      s.batch = 4;
      s.queries = 1;
      Case c(s);
      KvCache cache = cache_for(s, 90);
      cache.append(c.args().key, c.args().value);
      // Repeats, a cycle, and a row that is dropped.
      const int64_t source[] = {2, 0, 2, 1};
      cache.reorder(TensorView(source, DType::i64, {4}));
      AttendArgs expected = c.args();
      Tensor key = copy_of(expected.key, type), value = copy_of(expected.value, type);
      for (int64_t b = 0; b < 4; ++b) {
        copy(c.args().key.slice(0, source[b], source[b] + 1), key.view().slice(0, b, b + 1));
        copy(c.args().value.slice(0, source[b], source[b] + 1), value.view().slice(0, b, b + 1));
      }
      expected.key = key;
      expected.value = value;
      EXPECT_TRUE(accurate(expected, outputs_of(from(cache, c.args()))));
    }
  });
}

TEST(AttendCache, TruncatedAndFilledAgain) {
  on_every_target([] {
    for (DType type : kTypes) {
      for (int64_t kept : {0, 1, 16, 37, 64}) {
        CaseSpec s = self_attention(460, type);
        s.queries = 1;
        Case c(s), other([&] {
          CaseSpec wrong = s;
          wrong.seed = 461;
          return wrong;
        }());
        KvCache cache = cache_for(s, 75);
        // The right beginning, then a wrong end that is taken back.
        if (kept > 0) cache.append(c.args().key.slice(2, 0, kept), c.args().value.slice(2, 0, kept));
        cache.append(other.args().key.slice(2, kept, 75), other.args().value.slice(2, kept, 75));
        cache.truncate(kept);
        EXPECT_EQ(cache.length(), kept);
        AttendArgs shorter = c.args();
        shorter.key = shorter.key.slice(2, 0, kept);
        shorter.value = shorter.value.slice(2, 0, kept);
        EXPECT_TRUE(accurate(shorter, outputs_of(from(cache, c.args())))) << kept;
        cache.append(c.args().key.slice(2, kept, 75), c.args().value.slice(2, kept, 75));
        EXPECT_TRUE(accurate(c.args(), outputs_of(from(cache, c.args())))) << kept;
      }
    }
  });
}

TEST(AttendCache, AFullOneStaysAsItWas) {
  on_every_target([] {
    CaseSpec s = self_attention(470, DType::bf16);
    s.queries = 1;
    Case c(s);
    KvCache cache = cache_for(s, 80);
    cache.append(c.args().key, c.args().value);
    const Outputs before = outputs_of(from(cache, c.args()));
    EXPECT_THROW(cache.append(c.args().key.slice(2, 0, 6), c.args().value.slice(2, 0, 6)), Error);
    EXPECT_EQ(cache.length(), 75);
    EXPECT_TRUE(same_bits(before, outputs_of(from(cache, c.args()))));
    cache.append(c.args().key.slice(2, 0, 5), c.args().value.slice(2, 0, 5));
    EXPECT_EQ(cache.length(), 80);
  });
}

}  // namespace
}  // namespace posattn::oracle
