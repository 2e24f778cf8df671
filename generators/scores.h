// The scores of queries against keys: scale, softcap, branches, masks and visibility, in the order of the
// definition. Every kernel that needs a score derives from this, so that they all compute the same one.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "Halide.h"
#include "generators/branch.h"
#include "generators/branch_arguments.h"
#include "generators/fast_math.h"
#include "generators/packing.h"
#include "generators/storage.h"
#include "schedules/machine.h"

namespace posattn {

// How a kernel gets its keys and values; see ScoreGenerator::key_form.
enum class KeyForm { packed, plain, words };
inline std::map<std::string, KeyForm> key_forms() {
  return {{"packed", KeyForm::packed}, {"plain", KeyForm::plain}, {"words", KeyForm::words}};
}

// Where a score tile lies: key = block * keys() + tile * lanes + lane.
struct KeyTiling {
  int lanes;  // keys that are packed side by side
  int tiles;  // in a block of keys
  int keys() const { return lanes * tiles; }
  Halide::Expr key(const Halide::Expr &lane, const Halide::Expr &tile, const Halide::Expr &block) const {
    return block * keys() + tile * lanes + lane;
  }
};

template <typename T>
class ScoreGenerator : public Halide::Generator<T> {
 public:
  template <typename U>
  using Input = Halide::GeneratorInput<U>;
  template <typename U>
  using Param = Halide::GeneratorParam<U>;
  using Expr = Halide::Expr;
  using Func = Halide::Func;
  using Var = Halide::Var;
  using RDom = Halide::RDom;
  template <typename U = void, int D = -1>
  using Buffer = Halide::Buffer<U, D>;

  // Storage of query, keys, values and output; arithmetic is float32.
  Param<Halide::Type> type{"type", Halide::Float(32)};
  // Branches compiled in, joined by '+', or none.
  Param<std::string> branches{"branches", "none"};
  // Keys and values: packed, as the pack kernels leave them, with tables of what each row sees; or plain, as
  // the caller has them, with the numbers that such tables are made of; or the plain ones as words, two
  // elements of 16 bits in each, which can be loaded four at a time: everything aligned to 16 bytes.
  Param<KeyForm> key_form{"key_form", KeyForm::packed, key_forms()};
  // Packed keys and values are 8-bit integers, and each row of them has a scale.
  Param<bool> int8_cache{"int8_cache", false};

  Input<float> scale{"scale"};
  Input<float> softcap{"softcap"};  // 0: none
  // A row of the kernel is (query, one of row_heads neighbouring heads): grouped queries share a read of the
  // keys.
  Input<int> row_heads{"row_heads"};
  Input<int> group{"group"};                // query heads to a key head
  Input<int> split_blocks{"split_blocks"};  // key blocks to a split
  // A shift-invariant bias, tabulated: offsets(key - query + offset_zero, head). Padded by one key tile. Not
  // with a softcap.
  Input<bool> has_offsets{"has_offsets"};
  Input<int> offset_zero{"offset_zero"};
  Input<bool> has_masks{"has_masks"};  // any of the next four
  Input<bool> has_key_bias{"has_key_bias"}, has_add{"has_add"}, has_dense{"has_dense"}, has_keep{"has_keep"};
  Input<bool> keep_value{"keep_value"};  // the value of keep_mask that lets a key be seen

  Input<Buffer<void, 4>> q{"q"};                 // (d, query, head, batch)
  Input<Buffer<float, 2>> key_bias{"key_bias"};  // (key, batch), -infinity hides; padded by a tile
  // (key, query, head, batch). A key dimension of 1 is broadcast; so are others, through a stride of 0.
  Input<Buffer<float, 4>> add_mask{"add_mask"}, dense_bias{"dense_bias"};
  Input<Buffer<uint8_t, 4>> keep_mask{"keep_mask"};
  Input<Buffer<float, 2>> offsets{"offsets"};
  // (token, batch). Positions are sums of two floats, so that differences of large ones are exact. +infinity:
  // the token has no position. Only read by branches.
  Input<Buffer<float, 2>> q_positions{"q_positions"}, k_positions{"k_positions"};
  Input<Buffer<float, 2>> q_positions_low{"q_positions_low"}, k_positions_low{"k_positions_low"};

