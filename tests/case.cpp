#include "tests/case.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <sstream>

#include "runtime/error.h"
#include "tests/device.h"

namespace posattn::oracle {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

void fill_normal(const MutableTensorView &tensor, Random &random, double deviation, double mean = 0) {
  for_each_index(tensor, [&](const std::vector<int64_t> &index) {
    set_element(tensor, index, mean + deviation * random.normal());
  });
}

MutableTensorView channels(const MutableTensorView &packed, int64_t begin, int64_t heads, int64_t dim) {
  return packed.slice(2, begin, begin + heads * dim).heads(heads);
}

}  // namespace

Case::Case(const CaseSpec &spec) : spec_(spec), random_(spec.seed) {
  make_query_key_value();
  const int64_t b = spec_.batch, hq = spec_.query_heads, tq = spec_.queries, tk = spec_.keys;
  args_.out = attention_tensor("out", {b, hq, tq, spec_.value_dim}, spec_.out_layout, true);
  const bool padded = spec_.out_layout == Layout::padded;
  if (spec_.lse) {
    MemoryLayout layout;
    if (padded) layout = {{}, {0, 1, 0}, {0, 0, 3}, {}, {}};
    args_.lse = tensor("lse", DType::f32, {b, hq, tq}, layout, true);
  }
  args_.need_weights = spec_.weights;
  if (spec_.weights != Weights::none) {
    std::vector<int64_t> shape = {b, hq, tq, tk};
    if (spec_.weights == Weights::mean) shape.erase(shape.begin() + 1);
    MemoryLayout layout;
    if (padded) layout.back = std::vector<int64_t>(shape.size(), 1);
    args_.weights = tensor("weights", spec_.type, shape, layout, true);
  }
  args_.scale = spec_.scale;
  args_.softcap = spec_.softcap;
  args_.causal = spec_.causal;
  args_.window_left = spec_.window_left;
  args_.window_right = spec_.window_right;
  make_branches();
  make_masks();
  hide_keys();
  for (Owned &owned : tensors_) owned.tensor->freeze();
}

MutableTensorView Case::tensor(const std::string &name, DType type, const std::vector<int64_t> &shape,
                               const MemoryLayout &layout, bool written) {
  tensors_.push_back({std::make_unique<GuardedTensor>(name, type, shape, layout), written});
  return tensors_.back().tensor->view();
}

MutableTensorView Case::attention_tensor(const std::string &name, const std::vector<int64_t> &shape,
                                         Layout layout, bool written) {
  MemoryLayout memory;
  switch (layout) {
    case Layout::bhtd:
      break;
    case Layout::bthd:
    case Layout::packed:
      memory.order = {0, 2, 1, 3};
      break;
    case Layout::padded:
      // Rows start anywhere, so nothing is aligned.
      memory.front = {0, 1, 2, random_.integer(0, 5)};
      memory.back = {1, 0, 1, random_.integer(1, 9)};
      break;
    case Layout::reversed:
      memory.reversed = {false, false, true, false};
      break;
    case Layout::repeated:
      memory.repeated = {name != "query", false, false, false};
      break;
  }
  return tensor(name, spec_.type, shape, memory, written);
}

void Case::make_query_key_value() {
  const CaseSpec &s = spec_;
  if (s.layout == Layout::packed && s.queries == s.keys) {
    const int64_t q = s.query_heads * s.head_dim, k = s.kv_heads * s.head_dim, v = s.kv_heads * s.value_dim;
    const MutableTensorView all = tensor("packed query, key and value", s.type, {s.batch, s.keys, q + k + v});
    query_ = channels(all, 0, s.query_heads, s.head_dim);
    key_ = channels(all, q, s.kv_heads, s.head_dim);
    value_ = channels(all, q + k, s.kv_heads, s.value_dim);
  } else if (s.layout == Layout::packed) {
    const int64_t k = s.kv_heads * s.head_dim, v = s.kv_heads * s.value_dim;
    const MutableTensorView both = tensor("packed key and value", s.type, {s.batch, s.keys, k + v});
    query_ = attention_tensor("query", {s.batch, s.query_heads, s.queries, s.head_dim}, Layout::bthd);
    key_ = channels(both, 0, s.kv_heads, s.head_dim);
    value_ = channels(both, k, s.kv_heads, s.value_dim);
  } else {
    query_ = attention_tensor("query", {s.batch, s.query_heads, s.queries, s.head_dim}, s.layout);
    key_ = attention_tensor("key", {s.batch, s.kv_heads, s.keys, s.head_dim}, s.layout);
    value_ = attention_tensor("value", {s.batch, s.kv_heads, s.keys, s.value_dim}, s.layout);
  }
  const double deviation = std::sqrt(s.logit_std);
  fill_normal(query_, random_, deviation);
  fill_normal(key_, random_, deviation);
  fill_normal(value_, random_, 1, s.value_offset);
  args_.query = query_;
  args_.key = key_;
  args_.value = value_;
}

