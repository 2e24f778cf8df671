// Equalities that attend() promises between calls of it: what must not matter does not.
#include <gtest/gtest.h>

#include <cmath>

#include "runtime/attend.h"
#include "runtime/error.h"
#include "runtime/threads.h"
#include "tests/case.h"
#include "tests/check.h"
#include "tests/device.h"

namespace posattn::oracle {
namespace {

CaseSpec spec_of(uint64_t seed, DType type = DType::f32) {
  CaseSpec s;
  s.seed = seed;
  s.type = type;
  s.queries = 37;
  s.keys = 70;
  return s;
}

const DType kTypes[] = {DType::f32, DType::bf16, DType::f16};

// Every kind of work once: what equalities that hold for all calls are tried on.
std::vector<CaseSpec> variety() {
  std::vector<CaseSpec> specs;
  for (DType type : kTypes) {
    for (int64_t queries : {1, 37}) {
      CaseSpec s = spec_of(100 + specs.size(), type);
      s.queries = queries;
      s.weights = Weights::heads;
      specs.push_back(s);
      s.causal = Causal::bottom_right;
      s.keep.given = true;
      s.keep.rank = 2;
      specs.push_back(s);
      s.branches = {"relative"};
      s.rotary_dim = 64;
      s.key_lengths = true;
      s.weights = Weights::mean;
      specs.push_back(s);
      s.branches = {"alibi"};
      s.positions = PositionKind::fractional;
      s.rotary_dim = 0;
      specs.push_back(s);
    }
  }
  return specs;
}

TEST(AttendProperties, ChunksEqualTheWhole) {
  on_every_target([] {
    for (DType type : kTypes) {
      for (int64_t chunk : {1, 7, 16, 50}) {
        CaseSpec s = spec_of(200, type);
        s.queries = s.keys = 101;
        s.branches = {"alibi"};
        s.causal = Causal::bottom_right;
        s.window_left = 60;
        s.keep.given = true;
        s.keep.broadcast = {false, true, true, false};
        Case c(s);
        // A chunk of queries continues where the last one ended.
        const Tensor positions(DType::i32, {s.queries});
        for (int32_t i = 0; i < s.queries; ++i) positions.as<int32_t>()[i] = i;
        for (int64_t begin = 0; begin < s.queries; begin += chunk) {
          const int64_t end = std::min(begin + chunk, s.queries);
          AttendArgs part = c.args();
          part.query = part.query.slice(2, begin, end);
          part.key = part.key.slice(2, 0, end);
          part.value = part.value.slice(2, 0, end);
          part.keep_mask = part.keep_mask.slice(3, 0, end);
          part.out = part.out.slice(2, begin, end);
          part.lse = part.lse.slice(2, begin, end);
          part.q_positions = positions.view().slice(0, begin, end);
          attend_on_device(part);
        }
        EXPECT_TRUE(accurate(c.args())) << name_of(type) << " in chunks of " << chunk;
      }
    }
  });
}

TEST(AttendProperties, DecodeEqualsTheLastRow) {
  on_every_target([] {
    for (const CaseSpec &spec : variety()) {
      CaseSpec s = spec;
      s.queries = s.keys = 70;
      s.causal = Causal::bottom_right;
      s.keep.given = false;
      Case c(s);
      c.attend();
      AttendArgs last = c.args();
      last.query = last.query.slice(2, 69, 70);
      last.out = last.out.slice(2, 69, 70);
      last.lse = last.lse.slice(2, 69, 70);
      if (s.weights == Weights::heads) last.weights = last.weights.slice(2, 69, 70);
      if (s.weights == Weights::mean) last.weights = last.weights.slice(1, 69, 70);
      Tensor position(DType::f64, {1});
      position.as<double>()[0] = 69;
      last.q_positions = last.q_positions.empty()
                             ? TensorView(position.view())
                             : last.q_positions.slice(last.q_positions.rank() - 1, 69, 70);
      attend_on_device(last);
      EXPECT_TRUE(accurate(c.args())) << describe(s);
    }
  });
}

TEST(AttendProperties, RunsRepeatBitForBit) {
  on_every_target([] {
    for (const CaseSpec &s : variety()) {
      Case c(s);
      set_num_threads(1);
      const Outputs one = outputs_of(c.args());
      for (int threads : {2, 3, 2}) {
        set_num_threads(threads);
        EXPECT_TRUE(same_bits(one, outputs_of(c.args()))) << threads << " threads, " << describe(s);
      }
      set_num_threads(0);
    }
  });
}

// A batch or a head is computed as if it were alone.
TEST(AttendProperties, BatchesAndHeadsDoNotMeet) {
  on_every_target([] {
    for (DType type : kTypes) {
      for (int64_t queries : {1, 37}) {
        CaseSpec s = spec_of(250, type);
        s.queries = queries;
        Case c(s);
        const Outputs all = outputs_of(c.args());
        for (int64_t b = 0; b < s.batch; ++b) {
          AttendArgs one = c.args();
          one.query = one.query.slice(0, b, b + 1).slice(1, 2, 4);
          one.key = one.key.slice(0, b, b + 1).slice(1, 1, 2);
          one.value = one.value.slice(0, b, b + 1).slice(1, 1, 2);
          const Outputs alone = outputs_of(one);
          EXPECT_TRUE(same_bits(alone.out, all.out.view().slice(0, b, b + 1).slice(1, 2, 4)));
          EXPECT_TRUE(same_bits(alone.lse, all.lse.view().slice(0, b, b + 1).slice(1, 2, 4)));
        }
      }
    }
  });
}

Tensor integers(int64_t count, int64_t first, DType type) {
  Tensor t(type, {count});
  for (int64_t i = 0; i < count; ++i) set_element(t, {i}, static_cast<double>(first + i));
  return t;
}

// Only differences of positions count for these branches.
TEST(AttendProperties, ShiftedPositionsGiveTheSame) {
  on_every_target([] {
    for (const char *branch : {"relative", "alibi", "t5", "rope"}) {
      CaseSpec s = spec_of(300);
      if (std::string(branch) == "rope") {
        s.rotary_dim = 64;
      } else {
        s.branches = {branch};
      }
      Case c(s);
      AccuracyRule rule(c.args());
      const auto expect_same = [&](int64_t shift, DType type) {
        AttendArgs shifted = c.args();
        const Tensor q = integers(s.queries, shift, type), k = integers(s.keys, shift, type);
        shifted.q_positions = q;
        shifted.k_positions = k;
        const Outputs outputs = outputs_of(shifted);
        shifted.out = outputs.out;
        shifted.lse = outputs.lse;
        const Comparison comparison = rule.compare(shifted);
        EXPECT_TRUE(comparison.ok) << branch << " shifted by " << shift << " as " << name_of(type) << ": "
                                   << comparison.text;
      };
      for (int64_t shift : {1, 5, -3, -1000, 100000}) expect_same(shift, DType::f32);
      for (int64_t shift : {1 << 25, -(1 << 27) - 1}) {
        expect_same(shift, DType::i32);
        expect_same(shift, DType::f64);
      }
      // Angles of a rotation are known to within a rounding of the position, so rope stops here.
      if (s.rotary_dim == 0) expect_same(int64_t{1} << 45, DType::i64);
    }
  });
}

TEST(AttendProperties, ConsecutivePositionsAreTheDefault) {
  on_every_target([] {
    for (const std::vector<std::string> &branches : linked_branch_sets()) {
      for (int64_t queries : {1, 37}) {
        CaseSpec s = spec_of(310);
        s.queries = queries;
        s.branches = branches;
        s.rotary_dim = 32;
        Case c(s);
        const Outputs expected = outputs_of(c.args());
        for (DType type : {DType::f32, DType::f64, DType::i32, DType::i64}) {
          AttendArgs args = c.args();
          const Tensor q = integers(queries, 0, type), k = integers(s.keys, 0, type);
          args.q_positions = q;
          args.k_positions = k;
          EXPECT_TRUE(same_answer(args, expected, outputs_of(args))) << describe(s);
        }
      }
    }
  });
}

TEST(AttendProperties, ZeroTablesChangeNothing) {
  on_every_target([] {
    for (DType type : kTypes) {
      for (int64_t queries : {1, 37}) {
        for (PositionKind positions : {PositionKind::none, PositionKind::fractional}) {
          CaseSpec s = spec_of(320, type);
          s.queries = queries;
          s.positions = positions;
          s.causal = Causal::bottom_right;
          Case c(s);
          const Outputs expected = outputs_of(c.args());
          const auto expect_same = [&](const LogitBranch &branch) {
            AttendArgs args = c.args();
            args.branches[0] = &branch;
            EXPECT_TRUE(same_answer(args, expected, outputs_of(args)))
                << branch.name() << ", " << describe(s);
          };
          const Tensor relative(DType::f32, {s.query_heads, 17}), slopes(DType::f32, {s.query_heads}),
              t5(DType::f32, {32, s.query_heads}), dense(type, {s.query_heads, queries, s.keys});
          expect_same(Relative(relative.view()));
          expect_same(Relative(relative.view(), Relative::Sign::plus));
          expect_same(Alibi(slopes.view()));
          expect_same(T5(t5.view()));
          AttendArgs args = c.args();
          args.dense_bias = dense;
          EXPECT_TRUE(same_answer(args, expected, outputs_of(args))) << "dense, " << describe(s);
        }
      }
    }
  });
}

TEST(AttendProperties, TokensWithoutPositionAreNotRotated) {
  on_every_target([] {
    for (DType type : kTypes) {
      for (int64_t queries : {1, 37}) {
        CaseSpec s = spec_of(330, type);
        s.queries = queries;
        s.rotary_dim = 64;
        s.positions = PositionKind::times;
        Case c(s);
        AttendArgs plain = c.args(), masked = c.args();
        plain.rope = nullptr;
        const Tensor q(DType::boolean, {queries}), k(DType::boolean, {s.keys});
        masked.q_position_mask = q;
        masked.k_position_mask = k;
        EXPECT_TRUE(same_bits(outputs_of(plain), outputs_of(masked))) << describe(s);
      }
    }
  });
}

TEST(AttendProperties, GroupedQueriesEqualRepeatedHeads) {
  on_every_target([] {
    for (DType type : kTypes) {
      for (int64_t queries : {1, 37}) {
        CaseSpec s = spec_of(340, type);
        s.query_heads = 6;
        s.queries = queries;
        Case c(s);
        AttendArgs repeated = c.args();
        // (B, 2, T, D) -> (B, 2, 3, T, D) with stride 0, copied to (B, 6, T, D).
        const auto repeat = [&](const TensorView &x) {
          Tensor result(type, {s.batch, 6, s.keys, s.head_dim});
          for (int64_t h = 0; h < 6; ++h) {
            copy(x.slice(1, h / 3, h / 3 + 1), result.view().slice(1, h, h + 1));
          }
          return result;
        };
        const Tensor key = repeat(c.args().key), value = repeat(c.args().value);
        repeated.key = key;
        repeated.value = value;
        EXPECT_TRUE(accurate(c.args(), outputs_of(repeated)));
        EXPECT_TRUE(accurate(repeated, outputs_of(c.args())));
      }
    }
  });
}

TEST(AttendProperties, KeepAndBlockAreOpposites) {
  on_every_target([] {
    for (int64_t queries : {1, 37}) {
      CaseSpec s = spec_of(350);
      s.queries = queries;
      s.keep.given = true;
      s.key_keep = true;
      s.weights = Weights::heads;
      Case c(s);
      AttendArgs blocked = c.args();
      const auto inverted = [](const TensorView &mask) {
        Tensor result = copy_of(mask, DType::boolean);
        for (int64_t i = 0; i < result.view().num_elements(); ++i) result.as<uint8_t>()[i] ^= 1;
        return result;
      };
      const Tensor block = inverted(blocked.keep_mask), key_block = inverted(blocked.key_keep_mask);
      blocked.block_mask = block;
      blocked.key_block_mask = key_block;
      blocked.keep_mask = blocked.key_keep_mask = TensorView();
      EXPECT_TRUE(same_bits(outputs_of(c.args()), outputs_of(blocked)));
    }
  });
}

// Any byte but 0 is true.
TEST(AttendProperties, TrueIsAnyNonzeroByte) {
  on_every_target([] {
    CaseSpec s = spec_of(355);
    s.keep.given = s.block.given = true;
    s.key_keep = s.key_block = true;
    s.q_position_mask = s.k_position_mask = true;
    s.rotary_dim = 16;
    Case c(s);
    AttendArgs args = c.args();
    std::vector<Tensor> kept;
    for (TensorView *mask : {&args.keep_mask, &args.block_mask, &args.key_keep_mask, &args.key_block_mask,
                             &args.q_position_mask, &args.k_position_mask}) {
      kept.push_back(copy_of(*mask, DType::boolean));
      for (int64_t i = 0; i < kept.back().view().num_elements(); ++i) {
        uint8_t &byte = kept.back().as<uint8_t>()[i];
        if (byte) byte = i % 3 ? 255 : 2;
      }
      *mask = kept.back().view();
    }
    EXPECT_TRUE(same_bits(outputs_of(c.args()), outputs_of(args)));
  });
}

TEST(AttendProperties, LengthsEqualMasksEqualSlices) {
  on_every_target([] {
    for (int64_t queries : {1, 37}) {
      CaseSpec s = spec_of(360);
      s.queries = queries;
      Case c(s);
      const int64_t wanted[] = {41, 70};
      Tensor lengths(DType::i64, {2}), keep(DType::boolean, {2, s.keys});
      for (int64_t b = 0; b < 2; ++b) {
        lengths.as<int64_t>()[b] = wanted[b];
        for (int64_t j = 0; j < wanted[b]; ++j) set_element(keep, {b, j}, 1);
      }
      AttendArgs by_length = c.args(), by_mask = c.args();
      by_length.key_lengths = lengths;
      by_mask.key_keep_mask = keep;
      const Outputs a = outputs_of(by_length), m = outputs_of(by_mask);
      EXPECT_TRUE(accurate(by_mask, a));
      EXPECT_TRUE(accurate(by_length, m));
      for (int64_t b = 0; b < 2; ++b) {
        AttendArgs sliced = c.args();
        sliced.query = sliced.query.slice(0, b, b + 1);
        sliced.key = sliced.key.slice(0, b, b + 1).slice(2, 0, wanted[b]);
        sliced.value = sliced.value.slice(0, b, b + 1).slice(2, 0, wanted[b]);
        sliced.out = a.out.view().slice(0, b, b + 1);
        sliced.lse = a.lse.view().slice(0, b, b + 1);
        EXPECT_TRUE(accurate(sliced));
      }
    }
  });
}

// What key masks and lengths hide may be anything: the same bits come out.
TEST(AttendProperties, HiddenKeysHaveNoInfluence) {
  on_every_target([] {
    for (DType type : kTypes) {
      for (int64_t queries : {1, 37}) {
        for (int kind = 0; kind < 4; ++kind) {
          CaseSpec s = spec_of(370 + static_cast<uint64_t>(kind), type);
          s.queries = queries;
          s.rotary_dim = 32;
          s.branches = {"relative"};
          s.weights = Weights::mean;
          s.key_keep = kind == 0;
          s.key_block = kind == 1;
          s.key_add = kind == 2;
          s.key_lengths = kind == 3;
          Case c(s);
          const Tensor key = copy_of(c.args().key, type), value = copy_of(c.args().value, type);
          for (const Tensor *tensor : {&key, &value}) {
            for_each_index(tensor->view(), [&](const std::vector<int64_t> &index) {
              const TensorView at = tensor->view()
                                        .select(0, index[0])
                                        .select(0, index[1])
                                        .select(0, index[2])
                                        .slice(0, index[3], index[3] + 1);
              if (!std::isfinite(values_of(at)[0])) set_element(*tensor, index, 0.25);
            });
          }
          AttendArgs clean = c.args();
          clean.key = key;
          clean.value = value;
          EXPECT_TRUE(same_bits(outputs_of(c.args()), outputs_of(clean))) << describe(s);
        }
      }
    }
  });
}

// The softmax is a merge of parts: this is what context parallelism does with lse.
TEST(AttendProperties, PartsOfTheKeysMergeByLse) {
  on_every_target([] {
    for (int64_t queries : {1, 37}) {
      CaseSpec s = spec_of(380);
      s.queries = queries;
      s.logit_std = 4;
      Case c(s);
      AttendArgs first = c.args(), second = c.args();
      first.key = first.key.slice(2, 0, 29);
      first.value = first.value.slice(2, 0, 29);
      second.key = second.key.slice(2, 29, s.keys);
      second.value = second.value.slice(2, 29, s.keys);
      const Outputs a = outputs_of(first), b = outputs_of(second), whole = outputs_of(c.args());
      Outputs merged = {whole.out.clone(), whole.lse.clone(), Tensor()};
      const int64_t rows = merged.lse.view().num_elements();
      for (int64_t row = 0; row < rows; ++row) {
        const float lse_a = a.lse.as<float>()[row], lse_b = b.lse.as<float>()[row];
        const float largest = std::max(lse_a, lse_b);
        const float lse = largest + std::log(std::exp(lse_a - largest) + std::exp(lse_b - largest));
        merged.lse.as<float>()[row] = lse;
        for (int64_t d = row * s.value_dim; d < (row + 1) * s.value_dim; ++d) {
          merged.out.as<float>()[d] =
              a.out.as<float>()[d] * std::exp(lse_a - lse) + b.out.as<float>()[d] * std::exp(lse_b - lse);
        }
      }
      // Merging rounds a few times more than one pass does.
      const Comparison out = compare("out", merged.out.view(), values_of(whole.out), values_of(whole.out));
      EXPECT_LT(out.error, 1e-5) << out.text;
      const Comparison lse = compare("lse", merged.lse.view(), values_of(whole.lse), values_of(whole.lse));
      EXPECT_LT(lse.error, 1e-5) << lse.text;
    }
  });
}

TEST(AttendProperties, WorkspaceIsLinear) {
  on_every_target([] {
    CaseSpec s = spec_of(390);
    s.batch = s.query_heads = s.kv_heads = 1;
    s.head_dim = s.value_dim = 32;
    const auto bytes = [&](int64_t queries, int64_t keys) {
      s.queries = queries;
      s.keys = keys;
      AttendArgs args;
      args.query = TensorView(nullptr, DType::f32, {1, 1, queries, 32});
      args.key = args.value = TensorView(nullptr, DType::f32, {1, 1, keys, 32});
      args.out = MutableTensorView(nullptr, DType::f32, {1, 1, queries, 32});
      args.causal = Causal::bottom_right;
      return static_cast<double>(workspace_size_on_device(args));
    };
    const double small = bytes(10000, 10000), large = bytes(40000, 40000);
    EXPECT_LT(large, 4.5 * small);
    EXPECT_LT(large, 40000.0 * 32 * 4 * 6);
  });
}

}  // namespace
}  // namespace posattn::oracle