 protected:
  // A row lies at (its place in a block of rows, the block): what is the same for a block stays out of row
  // loops.
  Var lane{"lane"}, row{"row"}, block{"block"}, row_block{"row_block"}, head{"head"}, batch{"batch"}, d{"d"};

  void declare_inputs() {
    branch_arguments_.declare(*this, branches);
    q.set_type(type);
    using Tensor = Halide::Buffer<>;
    const auto tensor = [&](const char *name, const Halide::Type &element, int dimensions) {
      return this->template add_input<Tensor>(name, element, dimensions);
    };
    // The keys that a query may see are [row_begin, row_end): causal, window and lengths.
    if (is_packed()) {
      // In the forms of packing.h, zero beyond the last key.
      const Halide::Type element = int8_cache ? Halide::UInt(8) : packing().element();
      keys_ = tensor("keys", element, 5);      // (lane, d, key tile, kv_head, batch)
      values_ = tensor("values", element, 4);  // (d, key, kv_head, batch)
      if (int8_cache) {
        key_scales_ = tensor("key_scales", Halide::Float(32), 3);  // (key, kv_head, batch), of whole tiles
        value_scales_ = tensor("value_scales", Halide::Float(32), 3);
      }
      row_begin_ = tensor("row_begin", Halide::Int(32), 2);  // (query, batch)
      row_end_ = tensor("row_end", Halide::Int(32), 2);
      return;
    }
    const Halide::Type element = key_form == KeyForm::words ? Halide::UInt(32) : Halide::Type(type);
    keys_ = tensor("k", element, 4);  // (d, key, kv_head, batch), or words of d
    values_ = tensor("v", element, 4);
    // The key at query + diagonal is the query's own; it sees so many to the left and right of it, and none
    // from the batch's length on.
    diagonal_ = this->template add_input<int>("diagonal");
    window_left_ = this->template add_input<int>("window_left");
    window_right_ = this->template add_input<int>("window_right");
    has_lengths_ = this->template add_input<bool>("has_lengths");
    lengths_ = tensor("lengths", Halide::Int(32), 1);  // (batch)
    // Keys and values that are not visible may hold anything.
    // Without positions, tokens are their own: of queries, counted from first_query.
    has_positions_ = this->template add_input<bool>("has_positions");
    first_query_ = this->template add_input<int>("first_query");
    has_visible_ = this->template add_input<bool>("has_visible");
    visible_ = tensor("visible", Halide::UInt(8), 2);  // (key, batch); 0: hidden
  }

  bool is_packed() const { return key_form == KeyForm::packed; }

  // First key that a query sees, and the first one after that it does not. Both grow with the query.
  Expr begin_of(const Expr &query, const Expr &b) const {
    if (is_packed()) return (*row_begin_)(query, b);
    return Halide::min(Halide::max(query + *diagonal_ - *window_left_, 0), end_of(query, b));
  }
  Expr end_of(const Expr &query, const Expr &b) const {
    if (is_packed()) return (*row_end_)(query, b);
    return Halide::max(Halide::min(query + *diagonal_ + *window_right_ + 1, length_of(b)), 0);
  }

  // Upper bound of the keys, a multiple of the tile's where they are packed.
  Expr num_keys(const KeyTiling &tiling) const {
    return is_packed() ? keys_->dim(2).extent() * tiling.lanes : keys_->dim(1).extent();
  }

