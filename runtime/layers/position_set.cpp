#include "runtime/layers/position_set.h"

#include "runtime/attend.h"
#include "runtime/error.h"

namespace posattn {
namespace {

// A branch and the table that it views, in one allocation that frees both.
template <typename Branch>
struct Owned {
  Tensor table;
  Branch branch;
  template <typename... Args>
  explicit Owned(const TensorView &view, Args... args)
      : table(copy_of(view, DType::f32)), branch(table.view(), args...) {}

  template <typename... Args>
  static std::shared_ptr<const LogitBranch> make(const TensorView &view, Args... args) {
    const auto owned = std::make_shared<const Owned>(view, args...);
    return std::shared_ptr<const LogitBranch>(owned, &owned->branch);
  }
};

void check_table(const TensorView &table, const char *what) {
  if (table.empty()) fail(what, ": a table is needed, got nothing");
}

}  // namespace

PositionSet &PositionSet::add_encoder(std::shared_ptr<const PositionEncoder> encoder) {
  if (!encoder) fail("position encoder: expected one, got a null pointer");
  if (encoder_) fail("position encoder: this layer has one already");
  encoder_ = std::move(encoder);
  return *this;
}

PositionSet &PositionSet::add(std::shared_ptr<const LogitBranch> branch) {
  if (!branch) fail("positional branch: expected one, got a null pointer");
  if (logit_.size() == AttendArgs::kMaxBranches) {
    fail("positional branches: expected at most ", AttendArgs::kMaxBranches, " on the logits");
  }
  for (const auto &other : logit_) {
    if (std::string(other->name()) == branch->name()) {
      fail("positional branches: '", branch->name(), "' is given twice");
    }
  }
  logit_.push_back(std::move(branch));
  return *this;
}

PositionSet &PositionSet::add_relative(const TensorView &table, Relative::Sign sign) {
  check_table(table, "relative bias");
  return add(Owned<Relative>::make(table, sign));
}

PositionSet &PositionSet::add_alibi(const TensorView &slopes) {
  check_table(slopes, "alibi_slopes");
  return add(Owned<Alibi>::make(slopes));
}

PositionSet &PositionSet::add_alibi(int64_t num_heads) {
  if (num_heads <= 0) fail("alibi: expected a positive number of heads, got ", num_heads);
  Tensor slopes(DType::f32, {num_heads});
  Alibi::default_slopes(num_heads, slopes.as<float>());
  return add_alibi(slopes);
}

PositionSet &PositionSet::add_t5(const TensorView &table, int64_t max_distance, bool bidirectional) {
  check_table(table, "t5 bias");
  return add(Owned<T5>::make(table, max_distance, bidirectional));
}

PositionSet &PositionSet::add_dense(const TensorView &bias) {
  check_table(bias, "dense_bias");
  if (dense_) fail("dense_bias: this layer has one already");
  dense_ = std::make_shared<const Tensor>(copy_of(bias, DType::f32));
  return *this;
}

PositionSet &PositionSet::add_rope(const TensorView &inv_freq, Rope::Layout layout) {
  struct OwnedRope {
    Tensor inv_freq;
    Rope rope;
  };
  if (inv_freq.empty() || inv_freq.rank() != 1 || inv_freq.size(0) == 0) {
    fail("inv_freq: expected (rotary_dim / 2), got ", inv_freq.empty() ? "nothing" : inv_freq.shape_text());
  }
  if (rope_) fail("rope: this layer has one already");
  const auto owned = std::make_shared<OwnedRope>();
  owned->inv_freq = copy_of(inv_freq, DType::f32);
  owned->rope.inv_freq = owned->inv_freq.view();
  owned->rope.layout = layout;
  rope_ = std::shared_ptr<const Rope>(owned, &owned->rope);
  return *this;
}

PositionSet &PositionSet::add_rope(int64_t rotary_dim, double base, Rope::Layout layout) {
  if (rotary_dim <= 0 || rotary_dim % 2) {
    fail("rope: expected a positive even number of rotated channels, got ", rotary_dim);
  }
  if (!(base > 0)) fail("rope: expected a positive base, got ", base);
  Tensor inv_freq(DType::f32, {rotary_dim / 2});
  Rope::default_inv_freq(rotary_dim, base, inv_freq.as<float>());
  return add_rope(inv_freq, layout);
}

std::string PositionSet::names() const {
  std::string text;
  const auto append = [&](const std::string &name) { text += (text.empty() ? "" : "+") + name; };
  if (encoder_) append("additive");
  for (const auto &branch : logit_) append(branch->name());
  if (rope_) append("rope");
  if (dense_) append("dense");
  return text.empty() ? "none" : text;
}

}  // namespace posattn
