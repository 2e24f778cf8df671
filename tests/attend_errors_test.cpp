// Every bad argument of attend(): one exception whose text starts with the argument's name, before anything
// is written. Each test spoils a call that is valid otherwise.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <functional>
#include <limits>
#include <vector>

#include "runtime/attend.h"
#include "runtime/error.h"
#include "runtime/kernel_registry.h"
#include "runtime/kv_cache.h"
#include "tests/guarded_tensor.h"

namespace posattn::oracle {
namespace {

constexpr int64_t kBatch = 2, kHeads = 4, kKvHeads = 2, kQueries = 5, kKeys = 9, kDim = 32, kValueDim = 64;
const float kNan = std::nanf(""), kInfinity = std::numeric_limits<float>::infinity();

// A tensor of zeros that lives as long as the test.
class Shelf {
 public:
  TensorView zeros(DType type, const std::vector<int64_t> &shape) {
    kept_.push_back(Tensor(type, static_cast<int>(shape.size()), shape.data()));
    return kept_.back().view();
  }
  // The last dimension in steps of two.
  TensorView gaps(DType type, std::vector<int64_t> shape) {
    shape.push_back(2);
    kept_.push_back(Tensor(type, static_cast<int>(shape.size()), shape.data()));
    return kept_.back().view().select(static_cast<int>(shape.size()) - 1, 0);
  }
  TensorView numbers(DType type, std::initializer_list<double> values) {
    kept_.push_back(Tensor(type, {static_cast<int64_t>(values.size())}));
    int64_t i = 0;
    for (double value : values) set_element(kept_.back(), {i++}, value);
    return kept_.back().view();
  }

 private:
  std::vector<Tensor> kept_;
};

MutableTensorView writable(const TensorView &view) {
  int64_t shape[kMaxRank], strides[kMaxRank];
  for (int d = 0; d < view.rank(); ++d) {
    shape[d] = view.size(d);
    strides[d] = view.stride(d);
  }
  return MutableTensorView(const_cast<void *>(view.data()), view.dtype(), view.rank(), shape, strides);
}

class AttendErrors : public ::testing::Test {
 protected:
  using Spoil = std::function<void(AttendArgs &)>;

  AttendErrors()
      : out_("out", DType::f32, {kBatch, kHeads, kQueries, kValueDim}),
        lse_("lse", DType::f32, {kBatch, kHeads, kQueries}),
        weights_("weights", DType::f32, {kBatch, kHeads, kQueries, kKeys}) {
    valid_.query = shelf.zeros(DType::f32, {kBatch, kHeads, kQueries, kDim});
    valid_.key = shelf.zeros(DType::f32, {kBatch, kKvHeads, kKeys, kDim});
    valid_.value = shelf.zeros(DType::f32, {kBatch, kKvHeads, kKeys, kValueDim});
    valid_.out = out_.view();
    valid_.lse = lse_.view();
    valid_.weights = weights_.view();
    valid_.need_weights = Weights::heads;
    for (GuardedTensor *output : {&out_, &lse_, &weights_}) output->freeze();
  }

  // attend() refuses, naming the argument; so does attend_workspace_size() where shapes and options tell.
  void expect_error(const std::string &argument, const Spoil &spoil, bool by_shape = true) {
    AttendArgs args = valid_;
    spoil(args);
    SCOPED_TRACE("a bad " + argument);
    if (by_shape) {
      expect_throw(argument, [&] { attend_workspace_size(args); });
    }
    expect_throw(argument, [&] { attend(args); });
    for (const GuardedTensor *output : {&out_, &lse_, &weights_}) EXPECT_EQ(output->damage(false), "");
  }
  void expect_value_error(const std::string &argument, const Spoil &spoil) {
    expect_error(argument, spoil, false);
  }