void Case::make_branches() {
  for (const std::string &name : spec_.branches) {
    if (name == "relative") {
      const int64_t size = 2 * spec_.relative_max_distance + 1;
      const MutableTensorView table = spec_.relative_per_head
                                          ? tensor("relative table", DType::f32, {spec_.query_heads, size})
                                          : tensor("relative table", DType::f32, {size});
      fill_normal(table, random_, 1);
      branches_.push_back(std::make_unique<Relative>(
          table, spec_.relative_plus ? Relative::Sign::plus : Relative::Sign::minus));
    } else if (name == "alibi") {
      const MutableTensorView slopes = tensor("alibi slopes", DType::f32, {spec_.query_heads});
      Alibi::default_slopes(spec_.query_heads, slopes.as<float>());
      branches_.push_back(std::make_unique<Alibi>(slopes));
    } else if (name == "t5") {
      const MutableTensorView table = tensor("t5 table", DType::f32, {spec_.t5_buckets, spec_.query_heads});
      fill_normal(table, random_, 1);
      branches_.push_back(std::make_unique<T5>(table, spec_.t5_max_distance, spec_.t5_bidirectional));
    } else {
      fail("branches: no case is made of '", name, "'");
    }
  }
  for (size_t i = 0; i < branches_.size(); ++i) args_.branches[i] = branches_[i].get();
  if (spec_.rotary_dim > 0) {
    const MutableTensorView inv_freq = tensor("inv_freq", DType::f32, {spec_.rotary_dim / 2});
    Rope::default_inv_freq(spec_.rotary_dim, 10000, inv_freq.as<float>());
    rope_ = {inv_freq, spec_.rope_layout};
    args_.rope = &rope_;
  }
  if (spec_.positions != PositionKind::none) {
    args_.q_positions = positions("q_positions", spec_.queries);
    args_.k_positions = positions("k_positions", spec_.keys);
  }
  if (spec_.q_position_mask) args_.q_position_mask = position_mask("q_position_mask", spec_.queries);
  if (spec_.k_position_mask) args_.k_position_mask = position_mask("k_position_mask", spec_.keys);
}

TensorView Case::positions(const std::string &name, int64_t count) {
  std::vector<int64_t> shape = {count};
  if (spec_.position_rank > 1) shape.insert(shape.begin(), spec_.position_rank == 2 ? 1 : spec_.batch);
  const MutableTensorView result = tensor(name, spec_.position_type, shape);
  const int64_t rows = spec_.position_rank == 1 ? 1 : shape[0];
  for (int64_t row = 0; row < rows; ++row) {
    // The same start for queries and keys, or they would all be out of each other's reach.
    const double start = static_cast<double>(row * 7);
    for (int64_t t = 0; t < count; ++t) {
      double p = static_cast<double>(t);
      switch (spec_.positions) {
        case PositionKind::none:
        case PositionKind::arange:
          break;
        case PositionKind::shifted:
          p += start - 50;
          break;
        case PositionKind::fractional:
          p = start + static_cast<double>(random_.integer(-400, 400)) / 8;
          break;
        case PositionKind::scattered:
          p = start + static_cast<double>(random_.integer(-60, 60));
          break;
        case PositionKind::times:
          p = start + 100 * random_.normal();
          break;
        case PositionKind::far:
          p += start + 0x1p30;
          break;
        case PositionKind::islands:
          p += start + (t % 16 < 8 ? 0 : 0x1p27 + 1);
          break;
      }
      set_element(result, spec_.position_rank == 1 ? std::vector<int64_t>{t} : std::vector<int64_t>{row, t},
                  p);
    }
  }
  return result;
}

TensorView Case::position_mask(const std::string &name, int64_t count) {
  const bool per_batch = random_.chance(0.5);
  const std::vector<int64_t> shape =
      per_batch ? std::vector<int64_t>{spec_.batch, count} : std::vector<int64_t>{count};
  const MutableTensorView mask = tensor(name, DType::boolean, shape);
  for_each_index(mask,
                 [&](const std::vector<int64_t> &index) { set_element(mask, index, random_.chance(0.7)); });
  return mask;
}

MutableTensorView Case::mask_tensor(const std::string &name, const MaskSpec &mask, DType type) {
  const int64_t full[4] = {spec_.batch, spec_.query_heads, spec_.queries, spec_.keys};
  std::vector<int64_t> shape;
  MemoryLayout layout;
  for (int d = 4 - mask.rank; d < 4; ++d) {
    shape.push_back(mask.broadcast[static_cast<size_t>(d)] ? 1 : full[d]);
    layout.order.push_back(d - (4 - mask.rank));
  }
  if (mask.transposed && mask.rank >= 2) std::swap(layout.order.end()[-1], layout.order.end()[-2]);
  if (mask.rank > 0 && random_.chance(0.5)) layout.back = std::vector<int64_t>(shape.size(), 1);
  return tensor(name, type, shape, layout);
}

TensorView Case::boolean_mask(const std::string &name, const MaskSpec &mask, bool hides) {
  const MutableTensorView result = mask_tensor(name, mask, DType::boolean);
  const int query_dim = mask.rank - 2;
  for_each_index(result, [&](const std::vector<int64_t> &index) {
    const bool hidden_row =
        spec_.hidden_rows && query_dim >= 0 && index[static_cast<size_t>(query_dim)] % 5 == 2;
    const bool hidden = hidden_row || random_.chance(0.25);
    set_element(result, index, hidden == hides);
  });
  return result;
}