  // What of a key or value that is not packed a schedule may stage: the word or element at place `i`; zero
  // beyond the last key and the last element.
  Expr stored_key(const Expr &i, const Expr &key, const Expr &h, const Expr &b) const {
    return shown_place(*keys_, i, key, h, b);
  }
  Expr stored_value(const Expr &i, const Expr &key, const Expr &h, const Expr &b) const {
    return shown_place(*values_, i, key, h, b);
  }
  // The same in two steps, for a schedule that has many loads in flight: what memory holds, repeating the
  // last key and the last elements, and what of that counts. A hidden key counts: its score is replaced,
  // whatever it is.
  Expr loaded_key(const Expr &i, const Expr &key, const Expr &h, const Expr &b) const {
    return plain_place(*keys_, i, key, h, b);
  }
  Expr loaded_value(const Expr &i, const Expr &key, const Expr &h, const Expr &b) const {
    return plain_place(*values_, i, key, h, b);
  }
  Expr padded_key(const Expr &i, const Expr &loaded) const {
    return masked(i < keys_->dim(0).extent(), loaded);
  }
  Expr shown_value(const Expr &i, const Expr &key, const Expr &b, const Expr &loaded) const {
    return masked(is_shown(*values_, i, key, b), loaded);
  }
  Expr has_visible() const { return *has_visible_; }
  // Where element `e` is stored, and what it is there.
  int per_word() const { return key_form == KeyForm::words ? 32 / Halide::Type(type).bits() : 1; }
  Expr element(const std::function<Expr(const Expr &)> &stored, const Expr &e) const {
    const Halide::Type t = type;
    const Expr value = stored(e / per_word());
    if (key_form != KeyForm::words) return load_float(value, this->get_target());
    if (t.bits() == 32) return Halide::reinterpret<float>(value);
    if (t.is_bfloat()) return Packing::half(value, e % 2);
    const Expr half = Halide::cast<uint16_t>(Halide::select(e % 2 == 0, value, value >> 16));
    return float_of_word(t, half, this->get_target());
  }

  Packing packing() const { return {this->get_target(), type}; }

  // Rows beyond the last one, which tiles may ask for, repeat it.
  Expr rows() const { return q.dim(1).extent() * heads_of_row(); }
  Expr query_of(const Expr &r) const { return Halide::min(r, rows() - 1) / heads_of_row(); }
  Expr head_of(const Expr &r, const Expr &h) const {
    return h * heads_of_row() + Halide::min(r, rows() - 1) % heads_of_row();
  }
  Expr kv_head_of(const Expr &h) const { return h * heads_of_row() / group; }
  // For a kernel whose row_heads is always 1: divisions by it would cost more than a pass over a row of a
  // tile.
  void set_rows_are_queries() { rows_are_queries_ = true; }

  // A scaled product with its tabulated bias: where the product is stored, a bias costs a load. Only for a
  // schedule that specializes on has_offsets, as there is no table otherwise. Without it, add_passes() adds
  // the table.
  Expr scaled(const Expr &product, const Expr &key) {
    offsets_added_ = true;
    return product * scale +
           Halide::select(has_offsets, offset_bias(key, {query_of(row), head_of(row, head), batch}), 0.f);
  }

  // What a schedule may rely on: no offsets, and the packed forms dense.
  void declare_layout(const KeyTiling &tiling) {
    const auto from_zero = [](auto &buffer) {
      for (int i = 0; i < buffer.dimensions(); i++) buffer.dim(i).set_min(0);
    };
    from_zero(q), from_zero(*keys_), from_zero(*values_), from_zero(key_bias);
    for (auto *buffer : {row_begin_, row_end_, lengths_, visible_, key_scales_, value_scales_}) {
      if (buffer) from_zero(*buffer);
    }
    from_zero(add_mask), from_zero(dense_bias), from_zero(keep_mask), from_zero(offsets);
    from_zero(q_positions), from_zero(k_positions);
    from_zero(q_positions_low), from_zero(k_positions_low);
    if (lengths_) lengths_->dim(0).set_stride(Expr());  // of 32 or 64 bits
    if (is_packed()) {
      keys_->dim(0).set_bounds(0, tiling.lanes);
      keys_->dim(1).set_stride(tiling.lanes);
    }
    for (auto *buffer : {keys_, values_}) {
      if (key_form != KeyForm::words) continue;
      for (int i = 1; i < 4; i++) buffer->dim(i).set_stride(buffer->dim(i).stride() / 4 * 4);
    }
  }

  // Adds to `score`, which holds scaled products, all that the definition adds after
  // them, as updates: each is a pass over the block's tiles in cache that is skipped where its feature is not
  // in use. `at_edge`: whether some key of this block is out of range for some of its rows.
  void add_passes(Func score, const KeyTiling &tiling, const Expr &tiles_in_block, const Expr &edge_tiles) {
    using namespace Halide;
    const Expr query = query_of(row);

    // A pass over a block's tiles in cache.
    const auto pass = [&](const Expr &tiles, const std::function<Expr(const Expr &, const Expr &)> &value) {
      RDom tile(0, tiling.tiles, "tile");
      tile.where(tile < tiles);
      const FuncRef s = score(lane, tile, row, block, row_block, head, batch);
      score(lane, tile, row, block, row_block, head, batch) = value(s, tiling.key(lane, tile, block));
      passes_.push_back(tile);
    };
    for (const Term &term : terms({query, head_of(row, head), batch})) {
      pass(select(term.condition, tiles_in_block, 0), term.apply);
    }
    pass(edge_tiles, [&](const Expr &s, const Expr &key) {
      return select(key >= begin_of(query, batch) && key < end_of(query, batch), s, kHidden);
    });
  }

