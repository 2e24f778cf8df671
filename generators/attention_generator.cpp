// Attention of blocks of queries over blocks of keys with an online softmax: memory grows with the sequence
// lengths, never with their product. Prefill and decode are this algorithm under two schedules.
#include "generators/scores.h"
#include "generators/storage.h"
#include "schedules/attention_simd.h"

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
    declare_branches();
    out.set_type(decode ? Float(32) : Type(type));
  }

  void generate() {
    const schedules::Machine machine = schedules::machine(get_target());
    const int D = head_dim, lanes = machine.lanes;
    tiles = schedules::attention_tiles(machine, head_dim, decode);
    const auto set = [](int &tile, int value) { tile = value > 0 ? value : tile; };
    set(tiles.query_block, this->query_block), set(tiles.row_chunk, row_chunk),
        set(tiles.key_block, key_block);
    set(tiles.rows, tile_rows), set(tiles.channels, tile_channels);
    set(tiles.single_row_channels, single_row_channels);
    split_blocks.set_estimate(tiles.key_block);  // for the caller, who finds it in the metadata
    const int query_block = tiles.query_block;
    const KeyTiling tiling{machine.key_lanes, tiles.key_block / machine.key_lanes};
    Var x("x"), tile("tile"), split("split");

    // The algorithm.

    if (!decode) set_rows_are_queries();
    f.has_offsets = has_offsets;

    // Queries in float32, zero beyond their own head dimension.
    const Expr q_value = q(min(d, q.dim(0).extent() - 1), query_of(row), head_of(row, head), batch);
    f.query(d, row, row_block, head, batch) =
        select(d < q.dim(0).extent(), load_float(q_value, get_target()), 0.f);
    f.full_head_dim = q.dim(0).extent() == D;
    f.single_row = rows() == 1;

    // Smallest and largest bounds of the visible keys over a block of rows.
    f.block_rows = RDom(0, query_block, "block_rows");
    const Expr block_query = query_of(row_block * query_block + f.block_rows);
    const Expr begin = row_begin(block_query, batch), end = row_end(block_query, batch);
    f.range(row_block, batch) = Tuple(Expr(INT32_MAX), Expr(0), Expr(INT32_MAX), Expr(0));
    const FuncRef range = f.range(row_block, batch);
    f.range(row_block, batch) =
        Tuple(min(range[0], begin), max(range[1], begin), min(range[2], end), max(range[3], end));
    const Expr first_key = range[0], end_key = range[3];
    const auto tiles_in = [&](const Expr &b) {
      return min((end_key - b * tiling.keys() + tiling.lanes - 1) / tiling.lanes, tiling.tiles);
    };

    // Products, scaled only when they are sums: nothing is rounded before. Then all that is added to them.
    f.rd = RDom(0, D, "rd");
    f.product(lane, tile, row, block, row_block, head, batch) = 0.f;
    f.product(lane, tile, row, block, row_block, head, batch) +=
        f.query(f.rd, row, row_block, head, batch) *
        load_float(keys(lane, f.rd, block * tiling.tiles + tile, kv_head_of(head), batch), get_target());
    f.tiles = RDom(0, tiling.tiles, "tiles");
    f.tiles.where(f.tiles < tiles_in(block));
    f.score(lane, tile, row, block, row_block, head, batch) = undef<float>();
    f.score(lane, f.tiles, row, block, row_block, head, batch) = scaled(
        f.product(lane, f.tiles, row, block, row_block, head, batch), tiling.key(lane, f.tiles, block));
    const Expr computed_end = block * tiling.keys() + tiles_in(block) * tiling.lanes;
    const Expr some_out_of_range = range[1] > block * tiling.keys() || range[2] < computed_end;
    f.edge_tiles(block, row_block, batch) = select(some_out_of_range, tiles_in(block), 0);
    add_passes(f.score, tiling, tiles_in(block), f.edge_tiles(block, row_block, batch));
    f.passes = passes_;

    // The block's maximum, its weights and their sum, by lanes.
    f.rk = RDom(0, tiling.lanes / lanes, 0, tiling.tiles, "rk");
    f.rk.where(f.rk.y < tiles_in(block));
    Func by_lane("maximum_by_lane");
    by_lane(x, row, block, row_block, head, batch) = kMaximumStart;
    by_lane(x, row, block, row_block, head, batch) =
        max(by_lane(x, row, block, row_block, head, batch),
            f.score(f.rk.x * lanes + x, f.rk.y, row, block, row_block, head, batch));
    f.maximum_tree.push_back(by_lane);
    // Halving tree: a horizontal maximum would become a chain of scalar comparisons.
    for (int width = lanes / 2; width >= 1; width /= 2) {
      Func half("maximum_" + std::to_string(width)), &whole = f.maximum_tree.back();
      half(x, row, block, row_block, head, batch) = max(whole(x, row, block, row_block, head, batch),
                                                        whole(x + width, row, block, row_block, head, batch));
      f.maximum_tree.push_back(half);
    }
    f.maximum(row, block, row_block, head, batch) =
        f.maximum_tree.back()(0, row, block, row_block, head, batch);
    f.weight(lane, tile, row, block, row_block, head, batch) = undef<float>();
    f.weight(lane, f.tiles, row, block, row_block, head, batch) =
        exp_nonpositive(f.score(lane, f.tiles, row, block, row_block, head, batch) -
                        f.maximum(row, block, row_block, head, batch));
    f.sum(x, row, block, row_block, head, batch) = 0.f;
    f.sum(x, row, block, row_block, head, batch) +=
        f.weight(f.rk.x * lanes + x, f.rk.y, row, block, row_block, head, batch);

    // The block's weighted values.
    f.rv = RDom(0, tiling.lanes, 0, tiling.tiles, "rv");
    f.rv.where(f.rv.y < tiles_in(block));
    f.weighted(d, row, block, row_block, head, batch) = 0.f;
    f.weighted(d, row, block, row_block, head, batch) +=
        f.weight(f.rv.x, f.rv.y, row, block, row_block, head, batch) *
        load_float(values(d, tiling.key(f.rv.x, f.rv.y, block), kv_head_of(head), batch), get_target());
    f.block_output(d, row, block, row_block, head, batch) = f.weighted(d, row, block, row_block, head, batch);

    // Blocks merge in sequence: state (maximum, sum by lanes, output in vectors of lanes).
    const int vectors = D / lanes;
    std::vector<Expr> state{Expr(kMaximumStart), Expr(0.f)};
    state.resize(2 + vectors, Expr(0.f));
    f.state(x, row, split, row_block, head, batch) = Tuple(state);
    // All blocks of keys; the bounds below become those of the loop.
    f.rb = RDom(0, (keys.dim(2).extent() + tiling.tiles - 1) / tiling.tiles, "rb");
    f.rb.where(f.rb >= max(first_key / tiling.keys(), split * split_blocks));
    f.rb.where(f.rb < min((end_key + tiling.keys() - 1) / tiling.keys(), (split + 1) * split_blocks));
    {
      const FuncRef s = f.state(x, row, split, row_block, head, batch);
      const Expr block_maximum = f.maximum(row, f.rb, row_block, head, batch);
      const Expr maximum = max(Expr(s[0]), block_maximum);
      // One of the two keeps its scale.
      const Expr decay = exp_nonpositive(-abs(Expr(s[0]) - block_maximum));
      const Expr keep_old = select(Expr(s[0]) >= block_maximum, 1.f, decay);
      const Expr keep_new = select(Expr(s[0]) >= block_maximum, decay, 1.f);
      state = {maximum, Expr(s[1]) * keep_old + f.sum(x, row, f.rb, row_block, head, batch) * keep_new};
      for (int i = 0; i < vectors; i++) {
        state.push_back(Expr(s[2 + i]) * keep_old +
                        f.block_output(i * lanes + x, row, f.rb, row_block, head, batch) * keep_new);
      }
      f.state(x, row, split, row_block, head, batch) = Tuple(state);
    }

    f.rx = RDom(0, lanes, "rx");
    f.total(row, split, row_block, head, batch) = 0.f;
    f.total(row, split, row_block, head, batch) += f.state(f.rx, row, split, row_block, head, batch)[1];
    const Expr total = f.total(row, split, row_block, head, batch);
    const Expr nothing_visible = total == 0.f;
    f.inverse(row, split, row_block, head, batch) = select(nothing_visible, 0.f, 1.f / total);
    const FuncRef s = f.state(d % lanes, row, split, row_block, head, batch);
    Expr sum = s[2];
    for (int i = 1; i < vectors; i++) sum = select(d / lanes == i, Expr(s[2 + i]), sum);
    f.result(d, row, split, row_block, head, batch) = sum * f.inverse(row, split, row_block, head, batch);
    f.row_lse(row, split, row_block, head, batch) =
        select(nothing_visible, reinterpret<float>(Expr(kMinusInfinityBits)),
               Expr(f.state(0, row, split, row_block, head, batch)[0]) + log(total));
    out(d, row, split, head, batch) =
        store_float(decode ? Float(32) : Type(type), f.result(d, row, split, row / query_block, head, batch),
                    get_target());
    lse(row, split, head, batch) = f.row_lse(row, split, row / query_block, head, batch);

    f.out = out;
    f.lse = lse;
    f.vars = {x, lane, tile, row, block, split, row_block, head, batch, d};
    declare_layout(tiling);
    keys.dim(1).set_extent(D);
    keys.dim(2).set_stride(tiling.lanes * D);
    values.dim(0).set_bounds(0, D);
    values.dim(1).set_stride(D);
    for (int i = 0; i < 5; i++) out.dim(i).set_min(0);
    for (int i = 0; i < 4; i++) lse.dim(i).set_bounds(0, out.dim(i + 1).extent());
  }

  schedules::TuningSpace tuning_space() const override {
    return schedules::attention_tuning_space(schedules::machine(get_target()), head_dim, decode);
  }

  void schedule() { schedules::schedule_attention(f, schedules::machine(get_target()), tiles); }

 private:
  schedules::AttentionFuncs f;
  schedules::AttentionTiles tiles;
};

}  // namespace posattn

HALIDE_REGISTER_GENERATOR(posattn::Attention, attention)
