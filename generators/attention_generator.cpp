// Attention of blocks of queries over blocks of keys with an online softmax: memory grows with the sequence
// lengths, never with their product. Prefill and decode are this algorithm under two schedules.
#include "generators/scores.h"
#include "generators/storage.h"
#include "schedules/attention_amx.h"
#include "schedules/attention_cuda.h"
#include "schedules/attention_simd.h"
#include "schedules/decode_cuda.h"

namespace posattn {

using namespace Halide;

class Attention : public ScoreGenerator<Attention>, public schedules::Tunable {
 public:
  GeneratorParam<int> head_dim{"head_dim", 64};
  // prefill: many rows, output in its type. decode: few rows, the keys split, partial outputs in float32.
  GeneratorParam<bool> decode{"decode", false};
  // See schedules::AttentionTiles. 0: the schedule's own choice.
  GeneratorParam<int> query_block{"query_block", 0};
  GeneratorParam<int> row_chunk{"row_chunk", 0};
  GeneratorParam<int> key_block{"key_block", 0};
  GeneratorParam<int> tile_rows{"tile_rows", 0};
  GeneratorParam<int> tile_channels{"tile_channels", 0};
  GeneratorParam<int> single_row_channels{"single_row_channels", 0};

  Output<Buffer<void, 5>> out{"out"};   // (d, row, split, row_block, head, batch)
  Output<Buffer<float, 4>> lse{"lse"};  // (row, split, row_block, head, batch)

  void configure() {
    declare_inputs();
    out.set_type(decode ? Float(32) : Type(type));
  }