  // A row of scores.
  struct ScoreRow {
    Expr query, head, batch;
  };
  // Something that the definition does to a scaled score, where the condition holds.
  struct Term {
    const char *name;
    Expr condition;
    std::function<Expr(const Expr &score, const Expr &key)> apply;
  };
  // All of them but visibility, in order.
  std::vector<Term> terms(const ScoreRow &at) {
    using namespace Halide;
    std::vector<Term> all;
    all.push_back({"softcap", softcap > 0.f,
                   [this](const Expr &s, const Expr &) { return softcap * tanh_(s / softcap); }});
    for (const std::string &name : split_branches(branches)) {
      all.push_back({"branch", branch_arguments_.is_used(name), [=](const Expr &s, const Expr &key) {
                       return with_branch(find_branch(name), s, key, at);
                     }});
    }
    if (!offsets_added_) {
      all.push_back(
          {"offsets", has_offsets, [=](const Expr &s, const Expr &key) { return s + offset_bias(key, at); }});
    }
    // What is hidden stays hidden. Sums of finite terms stay visible, as only -infinity hides.
    const auto biased = [this](const Expr &s, const Expr &bias) {
      return select(is_below(s, kLowestVisible) || is_minus_infinity(bias), kHidden,
                    at_least_(s + at_least_(bias, kLowestVisible), kLowestVisible));
    };
    const auto in_mask = [at](const auto &mask, const Expr &key) {
      return mask(min(likely(key), mask.dim(0).extent() - 1), at.query, at.head, at.batch);
    };
    all.push_back({"dense", has_masks && has_dense,
                   [=](const Expr &s, const Expr &key) { return biased(s, in_mask(dense_bias, key)); }});
    all.push_back({"add", has_masks && has_add,
                   [=](const Expr &s, const Expr &key) { return biased(s, in_mask(add_mask, key)); }});
    all.push_back({"keep", has_masks && has_keep, [=](const Expr &s, const Expr &key) {
                     return select((in_mask(keep_mask, key) != 0) == keep_value, s, kHidden);
                   }});
    all.push_back({"key_bias", has_masks && has_key_bias,
                   [=](const Expr &s, const Expr &key) { return biased(s, key_bias(key, at.batch)); }});
    return all;
  }

  // For softcaps, where a machine has a better one.
  std::function<Expr(const Expr &)> tanh_ = tanh_accurate;
  std::function<Expr(const Expr &, float)> at_least_ = at_least;

  std::vector<RDom> passes_;  // of the updates of the score, in order

  // Of the form that key_form says; null if another has them.
  Halide::GeneratorInput<Halide::Buffer<>> *keys_ = nullptr, *values_ = nullptr;
  Halide::GeneratorInput<Halide::Buffer<>> *key_scales_ = nullptr, *value_scales_ = nullptr;
  // An 8-bit integer of them in float32: its row's scale is left to the caller.
  static Expr load_int8(const Expr &byte) { return Halide::cast<float>(Halide::reinterpret<int8_t>(byte)); }

  // Of the forms that are not packed.
  Halide::GeneratorInput<int> *first_query_ = nullptr, *diagonal_ = nullptr, *window_left_ = nullptr,
                              *window_right_ = nullptr;
  Expr length_of(const Expr &b) const {
    const Expr keys = keys_->dim(1).extent();
    return Halide::select(*has_lengths_, Halide::clamp((*lengths_)(used(*has_lengths_, b)), 0, keys), keys);
  }

 private:
  Expr heads_of_row() const { return rows_are_queries_ ? Expr(1) : Expr(row_heads); }

  Expr offset_bias(const Expr &key, const ScoreRow &at) {
    const Expr t = key - at.query + offset_zero;
    return offsets(is_packed() ? t : used(has_offsets, t), at.head);
  }

