// attend() against float64, systematically: each dimension of what it does in turn, on every target of this
// machine.
#include "runtime/attend.h"

#include <gtest/gtest.h>

#include <array>

#include "tests/case.h"
#include "tests/check.h"

namespace posattn::oracle {
namespace {

const DType kTypes[] = {DType::f32, DType::bf16, DType::f16};

// Small, so that many fit the time.
CaseSpec small_spec(uint64_t seed) {
  CaseSpec s;
  s.seed = seed;
  s.batch = 1;
  s.query_heads = s.kv_heads = 1;
  return s;
}

TEST(Attend, Sizes) {
  uint64_t seed = 1000;
  for (int64_t queries : {1, 2, 3, 15, 16, 17, 33, 65, 257}) {
    for (int64_t keys : {1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 129, 256, 257, 515}) {
      CaseSpec s = small_spec(++seed);
      s.type = kTypes[seed % 3];
      s.queries = queries;
      s.keys = keys;
      s.head_dim = s.value_dim = 32;
      s.causal = seed % 2 ? Causal::none : Causal::bottom_right;
      EXPECT_TRUE(passes(s));
    }
  }
}

TEST(Attend, HeadDims) {
  uint64_t seed = 2000;
  for (DType type : kTypes) {
    for (int64_t dim :
         {1, 2, 7, 8, 16, 31, 32, 33, 40, 59, 64, 65, 80, 96, 100, 127, 128, 129, 192, 255, 256}) {
      for (int64_t queries : {1, 19}) {
        CaseSpec s = small_spec(++seed);
        s.type = type;
        s.queries = queries;
        s.keys = 37;
        s.head_dim = s.value_dim = dim;
        EXPECT_TRUE(passes(s));
      }
    }
  }
}

TEST(Attend, ValueDimDiffers) {
  uint64_t seed = 2500;
  for (int64_t dim : {1, 40, 64, 128, 256}) {
    for (int64_t value_dim : {1, 33, 64, 96, 128, 256}) {
      for (int64_t queries : {1, 19}) {
        CaseSpec s = small_spec(++seed);
        s.type = kTypes[seed % 3];
        s.queries = queries;
        s.keys = 37;
        s.head_dim = dim;
        s.value_dim = value_dim;
        s.weights = Weights::heads;
        EXPECT_TRUE(passes(s));
      }
    }
  }
}

TEST(Attend, LayoutsAndTypes) {
  uint64_t seed = 3000;
  for (DType type : kTypes) {
    for (Layout layout :
         {Layout::bhtd, Layout::bthd, Layout::packed, Layout::padded, Layout::reversed, Layout::repeated}) {
      for (Layout out_layout : {Layout::bhtd, Layout::bthd, Layout::padded}) {
        for (int64_t queries : {1, 35}) {
          CaseSpec s;
          s.seed = ++seed;
          s.type = type;
          s.layout = layout;
          s.out_layout = out_layout;
          s.queries = queries;
          s.keys = seed % 4 < 2 ? 35 : 50;
          s.head_dim = seed % 5 == 0 ? 59 : 64;
          s.value_dim = s.head_dim;
          s.weights = seed % 3 ? Weights::none : Weights::heads;
          EXPECT_TRUE(passes(s));
        }
      }
    }
  }
}

TEST(Attend, GroupedQueries) {
  uint64_t seed = 4000;
  for (int64_t kv_heads : {1, 2, 3}) {
    for (int64_t group : {1, 2, 3, 4, 5, 8, 12, 17}) {
      for (int64_t queries : {1, 2, 5, 23}) {
        CaseSpec s;
        s.seed = ++seed;
        s.batch = seed % 4 == 0 ? 2 : 1;
        s.type = kTypes[seed % 3];
        s.kv_heads = kv_heads;
        s.query_heads = kv_heads * group;
        s.queries = queries;
        s.keys = 45;
        s.head_dim = s.value_dim = 32;
        s.causal = Causal::bottom_right;
        s.weights = seed % 2 ? Weights::none : Weights::mean;
        EXPECT_TRUE(passes(s));
      }
    }
  }
}

TEST(Attend, LongKeysInSplits) {
  uint64_t seed = 4500;
  for (int64_t keys : {511, 513, 1023, 1025, 2049, 4097}) {
    for (int64_t queries : {1, 3}) {
      CaseSpec s = small_spec(++seed);
      s.type = kTypes[seed % 3];
      s.query_heads = 3;
      s.queries = queries;
      s.keys = keys;
      s.head_dim = s.value_dim = 32;
      s.key_lengths = seed % 2;
      s.causal = Causal::bottom_right;
      s.weights = seed % 4 == 0 ? Weights::mean : seed % 4 == 1 ? Weights::heads : Weights::none;
      EXPECT_TRUE(passes(s));
    }
  }
}

// Weights' sums are taken over parts of the keys, which grow with them.
TEST(Attend, WeightsOfManyKeys) {
  CaseSpec s = small_spec(4590);
  s.queries = 2;
  s.keys = 33333;
  s.head_dim = s.value_dim = 8;
  s.causal = Causal::bottom_right;
  s.weights = Weights::heads;
  EXPECT_TRUE(passes(s));
}

// Rows of several heads and queries share the splits; keys behind a length are never looked at.
TEST(Attend, GroupedRowsInSplits) {
  uint64_t seed = 4600;
  for (DType type : kTypes) {
    for (int64_t group : {1, 3, 8, 16}) {
      for (int64_t queries : {1, 2}) {
        CaseSpec s = small_spec(++seed);
        s.type = type;
        s.kv_heads = 1;
        s.query_heads = group;
        s.queries = queries;
        s.keys = 1025;
        s.head_dim = seed % 2 ? 64 : 128;
        s.value_dim = seed % 3 ? s.head_dim : 40;
        s.key_lengths = seed % 2;
        s.causal = seed % 3 ? Causal::bottom_right : Causal::none;
        s.window_left = seed % 4 ? -1 : 300;
        EXPECT_TRUE(passes(s));
      }
    }
  }
}

// Every shape that broadcasts to (B, Hq, Tq, Tk), for one mask argument.
template <typename Set>
void every_mask_shape(uint64_t seed, const Set &set) {
  for (int rank = 0; rank <= 4; ++rank) {
    for (int bits = 0; bits < 1 << rank; ++bits) {
      for (int64_t queries : {1, 11}) {
        CaseSpec s;
        s.seed = ++seed;
        s.type = kTypes[seed % 3];
        s.queries = queries;
        s.keys = 21;
        s.head_dim = s.value_dim = 32;
        s.weights = seed % 4 ? Weights::none : Weights::heads;
        MaskSpec mask;
        mask.given = true;
        mask.rank = rank;
        for (int d = 0; d < rank; ++d) mask.broadcast[static_cast<size_t>(4 - rank + d)] = bits >> d & 1;
        mask.type = kTypes[seed / 3 % 3];
        mask.transposed = seed % 5 == 0;
        s.hidden_rows = seed % 3 == 0;
        set(s, mask);
        EXPECT_TRUE(passes(s));
      }
    }
  }
}

TEST(Attend, KeepMaskShapes) {
  every_mask_shape(5000, [](CaseSpec &s, const MaskSpec &mask) { s.keep = mask; });
}
TEST(Attend, BlockMaskShapes) {
  every_mask_shape(5100, [](CaseSpec &s, const MaskSpec &mask) { s.block = mask; });
}
TEST(Attend, AddMaskShapes) {
  every_mask_shape(5200, [](CaseSpec &s, const MaskSpec &mask) { s.add = mask; });
}
TEST(Attend, DenseBiasShapes) {
  every_mask_shape(5300, [](CaseSpec &s, const MaskSpec &mask) { s.dense = mask; });
}

// Of the queries' type, whole and with rows of whole vectors: as kernels for GPUs read it in tiles.
TEST(Attend, DenseBiasOfTheQueriesType) {
  uint64_t seed = 5400;
  for (DType type : {DType::bf16, DType::f16}) {
    for (int64_t head_dim : {40, 128}) {
      for (const std::array<bool, 2> &shared :
           {std::array<bool, 2>{}, {true, false}, {false, true}, {true, true}}) {
        for (Causal causal : {Causal::none, Causal::bottom_right}) {
          CaseSpec s;
          s.seed = ++seed;
          s.type = s.dense.type = type;
          s.queries = seed % 3 == 0 ? 140 : 70;
          s.keys = seed % 2 ? 136 : 200;
          s.head_dim = s.value_dim = head_dim;
          s.dense.given = true;
          s.dense.broadcast = {shared[0], shared[1], false, false};
          s.hidden_rows = seed % 5 == 0;
          s.causal = causal;
          s.key_lengths = seed % 4 == 0;
          s.window_left = seed % 7 == 0 ? 100 : -1;
          s.weights = seed % 6 == 0 ? Weights::heads : seed % 6 == 3 ? Weights::mean : Weights::none;
          EXPECT_TRUE(passes(s));
        }
      }
    }
  }
}

TEST(Attend, KeyMasks) {
  uint64_t seed = 6000;
  for (int kinds = 1; kinds < 16; ++kinds) {
    for (int64_t queries : {1, 18}) {
      for (bool shared : {false, true}) {
        CaseSpec s;
        s.seed = ++seed;
        s.batch = 3;
        s.type = kTypes[seed % 3];
        s.queries = queries;
        s.keys = 70;
        s.head_dim = s.value_dim = 32;
        s.key_keep = kinds & 1;
        s.key_block = kinds & 2;
        s.key_add = kinds & 4;
        s.key_lengths = kinds & 8;
        s.shared_key_masks = shared;
        s.add.type = kTypes[seed % 3];
        s.weights = seed % 2 ? Weights::none : Weights::heads;
        EXPECT_TRUE(passes(s));
      }
    }
  }
}

TEST(Attend, EveryMaskAtOnce) {
  uint64_t seed = 6500;
  for (DType type : kTypes) {
    for (int64_t queries : {1, 40}) {
      for (Causal causal : {Causal::none, Causal::bottom_right, Causal::top_left}) {
        CaseSpec s;
        s.seed = ++seed;
        s.type = type;
        s.queries = queries;
        s.keys = 90;
        s.keep.given = s.block.given = s.add.given = s.dense.given = true;
        s.keep.broadcast = {true, true, false, false};
        s.block.rank = 2;
        s.add.broadcast = {false, true, true, false};
        s.dense.broadcast = {true, false, false, false};
        s.key_keep = s.key_block = s.key_add = s.key_lengths = true;
        s.causal = causal;
        s.window_left = 60;
        s.weights = Weights::mean;
        EXPECT_TRUE(passes(s));
      }
    }
  }
}

TEST(Attend, CausalAndWindow) {
  const std::pair<int64_t, int64_t> sizes[] = {{1, 40}, {40, 40}, {17, 70}, {70, 17}, {130, 131}, {4, 300}};
  const std::pair<int64_t, int64_t> windows[] = {{-1, -1}, {0, 0},  {0, -1}, {-1, 0},
                                                 {5, 3},   {20, 0}, {-1, 9}, {1000, 1000}};
  uint64_t seed = 7000;
  for (const auto &[queries, keys] : sizes) {
    for (Causal causal : {Causal::none, Causal::bottom_right, Causal::top_left}) {
      for (const auto &[left, right] : windows) {
        CaseSpec s = small_spec(++seed);
        s.type = kTypes[seed % 3];
        s.batch = 2;
        s.queries = queries;
        s.keys = keys;
        s.head_dim = s.value_dim = 32;
        s.causal = causal;
        s.window_left = left;
        s.window_right = right;
        s.key_lengths = seed % 3 == 0;
        s.weights = seed % 4 ? Weights::none : Weights::heads;
        EXPECT_TRUE(passes(s));
      }
    }
  }
}

TEST(Attend, BranchesAndPositions) {
  uint64_t seed = 8000;
  for (const std::vector<std::string> &branches : linked_branch_sets()) {
    for (PositionKind kind :
         {PositionKind::none, PositionKind::arange, PositionKind::shifted, PositionKind::fractional,
          PositionKind::scattered, PositionKind::far, PositionKind::islands}) {
      for (int64_t queries : {1, 21}) {
        for (int masked = 0; masked < 2; ++masked) {
          CaseSpec s;
          s.seed = ++seed;
          s.type = kTypes[seed % 3];
          s.queries = queries;
          s.keys = 43;
          s.head_dim = s.value_dim = 64;
          s.branches = branches;
          s.relative_per_head = seed % 2;
          s.relative_plus = seed % 5 < 2;
          s.relative_max_distance = seed % 7 < 3 ? 8 : 64;
          s.t5_bidirectional = seed % 3;
          s.t5_max_distance = seed % 2 ? 40 : 128;
          s.positions = kind;
          const bool exact = kind == PositionKind::far || kind == PositionKind::islands;
          s.position_type =
              exact ? (seed % 2 ? DType::i64 : DType::f64) : (seed % 2 ? DType::f32 : DType::f64);
          s.position_rank = static_cast<int>(seed % 3) + 1;
          s.q_position_mask = masked;
          s.k_position_mask = masked;
          s.causal = seed % 2 ? Causal::none : Causal::bottom_right;
          s.weights = seed % 5 ? Weights::none : Weights::heads;
          EXPECT_TRUE(passes(s));
        }
      }
    }
  }
}

TEST(Attend, BranchesOfLargeHeads) {
  uint64_t seed = 8400;
  for (DType type : kTypes) {
    for (int64_t dim : {160, 256}) {
      for (int64_t queries : {1, 19}) {
        CaseSpec s = small_spec(++seed);
        s.type = type;
        s.queries = queries;
        s.keys = 43;
        s.head_dim = s.value_dim = dim;
        s.branches = {"alibi"};
        s.positions = PositionKind::fractional;
        s.position_type = DType::f32;
        EXPECT_TRUE(passes(s));
      }
    }
  }
}

TEST(Attend, T5Buckets) {
  uint64_t seed = 8500;
  for (int64_t buckets : {4, 8, 32, 40}) {
    for (int64_t max_distance : {21, 64, 128, 300}) {
      for (bool bidirectional : {false, true}) {
        CaseSpec s = small_spec(++seed);
        s.query_heads = 2;
        s.queries = seed % 2 ? 1 : 33;
        s.keys = 400;
        s.head_dim = s.value_dim = 32;
        s.branches = {"t5"};
        s.t5_buckets = buckets;
        s.t5_max_distance = max_distance;
        s.t5_bidirectional = bidirectional;
        s.positions = seed % 3 ? PositionKind::none : PositionKind::scattered;
        EXPECT_TRUE(passes(s));
      }
    }
  }
}

TEST(Attend, Rope) {
  uint64_t seed = 9000;
  for (Rope::Layout layout : {Rope::Layout::interleaved, Rope::Layout::half}) {
    for (int64_t dim : {2, 20, 59, 64, 128, 256}) {
      for (PositionKind kind :
           {PositionKind::none, PositionKind::shifted, PositionKind::times, PositionKind::far}) {
        for (int variant = 0; variant < 3; ++variant) {
          CaseSpec s;
          s.seed = ++seed;
          s.type = kTypes[seed % 3];
          s.queries = variant == 0 ? 1 : 26;
          s.keys = 39;
          s.head_dim = s.value_dim = dim;
          s.rotary_dim = variant == 1 ? (dim / 2 + 1) / 2 * 2 : dim / 2 * 2;
          s.rope_layout = layout;
          s.layout = seed % 2 ? Layout::padded : Layout::bthd;
          s.positions = kind;
          s.position_type = kind == PositionKind::far ? DType::i64 : DType::f64;
          s.position_rank = static_cast<int>(seed % 3) + 1;
          s.q_position_mask = variant == 2;
          s.k_position_mask = variant == 2;
          EXPECT_TRUE(passes(s));
        }
      }
    }
  }
}

TEST(Attend, RopeWithBranches) {
  uint64_t seed = 9500;
  for (const std::vector<std::string> &branches : linked_branch_sets()) {
    for (int64_t queries : {1, 30}) {
      CaseSpec s;
      s.seed = ++seed;
      s.type = kTypes[seed % 3];
      s.queries = queries;
      s.keys = 55;
      s.branches = branches;
      s.rotary_dim = 32;
      s.positions = PositionKind::fractional;
      s.position_rank = 3;
      s.q_position_mask = s.k_position_mask = true;
      s.dense.given = true;
      s.weights = Weights::mean;
      EXPECT_TRUE(passes(s));
    }
  }
}

TEST(Attend, ScaleSoftcapAndMagnitudes) {
  uint64_t seed = 10000;
  for (DType type : kTypes) {
    for (double logit_std : {0.01, 1.0, 8.0}) {
      for (float softcap : {0.f, 1.f, 30.f}) {
        for (int64_t queries : {1, 48}) {
          CaseSpec s;
          s.seed = ++seed;
          s.type = type;
          s.queries = queries;
          s.keys = 80;
          s.logit_std = logit_std;
          s.softcap = softcap;
          s.value_offset = seed % 2 ? 0 : 5;
          if (seed % 3 == 0) s.scale = seed % 2 ? 0.5f : -0.125f;
          s.weights = Weights::heads;
          EXPECT_TRUE(passes(s));
        }
      }
    }
  }
}

// Logits far beyond the cap, where the formula loses next to nothing but the rounding of tanh.
TEST(Attend, SaturatedSoftcap) {
  uint64_t seed = 11000;
  for (float softcap : {2.f, 10.f, 40.f}) {
    for (float scale : {0.25f, 1.f}) {
      for (int64_t queries : {1, 48}) {
        CaseSpec s;
        s.seed = ++seed;
        s.queries = queries;
        s.keys = 80;
        s.logit_std = 8;
        s.scale = scale;
        s.softcap = softcap;
        s.weights = Weights::heads;
        EXPECT_TRUE(passes(s));
      }
    }
  }
}

}  // namespace
}  // namespace posattn::oracle
