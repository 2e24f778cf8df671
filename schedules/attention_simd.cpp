#include "schedules/attention_simd.h"

#include <algorithm>

namespace posattn::schedules {

using namespace Halide;

AttentionTiles attention_tiles(const Machine &machine, int head_dim, bool decode) {
  // On AVX-512 8 x 32, 12 x 32, 4 x 64 and 6 x 64 are the same within noise for long sequences; 8 rows waste
  // less of short ones. So do 32 rows a task, as many as a tile has keys: causal is 12 % faster than with 48
  // for 128 keys, 5 % for 512 and 1 % for 2048; full is the same.
  if (!decode) {
    const int rows = machine.lanes == 16 ? 8 : machine.rows, block = (32 + rows - 1) / rows * rows;
    return {head_dim, block, block, 256, rows, machine.key_lanes, 0};
  }
  // Bound by memory: a single row reads whole rows of values in one pass, with as many accumulators as there
  // are; grouped queries share the read among the rows of a tile.
  const int registers = machine.lanes == 16 ? 24 : 12, rows = machine.lanes == 16 ? 4 : 2;
  const auto channels = [&](int vectors) {
    while (head_dim % (vectors * machine.lanes) != 0) vectors--;
    return vectors * machine.lanes;
  };
  return {head_dim, 8, 8, 256, rows, channels(registers / rows), channels(registers)};
}

TuningSpace attention_tuning_space(const Machine &machine, int head_dim, bool decode) {
  const AttentionTiles hand = attention_tiles(machine, head_dim, decode);
  const int lanes = machine.lanes, key_lanes = machine.key_lanes, most_rows = registers(machine) / 2;
  TuningSpace space;
  space.parameters = {{"key_block", hand.key_block, 2 * key_lanes, 1024, key_lanes},
                      {"tile_rows", hand.rows, 1, decode ? hand.query_block : most_rows},
                      {"tile_channels", hand.channels, lanes, std::min(head_dim, 8 * lanes), lanes}};
  if (decode) {
    const int widest = std::min(head_dim, (registers(machine) - 4) * lanes);
    space.parameters.push_back({"single_row_channels", hand.single_row_channels, lanes, widest, lanes});
    // Threads share a call by blocks of keys: few of them would pay on one thread, and cost on many.
    space.shapes = {{"short",
                     0,
                     2048,
                     {{{"heads", 32}, {"keys", 256}}, {{"heads", 16}, {"keys", 1024}}},
                     {{"key_block", 512}}},
                    {"long", 0, 0, {{{"heads", 8}, {"keys", 4096}}, {{"heads", 8}, {"keys", 16384}}}}};
  } else {
    // Tiles are computed whole, and a block holds no more rows than it says.
    space.parameters.push_back({"row_chunk", hand.row_chunk, 1, 16, 1, "tile_rows"});
    space.parameters.push_back({"query_block", hand.query_block, 1, 4, 1, "row_chunk"});
    space.shapes = prefill_shapes();
  }
  space.infeasible = [=](const TuningPoint &point) -> std::string {
    const int rows = point.at("tile_rows"), channels = point.at("tile_channels");
    const int query_block = decode ? hand.query_block : point.at("query_block");
    const int row_chunk = decode ? hand.row_chunk : point.at("row_chunk"), key_block = point.at("key_block");
    if (key_block % key_lanes != 0) return "key_block is no multiple of " + std::to_string(key_lanes);
    if (head_dim % channels != 0 || channels % lanes != 0)
      return "tile_channels does not divide the head dimension";
    if (decode) {
      const int single = point.at("single_row_channels");
      if (head_dim % single != 0 || single % lanes != 0)
        return "single_row_channels does not divide the head dimension";
    }
    if (query_block % row_chunk != 0) return "row_chunk does not divide query_block";
    if (row_chunk % rows != 0) return "tile_rows does not divide row_chunk";
    constexpr int kMostRows = 192;  // of a task: fewer tasks than threads would be left
    if (query_block > kMostRows) return "query_block is more than " + std::to_string(kMostRows);
    std::string reason =
        too_many_registers("the tile of scores", rows, key_lanes / lanes, registers(machine));
    if (reason.empty())
      reason = too_many_registers("the tile of weighted values", rows, channels / lanes, registers(machine));
    // Scores and weights of a block, and the query, the output of a block and the state.
    const int bytes = 4 * (2 * row_chunk * key_block + 3 * query_block * head_dim);
    constexpr int kMostBytes = 1 << 19;
    if (reason.empty() && bytes > kMostBytes)
      reason =
          "a task needs " + std::to_string(bytes >> 10) + " of " + std::to_string(kMostBytes >> 10) + " KiB";
    return reason;
  };
  return space;
}

TaskLevels schedule_tasks(AttentionFuncs &f, int query_block, int lanes) {
  const auto &[x, lane, tile, row, block, split, row_block, head, batch, d] = f.vars;
  Var ob("ob"), oi("oi");
  for (Func g : {f.out, f.lse}) {
    g.split(row, ob, oi, query_block, TailStrategy::GuardWithIf);
    for (const Var &v : {ob, split, head, batch}) g.parallel(v).never_partition(v);
  }
  f.out.reorder(d, oi, ob, split, head, batch).vectorize(d, lanes, TailStrategy::GuardWithIf);
  f.lse.reorder(oi, ob, split, head, batch).compute_with(f.out, ob);
  return {LoopLevel(f.out, ob), LoopLevel(f.out, oi)};
}

void bound_to_task(const AttentionFuncs &f, Func g) {
  for (const Var &v : g.args()) {
    for (const Var &one : {f.vars.block, f.vars.split, f.vars.row_block, f.vars.head, f.vars.batch}) {
      if (v.same_as(one)) g.bound_extent(v, 1);
    }
  }
}

void schedule_attention(AttentionFuncs &f, const Machine &machine, const AttentionTiles &tiles) {
  const auto &[x, lane, tile, row, block, split, row_block, head, batch, d] = f.vars;
  const int D = tiles.head_dim, lanes = machine.lanes, key_lanes = machine.key_lanes, rows = tiles.rows;
  const int key_tiles = tiles.key_block / key_lanes, query_block = tiles.query_block;
  const int numbers = f.on_dots ? machine.pairs : 1;  // in an element of queries and weights
  Var ro("ro"), ri("ri"), di("di"), dt("dt"), rs("rs");

  const auto &[per_task, per_row] = schedule_tasks(f, query_block, lanes);

  // Small and of fixed size: all but the state and the query's rows is used and forgotten within a block of
  // keys.
  const auto local = [&](Func g, const LoopLevel &level) { g.compute_at(level).store_in(MemoryType::Stack); };
  local(f.range, per_task);
  f.range.update().unroll(f.block_rows.x, 4);

  local(f.query, per_task);
  f.query.bound_storage(row, query_block).bound_extent(d, D / numbers).vectorize(d, lanes);
  f.query.specialize(f.full_head_dim);

  local(f.state, per_task);
  f.state.bound_storage(row, query_block).bound_extent(x, lanes).vectorize(x);
  f.state.update().reorder(x, row, f.rb.x).vectorize(x).never_partition(f.rb.x);
  // Only where it splits: a chunk at the end of the rows is computed whole.
  const bool chunks = tiles.row_chunk < query_block;
  if (chunks)
    f.state.update().split(row, rs, row, tiles.row_chunk).reorder(x, row, rs, f.rb.x).never_partition(rs);
  const LoopLevel per_block = chunks ? LoopLevel(f.state, rs) : LoopLevel(f.state, f.rb.x);

  local(f.edge_tiles, per_block);
  local(f.score, per_block);
  f.score.bound_storage(row, query_block).bound_extent(lane, key_lanes).bound_extent(tile, key_tiles);
  const auto tile_scores = [&, &row = row, &lane = lane](Stage stage, int tile_rows) {
    stage.split(row, ro, ri, tile_rows, TailStrategy::RoundUp).reorder(lane, ri, ro, f.tiles);
    stage.vectorize(lane, lanes).unroll(lane).unroll(ri);
    stage.specialize(f.has_offsets);
  };
  if (tiles.single_row_channels) tile_scores(f.score.update(0).specialize(f.single_row), 1);
  tile_scores(f.score.update(0), rows);
  local(f.product, LoopLevel(f.score, ro));
  f.product.bound_extent(lane, key_lanes).bound_extent(tile, 1);
  f.product.vectorize(lane, lanes).unroll(lane).unroll(row);
  f.product.update()
      .reorder(lane, row, f.rd.x)
      .vectorize(lane, lanes)
      .unroll(lane)
      .unroll(row)
      .unroll(f.rd.x, 2);
  for (size_t i = 0; i < f.passes.size(); i++) {
    f.score.update(int(i) + 1).reorder(lane, row, f.passes[i]).vectorize(lane, lanes).unroll(lane);
  }

  local(f.maximum, per_block);
  f.maximum.bound_storage(row, query_block);
  int width = lanes;
  for (Func g : f.maximum_tree) {
    local(g, LoopLevel(f.maximum, row));
    g.bound_extent(x, width);
    if (width > 1) g.vectorize(x);
    if (width == lanes) g.update().reorder(x, f.rk.x, f.rk.y).vectorize(x).unroll(f.rk.x);
    width /= 2;
  }

  local(f.weight, per_block);
  f.weight.bound_storage(row, query_block).bound_extent(lane, key_lanes / numbers);
  f.weight.bound_extent(tile, key_tiles);
  f.weight.update().reorder(lane, f.tiles, row).vectorize(lane, lanes).unroll(lane);
  local(f.sum, LoopLevel(f.state, row));
  f.sum.bound_extent(x, lanes).vectorize(x);
  f.sum.update().reorder(x, f.rs.x, f.rs.y).vectorize(x).unroll(f.rs.x);

  local(f.block_output, per_block);
  f.block_output.bound_storage(row, query_block).bound_extent(d, D);
  const auto tile_output = [&, &row = row, &d = d](Stage stage, int tile_rows, int channels) {
    stage.split(d, dt, di, channels)
        .split(row, ro, ri, tile_rows, TailStrategy::RoundUp)
        .reorder(di, ri, ro, dt);
    stage.vectorize(di, lanes).unroll(di).unroll(ri);
  };
  if (tiles.single_row_channels)
    tile_output(f.block_output.specialize(f.single_row), 1, tiles.single_row_channels);
  tile_output(f.block_output, rows, tiles.channels);
  local(f.weighted, LoopLevel(f.block_output, ro));
  f.weighted.vectorize(d, lanes).unroll(d).unroll(row);
  Stage update = f.weighted.update();
  if (machine.pairs == 2 && !f.on_dots) {
    // Keys that share words, one after the other.
    RVar half("half"), word("word");
    update.split(f.rv.x, half, word, key_lanes / 2).reorder(d, row, half, word, f.rv.y).unroll(half);
  } else {
    update.reorder(d, row, f.rv.x, f.rv.y).unroll(f.rv.x, 2);
  }
  update.vectorize(d, lanes).unroll(d).unroll(row);

  for (Func g : {f.total, f.inverse, f.row_lse}) {
    local(g, per_task);
    g.bound_storage(row, query_block);
  }
  f.total.update().atomic().vectorize(f.rx.x);
  local(f.result, per_row);
  f.result.bound_extent(d, D).vectorize(d, lanes).unroll(d);
}

}  // namespace posattn::schedules