  // Tokens are their own positions where a plain kernel is given none.
  Expr position(const Halide::GeneratorInput<Buffer<float, 2>> &positions, const Expr &token, const Expr &b,
                const Expr &otherwise) const {
    if (is_packed()) return positions(token, b);
    return Halide::select(*has_positions_, positions(used(*has_positions_, token), b), otherwise);
  }

  Expr with_branch(const Branch &branch, const Expr &score, const Expr &key, const ScoreRow &at) {
    using namespace Halide;
    const Expr query = at.query;
    const Expr k =
        min(likely(key), is_packed() ? k_positions.dim(0).extent() - 1 : keys_->dim(1).extent() - 1);
    const Expr own_query = is_packed() ? query : query + *first_query_;
    const Expr q_high = cast<float>(own_query), k_high = cast<float>(k);
    const Expr q_position = position(q_positions, query, at.batch, q_high),
               k_position = position(k_positions, k, at.batch, k_high);
    const auto has_position = [](const Expr &p) {
      return reinterpret<uint32_t>(p) != Expr(kPlusInfinityBits);
    };
    const Expr both = has_position(q_position) && has_position(k_position);
    Score one{score, at.batch, at.head, query, key, q_position, k_position};
    // What such a branch adds depends on the difference alone, and not on the logit. The difference is taken
    // part by part, in an order that fast math must not change. Added like this, zero leaves every bit of a
    // score as it is.
    const bool adds = branch.shift_invariant;
    if (adds) {
      one.logit = 0.f;
      one.q_position = strict_float_op(
          Internal::Call::strict_add, strict_float_op(Internal::Call::strict_sub, q_position, k_position),
          position(q_positions_low, query, at.batch, cast<float>(own_query - cast<int>(q_high))) -
              position(k_positions_low, k, at.batch, cast<float>(k - cast<int>(k_high))));
      one.k_position = 0.f;
    }
    one.q_position = select(both, one.q_position, 0.f);
    one.k_position = select(both, one.k_position, 0.f);
    const Expr value = branch.logit(one, branch_arguments_.tables());
    return select(both, adds ? score + value : value, score);
  }

  // What is selected away is loaded all the same: of a tensor that is not there, its only element.
  static Expr used(const Expr &given, const Expr &index) { return Halide::select(given, index, 0); }

  Expr plain_place(const Halide::GeneratorInput<Halide::Buffer<>> &from, const Expr &i, const Expr &key,
                   const Expr &h, const Expr &b) const {
    using namespace Halide;
    const Expr extent = from.dim(0).extent(), last_key = from.dim(1).extent() - 1;
    // By fours where words are loaded so: their extent is a multiple of it.
    const Expr place =
        key_form == KeyForm::words ? min(i / 4, extent / 4 - 1) * 4 + i % 4 : min(i, extent - 1);
    return from(place, min(key, last_key), h, b);
  }
  Expr is_shown(const Halide::GeneratorInput<Halide::Buffer<>> &from, const Expr &i, const Expr &key,
                const Expr &b) const {
    const Expr clamped = Halide::min(key, from.dim(1).extent() - 1);
    const Expr shown = (*visible_)(used(*has_visible_, clamped), b) != 0;
    return i < from.dim(0).extent() && key < length_of(b) && (!*has_visible_ || shown);
  }
  Expr shown_place(const Halide::GeneratorInput<Halide::Buffer<>> &from, const Expr &i, const Expr &key,
                   const Expr &h, const Expr &b) const {
    const Expr value = plain_place(from, i, key, h, b);
    return Halide::select(is_shown(from, i, key, b), value, Halide::cast(value.type(), 0));
  }
  // Of words: a select would narrow what is loaded to what is selected, by sizes that no register has.
  static Expr masked(const Expr &condition, const Expr &word) {
    return word & Halide::select(condition, Expr(0xffffffffu), Expr(0u));
  }

  Halide::GeneratorInput<Halide::Buffer<>> *row_begin_ = nullptr, *row_end_ = nullptr, *lengths_ = nullptr,
                                           *visible_ = nullptr;
  Halide::GeneratorInput<bool> *has_lengths_ = nullptr, *has_positions_ = nullptr, *has_visible_ = nullptr;

  BranchArguments branch_arguments_;
  bool offsets_added_ = false, rows_are_queries_ = false;
};

}  // namespace posattn