  void generate() {
    const schedules::Machine machine = schedules::machine(get_target());
    const int D = head_dim, lanes = machine.lanes;
    f.on_tiles = on_tiles();
    f.on_dots = machine.dots && is_packed() && packing().pairs();
    const bool weights_in_words = f.on_tiles || f.on_dots;
    const bool weights_in_two = f.on_dots && decode;
    // What values are multiplied by differs from what is summed.
    const bool summed_apart = weights_in_words || int8_cache;
    if (f.on_tiles) {
      tiles = schedules::attention_tiles_amx(head_dim);
    } else if (get_target().has_gpu_feature()) {
      tiles = decode ? schedules::decode_tiles_cuda(head_dim)
                     : schedules::attention_tiles_cuda(head_dim, Type(type).bytes());
    } else {
      tiles = schedules::attention_tiles(machine, head_dim, decode);
    }
    const auto set = [](int &tile, int value) { tile = value > 0 ? value : tile; };
    set(tiles.query_block, this->query_block), set(tiles.row_chunk, row_chunk),
        set(tiles.key_block, key_block);
    set(tiles.rows, tile_rows), set(tiles.channels, tile_channels);
    set(tiles.single_row_channels, single_row_channels);
    const int query_block = tiles.query_block;
    const KeyTiling tiling{machine.key_lanes, tiles.key_block / machine.key_lanes};
    split_blocks.set_estimate(tiles.key_block);  // for the caller, who counts in these
    Var x("x"), tile("tile"), split("split");

    // The algorithm.

    if (!decode) set_rows_are_queries();
    f.has_offsets = has_offsets;

    // Queries, zero beyond their own head dimension; in float32 where arithmetic is.
    const auto q_value = [&](const Expr &i) {
      return q(min(i, q.dim(0).extent() - 1), query_of(row), head_of(row, head), batch);
    };
    const auto q_bits = [&](const Expr &i) {
      const Expr bits = word_of(q_value(i));
      return select(i < q.dim(0).extent(), bits, cast(bits.type(), 0));
    };
    if (f.on_dots) {
      f.query(d, row, row_block, head, batch) = Packing::word(q_bits(2 * d), q_bits(2 * d + 1));
    } else if (f.on_tiles) {
      // Products are scaled already where that is exact, as it is by a power of two.
      const Expr scaled_value = load_float(q_value(d), get_target()) * select(scales_queries(), scale, 1.f);
      const Expr bits = cast<uint16_t>(reinterpret<uint32_t>(scaled_value) >> 16);
      f.query(d, row, row_block, head, batch) =
          reinterpret(Type(type), select(d < q.dim(0).extent(), bits, cast<uint16_t>(0)));
    } else {
      f.query(d, row, row_block, head, batch) =
          select(d < q.dim(0).extent(), load_float(q_value(d), get_target()), 0.f);
    }
    f.full_head_dim = q.dim(0).extent() == D;
    f.single_row = rows() == 1;
    if (!is_packed()) f.has_visible = has_visible();

    // Smallest and largest bounds of the visible keys over a block of rows.
    const Expr block_begin = row_block * query_block;
    if (is_packed()) {
      f.block_rows = RDom(0, query_block, "block_rows");
      const Expr block_query = query_of(block_begin + f.block_rows);
      const Expr begin = begin_of(block_query, batch), end = end_of(block_query, batch);
      f.range(row_block, batch) = Tuple(Expr(INT32_MAX), Expr(0), Expr(INT32_MAX), Expr(0));
      const FuncRef range = f.range(row_block, batch);
      f.range(row_block, batch) =
          Tuple(min(range[0], begin), max(range[1], begin), min(range[2], end), max(range[3], end));
    } else {
      const Expr first = query_of(block_begin), last = query_of(block_begin + query_block - 1);
      f.range(row_block, batch) =
          Tuple(begin_of(first, batch), begin_of(last, batch), end_of(first, batch), end_of(last, batch));
    }
    const FuncRef range = f.range(row_block, batch);
    const Expr first_key = range[0], end_key = range[3];
    const auto tiles_in = [&](const Expr &b) {
      return min((end_key - b * tiling.keys() + tiling.lanes - 1) / tiling.lanes, tiling.tiles);
    };

    // Products, scaled only when they are sums: nothing is rounded before. Then all that is added to them.
    f.tiles = RDom(0, tiling.tiles, "tiles");
    f.tiles.where(f.tiles < tiles_in(block));
    const Expr first_tile = block * tiling.tiles;
    const auto key_channel = [&](const Expr &i, const Expr &t) -> Expr {
      if (int8_cache) return load_int8((*keys_)(lane, i, first_tile + t, kv_head_of(head), batch));
      if (is_packed()) return packing().key(*keys_, lane, i, first_tile + t, kv_head_of(head), batch);
      const Expr key = tiling.key(lane, tile, block);
      if (in_steps()) {
        f.loaded_key(d, lane, tile, block, head, batch) = loaded_key(d, key, kv_head_of(head), batch);
        f.key(d, lane, tile, block, head, batch) =
            padded_key(d, f.loaded_key(d, lane, tile, block, head, batch));
      } else {
        f.key(d, lane, tile, block, head, batch) = stored_key(d, key, kv_head_of(head), batch);
      }
      return element([&](const Expr &e) { return f.key(e, lane, t, block, head, batch); }, i);
    };
    const auto product_at = [&](const Expr &i, const Expr &t) {
      return load_float(f.query(i, row, row_block, head, batch), get_target()) * key_channel(i, t);
    };
    if (f.on_tiles) {
      // Scaled in place: products of a whole block go through the tiles one after the other.
      f.rd = RDom(0, D, 0, tiling.tiles, "rd");
      f.rd.where(f.rd.y < tiles_in(block));
      f.score(lane, tile, row, block, row_block, head, batch) = 0.f;
      f.score(lane, f.rd.y, row, block, row_block, head, batch) += product_at(f.rd.x, f.rd.y);
      f.unscaled_tiles = RDom(0, tiling.tiles, "unscaled_tiles");
      f.unscaled_tiles.where(f.unscaled_tiles <
                             select(scales_queries() || scales_weights(), 0, tiles_in(block)));
      const Expr t = f.unscaled_tiles.x;
      f.score(lane, t, row, block, row_block, head, batch) =
          scaled(f.score(lane, t, row, block, row_block, head, batch), tiling.key(lane, t, block));
    } else {
      f.rd = RDom(0, f.on_dots ? D / 2 : D, "rd");
      f.product(lane, tile, row, block, row_block, head, batch) = 0.f;
      const FuncRef product = f.product(lane, tile, row, block, row_block, head, batch);
      if (f.on_dots) {
        f.product(lane, tile, row, block, row_block, head, batch) =
            Packing::dot(product, (*keys_)(lane, f.rd.x, first_tile + tile, kv_head_of(head), batch),
                         f.query(f.rd.x, row, row_block, head, batch));
      } else {
        f.product(lane, tile, row, block, row_block, head, batch) += product_at(f.rd.x, tile);
      }
      f.score(lane, tile, row, block, row_block, head, batch) = undef<float>();
      Expr whole = f.product(lane, f.tiles, row, block, row_block, head, batch);
      if (int8_cache) whole *= (*key_scales_)(tiling.key(lane, f.tiles, block), kv_head_of(head), batch);
      f.score(lane, f.tiles, row, block, row_block, head, batch) =
          scaled(whole, tiling.key(lane, f.tiles, block));
    }
    const Expr computed_end = block * tiling.keys() + tiles_in(block) * tiling.lanes;
    const Expr some_out_of_range = range[1] > block * tiling.keys() || range[2] < computed_end;
    f.edge_tiles(block, row_block, batch) = select(some_out_of_range, tiles_in(block), 0);
    add_passes(f.score, tiling, tiles_in(block), f.edge_tiles(block, row_block, batch));
    f.passes = passes_;

    // On tiles products that nothing is added to stay as they are until here: one pass less over them.
    const auto scaled_last = [&](const Expr &s) {
      return strict_float_op(Internal::Call::strict_mul, s, scale);
    };
    if (f.on_tiles) {
      f.tiles = RDom(0, tiling.tiles, "tiles");
      f.tiles.where(f.tiles < select(scales_weights(), 0, tiles_in(block)));
      if (!Internal::is_const(scales_weights())) {
        f.products = RDom(0, tiling.tiles, "products");
        f.products.where(f.products < select(scales_weights(), tiles_in(block), 0));
      }
    }

    // The block's maximum, its weights and their sum, by lanes.
    f.rk = RDom(0, tiling.lanes / lanes, 0, tiling.tiles, "rk");
    f.rk.where(f.rk.y < tiles_in(block));
    Func by_lane("maximum_by_lane");
    by_lane(x, row, block, row_block, head, batch) = kMaximumStart;
    by_lane(x, row, block, row_block, head, batch) =
        max(by_lane(x, row, block, row_block, head, batch),
            f.score(f.rk.x * lanes + x, f.rk.y, row, block, row_block, head, batch));
    f.maximum_tree.push_back(by_lane);
    if (f.on_tiles) {
      // As integers in the same order, of which there is a horizontal maximum.
      const auto ordered = [](const Expr &bits) { return bits ^ ((bits >> 31) & 0x7fffffff); };
      f.ry = RDom(0, lanes, "ry");
      f.ordered(row, block, row_block, head, batch) = INT32_MIN;
      f.ordered(row, block, row_block, head, batch) =
          max(f.ordered(row, block, row_block, head, batch),
              ordered(reinterpret<int32_t>(by_lane(f.ry, row, block, row_block, head, batch))));
      const Expr largest = reinterpret<float>(ordered(f.ordered(row, block, row_block, head, batch)));
      f.maximum(row, block, row_block, head, batch) = select(scales_weights(), scaled_last(largest), largest);
    } else {
      // Halving tree: a horizontal maximum would become a chain of scalar comparisons.
      for (int width = lanes / 2; width >= 1; width /= 2) {
        Func half("maximum_" + std::to_string(width)), &whole = f.maximum_tree.back();
        half(x, row, block, row_block, head, batch) =
            max(whole(x, row, block, row_block, head, batch),
                whole(x + width, row, block, row_block, head, batch));
        f.maximum_tree.push_back(half);
      }
      f.maximum(row, block, row_block, head, batch) =
          f.maximum_tree.back()(0, row, block, row_block, head, batch);
    }
    const auto weight_of_score = [&](const Expr &s) {
      return exp_nonpositive(s - f.maximum(row, block, row_block, head, batch));
    };
    const auto weight_of = [&](const Expr &in_tile) {
      return weight_of_score(f.score(in_tile, f.tiles, row, block, row_block, head, batch));
    };
    const int words = tiling.lanes / 2;
    if (weights_in_words) {
      // Two in a word, as values are, rounded to bfloat16: as a product of matrices of that type takes its
      // operands. Beside them sums of two that are not rounded, so that lse is as exact as float32 allows.
      // Is that within twice the error of the plain formula? Where that one multiplies tensors of bfloat16,
      // its weights are one, too, and off by as much. Where it keeps them in float32 it still rounds its
      // results, by up to 2^-9 of the largest, and errors of up to 2^-9 of each weight, of either sign,
      // cancel to about that: over hundreds of random calls at most 1.5 times its error, and 2.03 times for a
      // single channel.
      const Expr low = weight_of(lane), high = weight_of(lane + words),
                 word = Packing::rounded_word(low, high);
      std::vector<Expr> start{undef<int32_t>(), undef<float>()}, weights{word, low + high};
      if (weights_in_two) {
        // A single row of few channels has too few errors to cancel, or to hide among. What is rounded away
        // is multiplied, too: decoding waits for memory, and two products cost it nothing.
        start.emplace_back(undef<int32_t>());
        weights.push_back(Packing::rounded_word(low - Packing::half(word, 0), high - Packing::half(word, 1)));
      }
      f.weight(lane, tile, row, block, row_block, head, batch) = Tuple(start);
      f.weight(lane, f.tiles, row, block, row_block, head, batch) = Tuple(weights);
      if (f.products.defined()) {
        const auto of_product = [&](const Expr &in_tile) {
          return weight_of_score(
              scaled_last(f.score(in_tile, f.products, row, block, row_block, head, batch)));
        };
        const Expr first = of_product(lane), second = of_product(lane + words);
        f.weight(lane, f.products, row, block, row_block, head, batch) =
            Tuple(Packing::rounded_word(first, second), first + second);
      }
    } else if (int8_cache) {
      const Expr one = weight_of(lane);
      const Expr value_scale = (*value_scales_)(tiling.key(lane, f.tiles, block), kv_head_of(head), batch);
      f.weight(lane, tile, row, block, row_block, head, batch) = Tuple(undef<float>(), undef<float>());
      f.weight(lane, f.tiles, row, block, row_block, head, batch) = Tuple(one * value_scale, one);
    } else {
      f.weight(lane, tile, row, block, row_block, head, batch) = undef<float>();
      f.weight(lane, f.tiles, row, block, row_block, head, batch) = weight_of(lane);
    }
    f.rs = RDom(0, (weights_in_words ? words : tiling.lanes) / lanes, 0, tiling.tiles, "rs");
    f.rs.where(f.rs.y < tiles_in(block));
    const FuncRef summed = f.weight(f.rs.x * lanes + x, f.rs.y, row, block, row_block, head, batch);
    f.sum(x, row, block, row_block, head, batch) = 0.f;
    f.sum(x, row, block, row_block, head, batch) += summed_apart ? Expr(summed[1]) : Expr(summed);

    // The block's weighted values.
    f.rv = RDom(0, f.on_dots ? words : tiling.lanes, 0, tiling.tiles, "rv");
    f.rv.where(f.rv.y < tiles_in(block));
    const auto weight_at = [&](const Expr &in_tile, const Expr &in_block) -> Expr {
      if (int8_cache) return f.weight(in_tile, in_block, row, block, row_block, head, batch)[0];
      if (!f.on_tiles) return f.weight(in_tile, in_block, row, block, row_block, head, batch);
      const FuncRef pair = f.weight(in_tile % words, in_block, row, block, row_block, head, batch);
      return Packing::half(pair[0], in_tile / words);
    };
    const auto value_channel = [&](const Expr &i) -> Expr {
      if (int8_cache) {
        const Expr key = (first_tile + f.rv.y) * tiling.lanes + f.rv.x;
        return load_int8((*values_)(i, key, kv_head_of(head), batch));
      }
      if (is_packed())
        return packing().value(*values_, i, f.rv.x, first_tile + f.rv.y, kv_head_of(head), batch);
      const Expr key = tiling.key(lane, tile, block);
      if (in_steps()) {
        f.loaded_value(d, lane, tile, block, head, batch) = loaded_value(d, key, kv_head_of(head), batch);
        f.value(d, lane, tile, block, head, batch) =
            shown_value(d, key, batch, f.loaded_value(d, lane, tile, block, head, batch));
      } else {
        f.value(d, lane, tile, block, head, batch) = stored_value(d, key, kv_head_of(head), batch);
      }
      return element([&](const Expr &e) { return f.value(e, f.rv.x, f.rv.y, block, head, batch); }, i);
    };
    f.weighted(d, row, block, row_block, head, batch) = 0.f;
    const FuncRef weighted = f.weighted(d, row, block, row_block, head, batch);
    if (f.on_dots) {
      const Expr pair = (first_tile + f.rv.y) * words + f.rv.x;
      const Expr value = (*values_)(d, pair, kv_head_of(head), batch);
      const FuncRef weight = f.weight(f.rv.x, f.rv.y, row, block, row_block, head, batch);
      const Expr sum = weights_in_two ? Packing::dot(weighted, value, weight[2]) : Expr(weighted);
      f.weighted(d, row, block, row_block, head, batch) = Packing::dot(sum, value, weight[0]);
    } else {
      f.weighted(d, row, block, row_block, head, batch) += weight_at(f.rv.x, f.rv.y) * value_channel(d);
    }
    f.block_output(d, row, block, row_block, head, batch) = f.weighted(d, row, block, row_block, head, batch);

    // Blocks merge in sequence: state (maximum, sum by lanes, output in vectors of lanes).
    const int vectors = D / lanes;
    std::vector<Expr> state{Expr(kMaximumStart), Expr(0.f)};
    state.resize(2 + vectors, Expr(0.f));
    f.state(x, row, split, row_block, head, batch) = Tuple(state);
    // All blocks of keys that some row sees. On a CPU the bounds become the loop's; on a GPU a block of
    // threads passes over those of its split that it has no use for.
    const Expr num_blocks = (num_keys(tiling) + tiling.keys() - 1) / tiling.keys();
    f.rb = RDom(0, is_packed() ? num_blocks : Expr(split_blocks), "rb");
    const Expr this_block = is_packed() ? Expr(f.rb) : split * split_blocks + f.rb;
    f.rb.where(this_block >= max(first_key / tiling.keys(), split * split_blocks));
    f.rb.where(this_block < min((end_key + tiling.keys() - 1) / tiling.keys(), (split + 1) * split_blocks));
    {
      const FuncRef s = f.state(x, row, split, row_block, head, batch);
      const Expr block_maximum = f.maximum(row, this_block, row_block, head, batch);
      const Expr maximum = max(Expr(s[0]), block_maximum);
      // One of the two keeps its scale.
      const Expr decay = exp_nonpositive(-abs(Expr(s[0]) - block_maximum));
      const Expr keep_old = select(Expr(s[0]) >= block_maximum, 1.f, decay);
      const Expr keep_new = select(Expr(s[0]) >= block_maximum, decay, 1.f);
      state = {maximum, Expr(s[1]) * keep_old + f.sum(x, row, this_block, row_block, head, batch) * keep_new};
      for (int i = 0; i < vectors; i++) {
        state.push_back(Expr(s[2 + i]) * keep_old +
                        f.block_output(i * lanes + x, row, this_block, row_block, head, batch) * keep_new);
      }
      f.state(x, row, split, row_block, head, batch) = Tuple(state);
    }

    f.rx = RDom(0, lanes, "rx");
    f.total(row, split, row_block, head, batch) = 0.f;
    f.total(row, split, row_block, head, batch) += f.state(f.rx, row, split, row_block, head, batch)[1];
    const Expr total = f.total(row, split, row_block, head, batch);
    const Expr nothing_visible = is_zero(total);
    f.inverse(row, split, row_block, head, batch) = select(nothing_visible, 0.f, 1.f / total);
    const FuncRef s = f.state(d % lanes, row, split, row_block, head, batch);
    Expr sum = s[2];
    for (int i = 1; i < vectors; i++) sum = select(d / lanes == i, Expr(s[2 + i]), sum);
    Expr result = sum * f.inverse(row, split, row_block, head, batch);
    if (!is_packed()) {
      // Never so. Halide 21 gives shared memory that is last read in a loop to what the same loop writes
      // later; queries and ranges are needed in every iteration.
      const Expr never = max(range[0], range[1], range[2]) > range[3];
      result = select(never, f.query(d, row, row_block, head, batch), result);
    }
    f.result(d, row, split, row_block, head, batch) = result;
    f.row_lse(row, split, row_block, head, batch) =
        select(nothing_visible, reinterpret<float>(Expr(kMinusInfinityBits)),
               Expr(f.state(0, row, split, row_block, head, batch)[0]) + log_positive(total));
    out(d, row, split, head, batch) =
        store_float(decode ? Float(32) : Type(type), f.result(d, row, split, row / query_block, head, batch),
                    get_target());
    lse(row, split, head, batch) = f.row_lse(row, split, row / query_block, head, batch);

    f.out = out;
    f.lse = lse;
    f.vars = {x, lane, tile, row, block, split, row_block, head, batch, d};
    declare_layout(tiling);
    if (is_packed()) {
      const int elements = int8_cache ? D : D / packing().numbers();  // of a key
      keys_->dim(1).set_extent(elements);
      keys_->dim(2).set_stride(tiling.lanes * elements);
      values_->dim(0).set_bounds(0, D);
      values_->dim(1).set_stride(D);
    }
    for (int i = 0; i < 5; i++) out.dim(i).set_min(0);
    for (int i = 0; i < 4; i++) lse.dim(i).set_bounds(0, out.dim(i + 1).extent());
  }