TensorView Case::float_mask(const std::string &name, const MaskSpec &mask) {
  const MutableTensorView result = mask_tensor(name, mask, mask.type);
  const int query_dim = mask.rank - 2;
  for_each_index(result, [&](const std::vector<int64_t> &index) {
    const bool hidden_row =
        spec_.hidden_rows && query_dim >= 0 && index[static_cast<size_t>(query_dim)] % 7 == 3;
    double value = random_.normal();
    if (hidden_row || random_.chance(0.1)) value = -kInfinity;
    // A whole row of -1e9 would cost even the naive formula all its digits.
    if (!hidden_row && index.size() > 0 && index.back() > 16 && random_.chance(0.03)) value = -1e9;
    set_element(result, index, value);
  });
  return result;
}

void Case::make_masks() {
  const int64_t rows = spec_.shared_key_masks ? 1 : spec_.batch;
  if (spec_.keep.given) args_.keep_mask = boolean_mask("keep_mask", spec_.keep, false);
  if (spec_.block.given) args_.block_mask = boolean_mask("block_mask", spec_.block, true);
  if (spec_.add.given) args_.add_mask = float_mask("add_mask", spec_.add);
  if (spec_.dense.given) args_.dense_bias = float_mask("dense_bias", spec_.dense);
  const auto key_mask = [&](const std::string &name, DType type) {
    MemoryLayout layout;
    layout.back = {0, random_.integer(0, 3)};
    return tensor(name, type, {rows, spec_.keys}, layout);
  };
  const auto fill = [&](const MutableTensorView &mask, bool hides) {
    for_each_index(mask, [&](const std::vector<int64_t> &index) {
      set_element(mask, index, random_.chance(0.2) == hides);
    });
    return mask;
  };
  if (spec_.key_keep) args_.key_keep_mask = fill(key_mask("key_keep_mask", DType::boolean), false);
  if (spec_.key_block) args_.key_block_mask = fill(key_mask("key_block_mask", DType::boolean), true);
  if (spec_.key_add) {
    const MutableTensorView mask = key_mask("key_add_mask", spec_.add.type);
    for_each_index(mask, [&](const std::vector<int64_t> &index) {
      set_element(mask, index, random_.chance(0.2) ? -kInfinity : random_.normal());
    });
    args_.key_add_mask = mask;
  }
  if (spec_.key_lengths) {
    const MutableTensorView lengths =
        tensor("key_lengths", random_.pick({DType::i32, DType::i64}), {spec_.batch});
    for (int64_t b = 0; b < spec_.batch; ++b) {
      const int64_t any = random_.integer(0, spec_.keys);
      set_element(lengths, {b}, static_cast<double>(random_.chance(0.1) ? 0 : any));
    }
    args_.key_lengths = lengths;
  }
}

// What key masks hide must have no influence whatever it holds.
void Case::hide_keys() {
  if (spec_.layout == Layout::repeated) return;  // another batch may see them
  const auto row = [](const TensorView &mask, int64_t b) { return mask.size(0) == 1 ? 0 : b; };
  for (int64_t b = 0; b < spec_.batch; ++b) {
    for (int64_t j = 0; j < spec_.keys; ++j) {
      const auto at = [&](const TensorView &mask) {
        return copy_of(mask.select(0, row(mask, b)).slice(0, j, j + 1), DType::f64).as<double>()[0];
      };
      bool hidden = !args_.key_keep_mask.empty() && at(args_.key_keep_mask) == 0;
      hidden |= !args_.key_block_mask.empty() && at(args_.key_block_mask) != 0;
      hidden |= !args_.key_add_mask.empty() && at(args_.key_add_mask) == -kInfinity;
      if (!args_.key_lengths.empty()) {
        hidden |= static_cast<double>(j) >= copy_of(args_.key_lengths, DType::f64).as<double>()[b];
      }
      if (!hidden) continue;
      const double poison = random_.pick({std::nan(""), kInfinity, -kInfinity});
      for (int64_t h = 0; h < spec_.kv_heads; ++h) {
        for (int64_t d = 0; d < spec_.head_dim; ++d) set_element(key_, {b, h, j, d}, poison);
        for (int64_t d = 0; d < spec_.value_dim; ++d) set_element(value_, {b, h, j, d}, poison);
      }
    }
  }
}

void Case::attend() {
  const std::string wrong = attend_in_guarded_workspace(args_, GuardedTensor::kGuard);
  if (!wrong.empty()) fail(wrong);
}

void Case::clear_outputs() {
  for (const MutableTensorView *output : {&args_.out, &args_.lse, &args_.weights}) {
    if (output->empty()) continue;
    for_each_index(*output,
                   [&](const std::vector<int64_t> &index) { set_element(*output, index, std::nan("")); });
  }
}

std::string Case::damage() const {
  for (const Owned &owned : tensors_) {
    const std::string text = owned.tensor->damage(owned.written);
    if (!text.empty()) return text;
  }
  return "";
}

}  // namespace posattn::oracle
