// The scores of queries against keys: scale, softcap, branches, masks and visibility, in the order of the
// definition. Every kernel that needs a score derives from this, so that they all compute the same one.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "Halide.h"
#include "generators/branch.h"
#include "generators/branch_arguments.h"
#include "generators/fast_math.h"
#include "generators/packing.h"
#include "schedules/machine.h"

namespace posattn {

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

  Input<Buffer<void, 4>> q{"q"};  // (d, query, head, batch)
  // In the forms of packing.h, zero beyond the last key.
  Input<Buffer<void, 5>> keys{"keys"};      // (lane, d, key tile, kv_head, batch)
  Input<Buffer<void, 4>> values{"values"};  // (d, key, kv_head, batch)
  // The keys that a query may see are [row_begin, row_end): causal, window and lengths.
  Input<Buffer<int, 2>> row_begin{"row_begin"}, row_end{"row_end"};  // (query, batch)
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

  void declare_branches() {
    branch_arguments_.declare(*this, branches);
    q.set_type(type);
    keys.set_type(packing().element());
    values.set_type(packing().element());
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
    return product * scale + Halide::select(has_offsets, offset_bias(key), 0.f);
  }

  // What a schedule may rely on: no offsets, and the packed forms dense.
  void declare_layout(const KeyTiling &tiling) {
    const auto from_zero = [](auto &buffer) {
      for (int i = 0; i < buffer.dimensions(); i++) buffer.dim(i).set_min(0);
    };
    from_zero(q), from_zero(keys), from_zero(values), from_zero(row_begin), from_zero(row_end),
        from_zero(key_bias);
    from_zero(add_mask), from_zero(dense_bias), from_zero(keep_mask), from_zero(offsets);
    from_zero(q_positions), from_zero(k_positions);
    from_zero(q_positions_low), from_zero(k_positions_low);
    keys.dim(0).set_bounds(0, tiling.lanes);
    keys.dim(1).set_stride(tiling.lanes);
  }

  // Adds to `score`, which holds scaled products, all that the definition adds after
  // them, as updates: each is a pass over the block's tiles in cache that is skipped where its feature is not
  // in use. `at_edge`: whether some key of this block is out of range for some of its rows.
  void add_passes(Func score, const KeyTiling &tiling, const Expr &tiles_in_block, const Expr &edge_tiles) {
    using namespace Halide;
    const Expr query = query_of(row), score_head = head_of(row, head);

    // What a pass sees of one tile.
    struct Tile {
      Expr score, key;
    };
    const auto pass_over = [&](const Expr &tiles, const std::function<Expr(const Tile &)> &value) {
      RDom tile(0, tiling.tiles, "tile");
      tile.where(tile < tiles);
      const FuncRef s = score(lane, tile, row, block, row_block, head, batch);
      score(lane, tile, row, block, row_block, head, batch) = value({s, tiling.key(lane, tile, block)});
      passes_.push_back(tile);
    };
    const auto pass = [&](const Expr &condition, const std::function<Expr(const Tile &)> &value) {
      pass_over(select(condition, tiles_in_block, 0), value);
    };

    pass(softcap > 0.f, [&](const Tile &t) { return softcap * tanh_accurate(t.score / softcap); });
    for (const std::string &name : split_branches(branches)) {
      pass(Expr(true),
           [&](const Tile &t) { return with_branch(find_branch(name), t.score, t.key, query, score_head); });
    }
    if (!offsets_added_) pass(has_offsets, [&](const Tile &t) { return t.score + offset_bias(t.key); });

    // What is hidden stays hidden. Sums of finite terms stay visible, as only -infinity hides.
    const auto biased = [](const Expr &s, const Expr &bias) {
      return select(s < kLowestVisible || is_minus_infinity(bias), kHidden,
                    max(s + max(bias, kLowestVisible), kLowestVisible));
    };
    const auto in_mask = [&](const auto &mask, const Expr &key) {
      return mask(min(likely(key), mask.dim(0).extent() - 1), query, score_head, batch);
    };
    pass(has_masks && has_dense, [&](const Tile &t) { return biased(t.score, in_mask(dense_bias, t.key)); });
    pass(has_masks && has_add, [&](const Tile &t) { return biased(t.score, in_mask(add_mask, t.key)); });
    pass(has_masks && has_keep, [&](const Tile &t) {
      return select((in_mask(keep_mask, t.key) != 0) == keep_value, t.score, kHidden);
    });
    pass(has_masks && has_key_bias, [&](const Tile &t) { return biased(t.score, key_bias(t.key, batch)); });
    pass_over(edge_tiles, [&](const Tile &t) {
      return select(t.key >= row_begin(query, batch) && t.key < row_end(query, batch), t.score, kHidden);
    });
  }

  std::vector<RDom> passes_;  // of the updates of the score, in order

 private:
  Expr heads_of_row() const { return rows_are_queries_ ? Expr(1) : Expr(row_heads); }

  Expr offset_bias(const Expr &key) { return offsets(key - query_of(row) + offset_zero, head_of(row, head)); }

  Expr with_branch(const Branch &branch, const Expr &score, const Expr &key, const Expr &query,
                   const Expr &score_head) {
    using namespace Halide;
    const Expr k = min(likely(key), k_positions.dim(0).extent() - 1);
    const Expr q_position = q_positions(query, batch), k_position = k_positions(k, batch);
    const auto has_position = [](const Expr &p) {
      return reinterpret<uint32_t>(p) != Expr(kPlusInfinityBits);
    };
    const Expr both = has_position(q_position) && has_position(k_position);
    Score one{score, batch, score_head, query, key, q_position, k_position};
    // What such a branch adds depends on the difference alone, and not on the logit. The difference is taken
    // part by part, in an order that fast math must not change. Added like this, zero leaves every bit of a
    // score as it is.
    const bool adds = branch.shift_invariant;
    if (adds) {
      one.logit = 0.f;
      one.q_position = strict_float_op(Internal::Call::strict_add,
                                       strict_float_op(Internal::Call::strict_sub, q_position, k_position),
                                       q_positions_low(query, batch) - k_positions_low(k, batch));
      one.k_position = 0.f;
    }
    one.q_position = select(both, one.q_position, 0.f);
    one.k_position = select(both, one.k_position, 0.f);
    const Expr value = branch.logit(one, branch_arguments_.tables());
    return select(both, adds ? score + value : value, score);
  }

  BranchArguments branch_arguments_;
  bool offsets_added_ = false, rows_are_queries_ = false;
};

}  // namespace posattn