  static void expect_throw(const std::string &argument, const std::function<void()> &call) {
    try {
      call();
      ADD_FAILURE() << "no error";
    } catch (const Error &error) {
      const std::string text = error.what();
      EXPECT_EQ(text.substr(0, argument.size() + 1), argument + ":") << text;
      EXPECT_EQ(text.find('\n'), std::string::npos) << text;
      EXPECT_GT(text.size(), argument.size() + 8) << text;
    }
  }

  Shelf shelf;
  GuardedTensor out_, lse_, weights_;
  AttendArgs valid_;
};

TEST_F(AttendErrors, TheCallIsValidOtherwise) { EXPECT_NO_THROW(attend(valid_)); }

TEST_F(AttendErrors, Query) {
  expect_error("query", [&](AttendArgs &a) { a.query = TensorView(); });
  expect_error("query", [&](AttendArgs &a) { a.query = shelf.zeros(DType::f32, {kHeads, kQueries, kDim}); });
  expect_error("query", [&](AttendArgs &a) {
    a.query = shelf.zeros(DType::f32, {1, kBatch, kHeads, kQueries, kDim});
  });
  for (DType type : {DType::f64, DType::i32, DType::i64, DType::boolean}) {
    expect_error("query", [&](AttendArgs &a) {
      a.query = shelf.zeros(type, {kBatch, kHeads, kQueries, kDim});
    });
  }
  expect_error("query", [&](AttendArgs &a) {
    a.query = shelf.gaps(DType::f32, {kBatch, kHeads, kQueries, kDim});
  });
  expect_error("query", [&](AttendArgs &a) {
    a.query = shelf.zeros(DType::f32, {kBatch, 3, kQueries, kDim});
  });
  expect_error("query", [&](AttendArgs &a) {
    a.query = shelf.zeros(DType::f32, {kBatch, 0, kQueries, kDim});
  });
  expect_error("query", [&](AttendArgs &a) {
    a.query = shelf.zeros(DType::f32, {kBatch, kHeads, kQueries, 0});
  });
  expect_error("query", [&](AttendArgs &a) {
    a.query = shelf.zeros(DType::f32, {kBatch, kHeads, kQueries, 257});
    a.key = shelf.zeros(DType::f32, {kBatch, kKvHeads, kKeys, 257});
  });
  expect_value_error("query", [&](AttendArgs &a) {
    a.query = TensorView(nullptr, DType::f32, {kBatch, kHeads, kQueries, kDim});
  });
}

TEST_F(AttendErrors, Key) {
  expect_error("key", [&](AttendArgs &a) { a.key = TensorView(); });
  expect_error("key", [&](AttendArgs &a) { a.key = shelf.zeros(DType::f32, {kBatch, kKeys, kDim}); });
  expect_error("key", [&](AttendArgs &a) {
    a.key = shelf.zeros(DType::bf16, {kBatch, kKvHeads, kKeys, kDim});
  });
  expect_error("key", [&](AttendArgs &a) { a.key = shelf.zeros(DType::f32, {1, kKvHeads, kKeys, kDim}); });
  expect_error("key", [&](AttendArgs &a) { a.key = shelf.zeros(DType::f32, {kBatch, kKvHeads, kKeys, 31}); });
  expect_error("key", [&](AttendArgs &a) {
    a.key = shelf.gaps(DType::f32, {kBatch, kKvHeads, kKeys, kDim});
  });
  expect_error("key", [&](AttendArgs &a) {
    a.key = shelf.zeros(DType::f32, {kBatch, 0, kKeys, kDim});
    a.value = shelf.zeros(DType::f32, {kBatch, 0, kKeys, kValueDim});
  });
  expect_value_error("key", [&](AttendArgs &a) {
    a.key = TensorView(nullptr, DType::f32, {kBatch, kKvHeads, kKeys, kDim});
  });
}

TEST_F(AttendErrors, Value) {
  expect_error("value", [&](AttendArgs &a) { a.value = TensorView(); });
  expect_error("value", [&](AttendArgs &a) {
    a.value = shelf.zeros(DType::f32, {kBatch, kKeys, kValueDim});
  });
  expect_error("value", [&](AttendArgs &a) {
    a.value = shelf.zeros(DType::f16, {kBatch, kKvHeads, kKeys, kValueDim});
  });
  expect_error("value", [&](AttendArgs &a) {
    a.value = shelf.zeros(DType::f32, {3, kKvHeads, kKeys, kValueDim});
  });
  expect_error("value", [&](AttendArgs &a) {
    a.value = shelf.zeros(DType::f32, {kBatch, 1, kKeys, kValueDim});
  });
  expect_error("value", [&](AttendArgs &a) {
    a.value = shelf.zeros(DType::f32, {kBatch, kKvHeads, kKeys + 1, kValueDim});
  });
  expect_error("value", [&](AttendArgs &a) {
    a.value = shelf.zeros(DType::f32, {kBatch, kKvHeads, kKeys, 257});
  });
  expect_error("value", [&](AttendArgs &a) {
    a.value = shelf.zeros(DType::f32, {kBatch, kKvHeads, kKeys, 0});
  });
  expect_error("value", [&](AttendArgs &a) {
    a.value = shelf.gaps(DType::f32, {kBatch, kKvHeads, kKeys, kValueDim});
  });
  expect_value_error("value", [&](AttendArgs &a) {
    a.value = TensorView(nullptr, DType::f32, {kBatch, kKvHeads, kKeys, kValueDim});
  });
}

TEST_F(AttendErrors, Out) {
  const auto out = [&](DType type, std::initializer_list<int64_t> shape) {
    return [this, type, shape = std::vector<int64_t>(shape)](AttendArgs &a) {
      a.out = MutableTensorView(out_.view().data(), type, static_cast<int>(shape.size()), shape.data());
    };
  };
  expect_error("out", [](AttendArgs &a) { a.out = MutableTensorView(); });
  expect_error("out", out(DType::bf16, {kBatch, kHeads, kQueries, kValueDim}));
  expect_error("out", out(DType::f32, {kBatch * kHeads, kQueries, kValueDim}));
  expect_error("out", out(DType::f32, {1, kHeads, kQueries, kValueDim}));
  expect_error("out", out(DType::f32, {kBatch, kKvHeads, kQueries, kValueDim}));
  expect_error("out", out(DType::f32, {kBatch, kHeads, kQueries - 1, kValueDim}));
  expect_error("out", out(DType::f32, {kBatch, kHeads, kQueries, kDim}));
  expect_error("out", [&](AttendArgs &a) {
    a.out = writable(shelf.gaps(DType::f32, {kBatch, kHeads, kQueries, kValueDim}));
  });
  expect_value_error("out", [&](AttendArgs &a) {
    a.out = MutableTensorView(nullptr, DType::f32, {kBatch, kHeads, kQueries, kValueDim});
  });
  // One row for all queries would be written by all of them.
  expect_value_error("out", [&](AttendArgs &a) {
    const int64_t shape[] = {kBatch, kHeads, kQueries, kValueDim};
    const int64_t strides[] = {kHeads * kValueDim, kValueDim, 0, 1};
    a.out = MutableTensorView(out_.view().data(), DType::f32, 4, shape, strides);
  });
  expect_value_error("out", [&](AttendArgs &a) {
    a.query = TensorView(a.out.data(), DType::f32, {kBatch, kHeads, kQueries, kDim});
  });
}

TEST_F(AttendErrors, Lse) {
  const auto lse = [&](DType type, std::initializer_list<int64_t> shape) {
    return [this, type, shape = std::vector<int64_t>(shape)](AttendArgs &a) {
      a.lse = MutableTensorView(lse_.view().data(), type, static_cast<int>(shape.size()), shape.data());
    };
  };
  expect_error("lse", lse(DType::f16, {kBatch, kHeads, kQueries}));
  expect_error("lse", lse(DType::f32, {kBatch, kQueries}));
  expect_error("lse", lse(DType::f32, {1, kHeads, kQueries}));
  expect_error("lse", lse(DType::f32, {kBatch, kHeads - 1, kQueries}));
  expect_error("lse", lse(DType::f32, {kBatch, kHeads, kQueries - 1}));
  expect_value_error("lse", [&](AttendArgs &a) {
    a.lse = MutableTensorView(nullptr, DType::f32, {kBatch, kHeads, kQueries});
  });
}

TEST_F(AttendErrors, Weights) {
  const auto weights = [&](Weights need, DType type, std::initializer_list<int64_t> shape) {
    return [this, need, type, shape = std::vector<int64_t>(shape)](AttendArgs &a) {
      a.need_weights = need;
      a.weights =
          MutableTensorView(weights_.view().data(), type, static_cast<int>(shape.size()), shape.data());
    };
  };
  expect_error("weights", [](AttendArgs &a) { a.weights = MutableTensorView(); });
  expect_error("weights", weights(Weights::heads, DType::f32, {kBatch, kQueries, kKeys}));
  expect_error("weights", weights(Weights::mean, DType::f32, {kBatch, kHeads, kQueries, kKeys}));
  expect_error("weights", weights(Weights::heads, DType::bf16, {kBatch, kHeads, kQueries, kKeys}));
  expect_error("weights", weights(Weights::heads, DType::f32, {1, kHeads, kQueries, kKeys}));
  expect_error("weights", weights(Weights::heads, DType::f32, {kBatch, kKvHeads, kQueries, kKeys}));
  expect_error("weights", weights(Weights::heads, DType::f32, {kBatch, kHeads, kQueries - 1, kKeys}));
  expect_error("weights", weights(Weights::heads, DType::f32, {kBatch, kHeads, kQueries, kKeys - 1}));
  expect_error("weights", weights(Weights::mean, DType::f32, {kBatch, kQueries, kKeys - 1}));
  expect_error("need_weights", [](AttendArgs &a) { a.need_weights = Weights::none; });
}

TEST_F(AttendErrors, Options) {
  for (float scale : {kNan, kInfinity, -kInfinity}) {
    expect_error("scale", [=](AttendArgs &a) { a.scale = scale; });
  }
  for (float softcap : {kNan, kInfinity, -1.f}) {
    expect_error("softcap", [=](AttendArgs &a) { a.softcap = softcap; });
  }
  expect_error("window_left", [](AttendArgs &a) { a.window_left = -2; });
  expect_error("window_right", [](AttendArgs &a) { a.window_right = std::numeric_limits<int64_t>::min(); });
  expect_error("causal", [](AttendArgs &a) { a.causal = static_cast<Causal>(7); });
  expect_error("need_weights", [](AttendArgs &a) { a.need_weights = static_cast<Weights>(7); });
}

// The four masks that broadcast to (B, Hq, Tq, Tk).
TEST_F(AttendErrors, Masks) {
  const auto check = [&](const char *name, TensorView AttendArgs::*mask, DType type,
                         std::initializer_list<DType> wrong) {
    const std::vector<int64_t> shapes[] = {
        {kKeys + 1},
        {kQueries + 1, kKeys},
        {kKeys, kQueries},
        {kKvHeads, kQueries, kKeys},
        {3, 1, 1, kKeys},
        {1, 1, kQueries, 0},
        {1, kBatch, kHeads, kQueries, kKeys},
    };
    for (const std::vector<int64_t> &shape : shapes) {
      expect_error(name, [&](AttendArgs &a) { a.*mask = shelf.zeros(type, shape); });
    }
    for (DType other : wrong) {
      expect_error(name, [&](AttendArgs &a) { a.*mask = shelf.zeros(other, {kQueries, kKeys}); });
    }
    expect_value_error(name, [&](AttendArgs &a) { a.*mask = TensorView(nullptr, type, {kQueries, kKeys}); });
  };
  check("keep_mask", &AttendArgs::keep_mask, DType::boolean, {DType::f32, DType::i32, DType::bf16});
  check("block_mask", &AttendArgs::block_mask, DType::boolean, {DType::f32, DType::i64, DType::f16});
  check("add_mask", &AttendArgs::add_mask, DType::f32, {DType::boolean, DType::f64, DType::i32});
  check("dense_bias", &AttendArgs::dense_bias, DType::bf16, {DType::boolean, DType::f64, DType::i64});
}

TEST_F(AttendErrors, KeyMasks) {
  const auto check = [&](const char *name, TensorView AttendArgs::*mask, DType type, DType wrong) {
    const std::vector<int64_t> shapes[] = {{kKeys},    {kBatch, kKeys - 1}, {kBatch, 1},
                                           {3, kKeys}, {kKeys, kBatch},     {kBatch, 1, kKeys}};
    for (const std::vector<int64_t> &shape : shapes) {
      expect_error(name, [&](AttendArgs &a) { a.*mask = shelf.zeros(type, shape); });
    }
    expect_error(name, [&](AttendArgs &a) { a.*mask = shelf.zeros(wrong, {kBatch, kKeys}); });
    expect_value_error(name, [&](AttendArgs &a) { a.*mask = TensorView(nullptr, type, {kBatch, kKeys}); });
  };
  check("key_keep_mask", &AttendArgs::key_keep_mask, DType::boolean, DType::f32);
  check("key_block_mask", &AttendArgs::key_block_mask, DType::boolean, DType::i32);
  check("key_add_mask", &AttendArgs::key_add_mask, DType::f32, DType::boolean);
}

TEST_F(AttendErrors, KeyLengths) {
  expect_error("key_lengths", [&](AttendArgs &a) { a.key_lengths = shelf.zeros(DType::i64, {kBatch + 1}); });
  expect_error("key_lengths", [&](AttendArgs &a) { a.key_lengths = shelf.zeros(DType::i64, {1}); });
  expect_error("key_lengths", [&](AttendArgs &a) { a.key_lengths = shelf.zeros(DType::i64, {kBatch, 1}); });
  expect_error("key_lengths", [&](AttendArgs &a) { a.key_lengths = shelf.zeros(DType::f32, {kBatch}); });
  for (DType type : {DType::i32, DType::i64}) {
    expect_value_error("key_lengths", [&](AttendArgs &a) {
      a.key_lengths = shelf.numbers(type, {1, kKeys + 1});
    });
    expect_value_error("key_lengths", [&](AttendArgs &a) { a.key_lengths = shelf.numbers(type, {-1, 3}); });
  }
  expect_value_error("key_lengths", [&](AttendArgs &a) {
    a.key_lengths = shelf.numbers(DType::i64, {1, 0x1p32 + 1});
  });
  expect_value_error("key_lengths",
                     [&](AttendArgs &a) { a.key_lengths = TensorView(nullptr, DType::i64, {kBatch}); });
}

TEST_F(AttendErrors, Positions) {
  const auto check = [&](const char *name, TensorView AttendArgs::*positions, int64_t count) {
    const std::vector<int64_t> shapes[] = {{count + 1}, {count - 1},     {1},          {1, count + 1},
                                           {3, count},  {count, kBatch}, {1, 1, count}};
    for (const std::vector<int64_t> &shape : shapes) {
      expect_error(name, [&](AttendArgs &a) { a.*positions = shelf.zeros(DType::f32, shape); });
    }
    for (DType type : {DType::bf16, DType::f16, DType::boolean}) {
      expect_error(name, [&](AttendArgs &a) { a.*positions = shelf.zeros(type, {count}); });
    }
    for (DType type : {DType::f32, DType::f64}) {
      for (float value : {kNan, kInfinity, -kInfinity}) {
        const Tensor bad(type, {kBatch, count});
        set_element(bad, {1, count - 1}, value);
        expect_value_error(name, [&](AttendArgs &a) { a.*positions = bad; });
      }
    }
    expect_value_error(name, [&](AttendArgs &a) { a.*positions = TensorView(nullptr, DType::f32, {count}); });
  };
  check("q_positions", &AttendArgs::q_positions, kQueries);
  check("k_positions", &AttendArgs::k_positions, kKeys);
}

TEST_F(AttendErrors, PositionMasks) {
  const auto check = [&](const char *name, TensorView AttendArgs::*mask, int64_t count) {
    const std::vector<int64_t> shapes[] = {{count + 1}, {1}, {1, count - 1}, {3, count}, {1, 1, count}};
    for (const std::vector<int64_t> &shape : shapes) {
      expect_error(name, [&](AttendArgs &a) { a.*mask = shelf.zeros(DType::boolean, shape); });
    }
    for (DType type : {DType::f32, DType::i32}) {
      expect_error(name, [&](AttendArgs &a) { a.*mask = shelf.zeros(type, {count}); });
    }
    expect_value_error(name, [&](AttendArgs &a) { a.*mask = TensorView(nullptr, DType::boolean, {count}); });
  };
  check("q_position_mask", &AttendArgs::q_position_mask, kQueries);
  check("k_position_mask", &AttendArgs::k_position_mask, kKeys);
}

class NoSuchBranch : public LogitBranch {
 public:
  const char *name() const override { return "no_such_branch"; }
  void check(const AttendShape &) const override {}
  void bind(BranchInputs &) const override {}
};

TEST_F(AttendErrors, Branches) {
  const Relative relative(shelf.zeros(DType::f32, {kHeads - 1, 9}));
  expect_error("relative_bias", [&](AttendArgs &a) { a.branches[0] = &relative; });
  const Alibi alibi(shelf.zeros(DType::f32, {kKvHeads}));
  expect_error("alibi_slopes", [&](AttendArgs &a) { a.branches[3] = &alibi; });
  const T5 t5(shelf.zeros(DType::f32, {32, kHeads + 1}));
  expect_error("t5_bias", [&](AttendArgs &a) { a.branches[7] = &t5; });

  const Alibi valid(shelf.zeros(DType::f32, {kHeads}));
  expect_error("branches", [&](AttendArgs &a) { a.branches[0] = a.branches[1] = &valid; });
  // A branch whose kernels are not linked: the text says what is.
  const NoSuchBranch unknown;
  AttendArgs args = valid_;
  args.branches[0] = &unknown;
  try {
    attend(args);
    ADD_FAILURE() << "no error";
  } catch (const Error &error) {
    EXPECT_NE(std::string(error.what()).find("no_such_branch"), std::string::npos) << error.what();
  }
  EXPECT_EQ(out_.damage(false), "");
}

TEST_F(AttendErrors, BranchTables) {
  const auto relative = [&](const TensorView &table) {
    expect_throw("relative_bias", [&] { Relative branch(table); });
  };
  relative(TensorView());
  relative(shelf.zeros(DType::f32, {8}));
  relative(shelf.zeros(DType::f32, {0}));
  relative(shelf.zeros(DType::f32, {1, 1, 9}));
  relative(shelf.zeros(DType::bf16, {9}));
  const auto alibi = [&](const TensorView &slopes) {
    expect_throw("alibi_slopes", [&] { Alibi branch(slopes); });
  };
  alibi(TensorView());
  alibi(shelf.zeros(DType::f32, {1, kHeads}));
  alibi(shelf.zeros(DType::f64, {kHeads}));
  const auto t5 = [&](const char *argument, const TensorView &table, int64_t max_distance, bool both) {
    expect_throw(argument, [&] { T5 branch(table, max_distance, both); });
  };
  t5("t5_bias", TensorView(), 128, true);
  t5("t5_bias", shelf.zeros(DType::f32, {32}), 128, true);
  t5("t5_bias", shelf.zeros(DType::f16, {32, kHeads}), 128, true);
  t5("t5_bias", shelf.zeros(DType::f32, {2, kHeads}), 128, true);
  t5("t5_max_distance", shelf.zeros(DType::f32, {32, kHeads}), 8, true);
  t5("t5_max_distance", shelf.zeros(DType::f32, {32, kHeads}), 16, false);
  t5("t5_max_distance", shelf.zeros(DType::f32, {32, kHeads}), -1, true);
}

TEST_F(AttendErrors, RopeFrequencies) {
  const auto with = [&](const TensorView &inv_freq) {
    const Rope rope = {inv_freq, Rope::Layout::half};
    expect_error("inv_freq", [&](AttendArgs &a) { a.rope = &rope; });
  };
  with(TensorView());
  with(shelf.zeros(DType::f32, {0}));
  with(shelf.zeros(DType::f32, {kDim / 2 + 1}));
  with(shelf.zeros(DType::f32, {1, kDim / 2}));
  with(shelf.zeros(DType::f64, {kDim / 2}));
  const Rope null = {TensorView(nullptr, DType::f32, {kDim / 2}), Rope::Layout::half};
  expect_value_error("inv_freq", [&](AttendArgs &a) { a.rope = &null; });
  for (float value : {kNan, kInfinity}) {
    const Rope bad = {shelf.numbers(DType::f32, {1, value, 0.5}), Rope::Layout::half};
    expect_value_error("inv_freq", [&](AttendArgs &a) { a.rope = &bad; });
  }
}

TEST_F(AttendErrors, Cache) {
  const auto with = [&](const KvCache &cache) {
    expect_error("cache", [&](AttendArgs &a) {
      a.key = a.value = TensorView();
      a.cache = &cache;
    });
  };
  const auto cache_of = [](int64_t batch, int64_t heads, int64_t dim, DType type) {
    return KvCache(batch, heads, dim, kValueDim, 16, type);
  };
  with(cache_of(kBatch + 1, kKvHeads, kDim, DType::f32));
  with(cache_of(kBatch, kKvHeads, kDim + 1, DType::f32));
  with(cache_of(kBatch, kKvHeads, kDim, DType::bf16));
  const KvCache fits = cache_of(kBatch, kKvHeads, kDim, DType::f32);
  expect_error("cache", [&](AttendArgs &a) { a.cache = &fits; });  // beside key and value
}

TEST_F(AttendErrors, Workspace) {
  const size_t bytes = attend_workspace_size(valid_);
  ASSERT_GT(bytes, 0u);
  const Tensor memory(DType::boolean, {static_cast<int64_t>(bytes) + 128});
  expect_throw("workspace", [&] { attend(valid_, nullptr, bytes); });
  expect_throw("workspace", [&] { attend(valid_, memory.as<char>(), bytes - 1); });
  expect_throw("workspace", [&] { attend(valid_, memory.as<char>(), 0); });
  expect_throw("workspace", [&] { attend(valid_, memory.as<char>() + 4, bytes + 64); });
  EXPECT_EQ(out_.damage(false), "");
}

TEST_F(AttendErrors, SizesBeyond64Bits) {
  const int64_t huge = int64_t{1} << 40;
  EXPECT_THROW(TensorView(nullptr, DType::f32, {huge, huge, 1, 1}), Error);
  EXPECT_THROW(TensorView(nullptr, DType::f32, {huge, 1, 0, huge}), Error);
  EXPECT_THROW(TensorView(nullptr, DType::f32, {1, -1, 1, 1}), Error);
  EXPECT_THROW(Tensor(DType::f32, {huge, huge}), Error);
  // Each fits, but what attend() would need does not.
  AttendArgs args;
  const int64_t shape[] = {1, 1, int64_t{1} << 58, 1};
  args.query = args.key = args.value = TensorView(nullptr, DType::f32, 4, shape);
  args.out = MutableTensorView(nullptr, DType::f32, 4, shape);
  EXPECT_THROW(attend_workspace_size(args), Error);
}

TEST(Targets, AnUnknownOneIsAnError) {
  const std::string before = current_target();
  EXPECT_THROW(set_target("z80"), Error);
  EXPECT_EQ(current_target(), before);
}

}  // namespace
}  // namespace posattn::oracle
