// The edges of attend(): nothing to attend to, nothing at all, and numbers at the ends of their range.
#include <gtest/gtest.h>

#include <cfloat>
#include <cmath>
#include <limits>

#include "runtime/attend.h"
#include "tests/case.h"
#include "tests/check.h"
#include "tests/device.h"

namespace posattn::oracle {
namespace {

const float kInfinity = std::numeric_limits<float>::infinity();
const DType kTypes[] = {DType::f32, DType::bf16, DType::f16};
// On x86, inf - inf and 0 * inf give a NaN with its sign set, on GPUs one with all other bits.
const double kNans[] = {std::nan(""), -std::nan(""), std::nan("0x7ffffffffffff")};

// Rows with nothing visible: out 0, lse -inf, weights 0.
void expect_hidden_row(const Outputs &outputs, int64_t row) {
  for (double x : values_of(outputs.out.view().slice(2, row, row + 1))) EXPECT_EQ(x, 0) << "out, row " << row;
  for (double x : values_of(outputs.lse.view().slice(2, row, row + 1))) {
    EXPECT_EQ(x, -kInfinity) << "lse, row " << row;
  }
  if (outputs.weights.empty()) return;
  const int query_dim = outputs.weights.rank() - 2;
  for (double x : values_of(outputs.weights.view().slice(query_dim, row, row + 1))) {
    EXPECT_EQ(x, 0) << "weights, row " << row;
  }
}

// Rows that see one key each: outputs are values. Tensor cores multiply parts of float32, of which the last
// bit may be lost.
void expect_values(const AttendArgs &args, const Outputs &outputs, const TensorView &values) {
  if (on_cuda() && values.dtype() == DType::f32) {
    EXPECT_TRUE(accurate(args, outputs));
  } else {
    EXPECT_TRUE(same_bits(outputs.out.view(), copy_of(values, values.dtype()).view()));
  }
}

CaseSpec small(uint64_t seed, DType type = DType::f32, int64_t queries = 5) {
  CaseSpec s;
  s.seed = seed;
  s.type = type;
  s.queries = queries;
  s.keys = 20;
  s.weights = Weights::heads;
  return s;
}

TEST(AttendEdges, NoKeys) {
  on_every_target([] {
    for (DType type : kTypes) {
      for (Weights weights : {Weights::none, Weights::mean, Weights::heads}) {
        for (int64_t queries : {1, 5}) {
          CaseSpec s = small(1, type, queries);
          s.keys = 0;
          s.weights = weights;
          s.out_layout = Layout::padded;
          s.branches = {"alibi"};
          s.rotary_dim = 8;
          s.key_lengths = s.key_keep = s.keep.given = true;
          s.causal = Causal::bottom_right;
          Case c(s);
          c.attend();
          EXPECT_EQ(c.damage(), "");
          for (double x : values_of(c.args().out)) EXPECT_EQ(x, 0);
          for (double x : values_of(c.args().lse)) EXPECT_EQ(x, -kInfinity);
        }
      }
    }
  });
}

TEST(AttendEdges, NoQueriesOrBatches) {
  on_every_target([] {
    for (DType type : kTypes) {
      for (int which = 0; which < 3; ++which) {
        CaseSpec s = small(2, type);
        if (which == 0) s.queries = 0;
        if (which == 1) s.batch = 0;
        if (which == 2) s.queries = s.keys = 0;
        s.branches = {"relative"};
        s.rotary_dim = 8;
        s.keep.given = s.add.given = s.key_lengths = s.key_add = true;
        Case c(s);
        EXPECT_NO_THROW(c.attend()) << describe(s);
        EXPECT_EQ(c.damage(), "");
      }
    }
  });
}

TEST(AttendEdges, ZeroLengths) {
  on_every_target([] {
    for (DType type : kTypes) {
      for (int64_t queries : {1, 5}) {
        CaseSpec s = small(3, type, queries);
        Case c(s);
        Tensor lengths(DType::i32, {2});
        lengths.as<int32_t>()[1] = 20;
        AttendArgs args = c.args();
        args.key_lengths = lengths;
        const Outputs outputs = outputs_of(args);
        EXPECT_TRUE(accurate(args, outputs));
        for (double x : values_of(outputs.out.view().slice(0, 0, 1))) EXPECT_EQ(x, 0);
      }
    }
  });
}

// Causal from the end: with more queries than keys, the first see nothing. So does a window beside all keys.
TEST(AttendEdges, RowsThatCausalOrWindowEmpty) {
  on_every_target([] {
    for (int64_t queries : {23, 50, 200}) {
      CaseSpec s = small(4, DType::f32, queries);
      s.causal = Causal::bottom_right;
      Case c(s);
      const Outputs causal = outputs_of(c.args());
      EXPECT_TRUE(accurate(c.args(), causal));
      for (int64_t row = 0; row < queries - s.keys; ++row) expect_hidden_row(causal, row);
      AttendArgs args = c.args();
      args.causal = Causal::none;
      args.window_left = args.window_right = 0;
      const Outputs window = outputs_of(args);
      EXPECT_TRUE(accurate(args, window));
      for (int64_t row = 0; row < queries - s.keys; ++row) expect_hidden_row(window, row);
    }
  });
}

TEST(AttendEdges, RowsThatMasksHide) {
  on_every_target([] {
    for (DType type : kTypes) {
      for (int64_t queries : {1, 5}) {
        CaseSpec s = small(5, type, queries);
        Case c(s);
        const Tensor keep(DType::boolean, {queries, s.keys}), block(DType::boolean, {queries, s.keys}),
            add(type, {queries, s.keys}), dense(DType::f32, {queries, s.keys});
        const int64_t row = queries / 2;
        for (int64_t i = 0; i < queries; ++i) {
          for (int64_t j = 0; j < s.keys; ++j) {
            set_element(keep, {i, j}, i != row);
            set_element(block, {i, j}, i == row);
            set_element(add, {i, j}, i == row ? -kInfinity : 0);
            set_element(dense, {i, j}, i == row ? -kInfinity : 1);
          }
        }
        const auto check = [&](TensorView AttendArgs::*mask, const Tensor &value, const char *name) {
          SCOPED_TRACE(name);
          AttendArgs args = c.args();
          args.*mask = value;
          const Outputs outputs = outputs_of(args);
          EXPECT_TRUE(accurate(args, outputs));
          expect_hidden_row(outputs, row);
        };
        check(&AttendArgs::keep_mask, keep, "keep");
        check(&AttendArgs::block_mask, block, "block");
        check(&AttendArgs::add_mask, add, "add");
        check(&AttendArgs::dense_bias, dense, "dense");
      }
    }
  });
}

// Together they hide a row that neither hides alone.
TEST(AttendEdges, MasksThatHideARowTogether) {
  on_every_target([] {
    CaseSpec s = small(6);
    Case c(s);
    const Tensor keep(DType::boolean, {s.keys}), add(DType::f32, {s.keys}), lengths(DType::i64, {2});
    for (int64_t j = 0; j < s.keys; ++j) {
      set_element(keep, {j}, j % 2);
      set_element(add, {j}, j % 2 && j < 10 ? -kInfinity : 0);
    }
    lengths.as<int64_t>()[0] = lengths.as<int64_t>()[1] = 10;
    AttendArgs args = c.args();
    args.keep_mask = keep;
    args.add_mask = add;
    args.key_lengths = lengths;
    const Outputs outputs = outputs_of(args);
    for (int64_t row = 0; row < s.queries; ++row) expect_hidden_row(outputs, row);
  });
}

// However low, a finite mask is only a number: a row of them is a softmax.
void expect_finite_mask_does_not_hide(int64_t queries, int64_t keys, double low, int which) {
  CaseSpec s = small(7, DType::f32, queries);
  s.keys = keys;
  Case c(s);
  const Tensor mask(DType::f32, {2, s.keys}), wide(DType::f32, {queries, s.keys});
  for (int64_t j = 0; j < s.keys; ++j) {
    for (int64_t i = 0; i < 2; ++i) set_element(mask, {i, j}, low);
    for (int64_t i = 0; i < queries; ++i) set_element(wide, {i, j}, low);
  }
  AttendArgs args = c.args();
  if (which == 0) args.add_mask = wide;
  if (which == 1) args.dense_bias = wide;
  if (which == 2) args.key_add_mask = mask;
  const Outputs outputs = outputs_of(args);
  for (double x : values_of(outputs.lse)) EXPECT_TRUE(std::isfinite(x)) << x << " with " << low;
  const std::vector<double> weights = values_of(outputs.weights);
  const size_t row_size = static_cast<size_t>(keys);
  for (size_t row = 0; row < weights.size() / row_size; ++row) {
    double sum = 0;
    for (size_t j = 0; j < row_size; ++j) sum += weights[row * row_size + j];
    EXPECT_NEAR(sum, 1, 1e-5) << "with " << low << " as mask " << which;
  }
  // Among visible keys they count for nothing.
  for (int64_t i = 0; i < queries; ++i) set_element(wide, {i, 3}, 0);
  for (int64_t i = 0; i < 2; ++i) set_element(mask, {i, 3}, 0);
  EXPECT_TRUE(accurate(args, outputs_of(args)));
}

TEST(AttendEdges, FiniteMasksDoNotHide) {
  on_every_target([] {
    for (int64_t queries : {1, 5}) {
      for (int64_t keys : {20, 1300}) {
        for (double low : {-1e9, -3e38, -static_cast<double>(FLT_MAX)}) {
          for (int which = 0; which < 3; ++which) {
            expect_finite_mask_does_not_hide(queries, keys, low, which);
          }
        }
      }
    }
  });
}

// The same of a bias of 16 bits in tiles, beside keys that are hidden.
TEST(AttendEdges, FiniteBiasesOf16BitsDoNotHide) {
  on_every_target([] {
    for (DType type : {DType::bf16, DType::f16}) {
      CaseSpec s = small(9, type, 80);
      s.keys = 136;
      s.weights = Weights::none;
      Case c(s);
      const double low = type == DType::bf16 ? -2e38 : -65504;
      const Tensor bias(type, {s.queries, s.keys});
      for (int64_t i = 0; i < s.queries; ++i) {
        for (int64_t j = 0; j < s.keys; ++j) {
          const bool is_low = i < 20 || (i < 40 && j % 3 == 0), is_hidden = j == i || i == 50;
          set_element(bias, {i, j}, is_hidden ? -kInfinity : is_low ? low : 0.5);
        }
      }
      AttendArgs args = c.args();
      args.dense_bias = bias;
      const Outputs outputs = outputs_of(args);
      EXPECT_TRUE(accurate(args, outputs));
      for (int64_t row = 0; row < s.queries; ++row) {
        if (row == 50) {
          expect_hidden_row(outputs, row);
          continue;
        }
        for (double x : values_of(outputs.lse.view().slice(2, row, row + 1)))
          EXPECT_TRUE(std::isfinite(x)) << row;
      }
    }
  });
}

// Two finite masks whose sum is beyond float32 still hide nothing.
TEST(AttendEdges, FiniteMasksThatOverflowDoNotHide) {
  on_every_target([] {
    CaseSpec s = small(8);
    Case c(s);
    const Tensor low(DType::f32, {s.keys}), key_low(DType::f32, {1, s.keys});
    for (int64_t j = 0; j < s.keys; ++j) {
      set_element(low, {j}, -FLT_MAX);
      set_element(key_low, {0, j}, -FLT_MAX);
    }
    AttendArgs args = c.args();
    args.add_mask = low;
    args.dense_bias = low;
    args.key_add_mask = key_low;
    const Outputs outputs = outputs_of(args);
    for (double x : values_of(outputs.out)) EXPECT_TRUE(std::isfinite(x));
    for (double x : values_of(outputs.lse)) EXPECT_FALSE(std::isnan(x));
    const std::vector<double> weights = values_of(outputs.weights);
    double sum = 0;
    for (size_t j = 0; j < 20; ++j) sum += weights[j];
    EXPECT_NEAR(sum, 1, 1e-5);
  });
}

TEST(AttendEdges, AWindowOfZeroIsTheDiagonal) {
  on_every_target([] {
    for (DType type : kTypes) {
      CaseSpec s = small(9, type, 20);
      s.query_heads = s.kv_heads = 2;
      s.window_left = s.window_right = 0;
      Case c(s);
      expect_values(c.args(), outputs_of(c.args()), c.args().value);
      // As does a decode step that sees itself alone.
      AttendArgs last = c.args();
      last.query = last.query.slice(2, 19, 20);
      expect_values(last, outputs_of(last), last.value.slice(2, 19, 20));
    }
  });
}

TEST(AttendEdges, HugeWindowsAreNone) {
  on_every_target([] {
    CaseSpec s = small(10, DType::f32, 33);
    Case c(s);
    AttendArgs wide = c.args();
    wide.window_left = wide.window_right = std::numeric_limits<int64_t>::max();
    EXPECT_TRUE(same_bits(outputs_of(c.args()), outputs_of(wide)));
  });
}

// Logits of many thousands: the largest takes all.
TEST(AttendEdges, HugeScale) {
  on_every_target([] {
    for (DType type : kTypes) {
      for (int64_t queries : {1, 33}) {
        for (float scale : {1e4f, -1e4f, 1e30f}) {
          CaseSpec s = small(11, type, queries);
          s.scale = scale;
          Case c(s);
          const Outputs outputs = outputs_of(c.args());
          for (double x : values_of(outputs.out)) ASSERT_TRUE(std::isfinite(x));
          const AttentionResult reference = reference_attention(c.args());
          const std::vector<double> out = values_of(outputs.out);
          int same = 0;
          for (size_t i = 0; i < out.size(); ++i) same += std::abs(out[i] - reference.out[i]) < 1e-2;
          // Ties of float32 products apart.
          EXPECT_GE(same, static_cast<int>(out.size() * 9 / 10)) << scale;
        }
      }
    }
  });
}

TEST(AttendEdges, ZeroScaleIsTheMean) {
  on_every_target([] {
    for (int64_t queries : {1, 33}) {
      CaseSpec s = small(12, DType::f32, queries);
      s.scale = 0.f;
      Case c(s);
      const Outputs outputs = outputs_of(c.args());
      EXPECT_TRUE(accurate(c.args(), outputs));
      for (double x : values_of(outputs.lse)) EXPECT_NEAR(x, std::log(20.0), 1e-6);
    }
  });
}

// NaN is an input like any other: it spoils the rows that see it and no more.
void expect_nan_stays_in_its_row(double nan) {
  on_every_target([=] {
    for (DType type : kTypes) {
      CaseSpec s = small(13, type, 20);
      s.softcap = type == DType::bf16 ? 20.f : 0.f;
      s.batch = 1;
      s.query_heads = s.kv_heads = 2;
      Case c(s);
      const Outputs clean = outputs_of(c.args());
      const Tensor query = copy_of(c.args().query, type);
      set_element(query, {0, 0, 7, 3}, nan);
      AttendArgs args = c.args();
      args.query = query;
      const Outputs outputs = outputs_of(args);
      for (int64_t row = 0; row < 20; ++row) {
        const TensorView a = outputs.out.view().slice(1, 0, 1).slice(2, row, row + 1);
        const TensorView b = clean.out.view().slice(1, 0, 1).slice(2, row, row + 1);
        if (row == 7) {
          for (double x : values_of(a)) EXPECT_TRUE(std::isnan(x));
        } else {
          EXPECT_TRUE(same_bits(a, b)) << "row " << row;
        }
      }
      EXPECT_TRUE(same_bits(outputs.out.view().slice(1, 1, 2), clean.out.view().slice(1, 1, 2)));
    }
  });
}

TEST(AttendEdges, NanStaysInItsRow) {
  for (double nan : kNans) expect_nan_stays_in_its_row(nan);
}

// A key that holds NaN spoils whoever sees it: it is not taken for a hidden one.
void expect_visible_nan_is_seen(double nan) {
  on_every_target([=] {
    for (int64_t queries : {1, 20}) {
      CaseSpec s = small(14, DType::f32, queries);
      Case c(s);
      const Tensor key = copy_of(c.args().key, DType::f32), value = copy_of(c.args().value, DType::f32);
      set_element(key, {0, 0, 4, 5}, nan);
      set_element(value, {1, 1, 4, 5}, nan);
      AttendArgs args = c.args();
      args.key = key;
      const Outputs by_key = outputs_of(args);
      for (double x : values_of(by_key.out.view().slice(0, 0, 1).slice(1, 0, 2))) EXPECT_TRUE(std::isnan(x));
      args.key = c.args().key;
      args.value = value;
      const Outputs by_value = outputs_of(args);
      for (double x : values_of(by_value.out.view().slice(0, 1, 2).slice(1, 2, 4).slice(3, 5, 6))) {
        EXPECT_TRUE(std::isnan(x));
      }
      for (double x : values_of(by_value.out.view().slice(0, 1, 2).slice(1, 2, 4).slice(3, 0, 5))) {
        EXPECT_TRUE(std::isfinite(x));
      }
    }
  });
}

TEST(AttendEdges, VisibleNanIsSeen) {
  for (double nan : kNans) expect_visible_nan_is_seen(nan);
}

// The same under each kind of mask, which may hold a NaN itself, and in all results.
void expect_masked_nan_is_seen(DType type, int64_t queries, Weights weights, double nan) {
  CaseSpec s = small(16, type, queries);
  s.keys = 24;  // so that a bias has tiles
  s.weights = weights;
  Case c(s);
  const auto check = [&](const AttendArgs &args, const char *name) {
    SCOPED_TRACE(name);
    const Outputs outputs = outputs_of(args);
    // Of the first key head of the first batch.
    const auto seen = [](const TensorView &all) { return values_of(all.slice(0, 0, 1).slice(1, 0, 2)); };
    for (double x : seen(outputs.out)) ASSERT_TRUE(std::isnan(x)) << "out";
    for (double x : seen(outputs.lse)) ASSERT_TRUE(std::isnan(x)) << "lse";
    for (double x : values_of(outputs.out.view().slice(0, 1, 2))) ASSERT_TRUE(std::isfinite(x)) << "out";
    if (outputs.weights.empty()) return;
    for (double x : seen(outputs.weights)) ASSERT_TRUE(std::isnan(x)) << "weights";
  };
  const Tensor key = copy_of(c.args().key, type);
  set_element(key, {0, 0, 4, 5}, nan);
  const Tensor zeros(type, {2, 1, queries, s.keys}), bias(type, {2, 1, queries, s.keys});
  const Tensor key_zeros(DType::f32, {2, s.keys}), key_bias(DType::f32, {2, s.keys});
  for (int64_t i = 0; i < queries; ++i) {
    set_element(bias, {0, 0, i, 4}, nan);
    set_element(bias, {0, 0, i, 5}, type == DType::f16 ? -65504 : -2e38);
  }
  set_element(key_bias, {0, 4}, nan);
  for (const bool in_keys : {true, false}) {
    SCOPED_TRACE(in_keys ? "of a key" : "of a mask");
    AttendArgs args = c.args();
    if (in_keys) {
      args.key = key;
      check(args, "plain");
      args.softcap = 5;
      check(args, "softcap");
      args.softcap = 0;
    }
    args.add_mask = in_keys ? zeros : bias;
    check(args, "add");
    args.dense_bias = zeros;
    check(args, "add and dense");
    args.add_mask = {};
    args.dense_bias = in_keys ? zeros : bias;
    check(args, "dense");
    args.key_add_mask = key_zeros;
    check(args, "dense and key_add");
    args.dense_bias = {};
    args.key_add_mask = in_keys ? key_zeros : key_bias;
    check(args, "key_add");
  }
}

TEST(AttendEdges, MaskedNanIsSeen) {
  on_every_target([] {
    for (DType type : kTypes) {
      SCOPED_TRACE(name_of(type));
      for (int64_t queries : {1, 5, 80}) {
        for (Weights weights : {Weights::none, Weights::heads}) {
          for (double nan : kNans) expect_masked_nan_is_seen(type, queries, weights, nan);
        }
      }
    }
  });
}

TEST(AttendEdges, OneOfEverything) {
  on_every_target([] {
    for (DType type : kTypes) {
      CaseSpec s = small(15, type, 1);
      s.batch = s.query_heads = s.kv_heads = s.keys = s.head_dim = s.value_dim = 1;
      Case c(s);
      const Outputs outputs = outputs_of(c.args());
      expect_values(c.args(), outputs, c.args().value);
      EXPECT_EQ(values_of(outputs.weights)[0], 1);
    }
  });
}

}  // namespace
}  // namespace posattn::oracle