  // Those for CUDA cores leave nothing open.
  schedules::TuningSpace tuning_space() const override {
    if (get_target().has_gpu_feature()) return {};
    if (on_tiles()) return schedules::attention_tuning_space_amx(head_dim);
    return schedules::attention_tuning_space(schedules::machine(get_target()), head_dim, decode);
  }

  void schedule() {
    if (f.on_tiles) {
      schedules::schedule_attention_amx(f, tiles, get_pipeline());
    } else if (get_target().has_gpu_feature()) {
      if (decode) {
        schedules::schedule_decode_cuda(f, tiles, per_word());
      } else {
        schedules::schedule_attention_cuda(f, tiles);
      }
    } else {
      schedules::schedule_attention(f, schedules::machine(get_target()), tiles);
    }
  }

 private:
  bool on_tiles() const {
    return schedules::machine(get_target()).amx && !decode && head_dim % schedules::kAmxDepth == 0;
  }

  // Whether queries of bfloat16 times the scale are exact, and nothing has to be added to the products.
  Expr scales_queries() {
    const Expr bits = reinterpret<int32_t>(Expr(scale));
    constexpr int kOne = 127 << 23;
    return (bits & 0x7fffff) == 0 && bits <= kOne && bits >= kOne - (8 << 23) && !has_offsets;
  }

  // Whether products are scaled only where their maximum and their weights are computed. Bit for bit that is
  // the same: multiplying by a positive number, rounded, keeps their order.
  Expr scales_weights() {
    if (!split_branches(branches).empty()) return Internal::const_false();
    const Expr nothing_added = !has_offsets && !has_masks && softcap == 0.f;
    constexpr float kLeast = 1e-6f;  // what is hidden stays far below everything else
    return !scales_queries() && nothing_added && scale <= 1.f && scale >= kLeast;
  }

  // Whether keys and values are loaded first and looked at later.
  bool in_steps() const { return decode && key_form == KeyForm::words; }

  schedules::AttentionFuncs f;
  schedules::AttentionTiles tiles;
};

}  // namespace posattn

HALIDE_REGISTER_GENERATOR(posattn::Attention, attention)
