// The weights themselves, for callers who ask for them: the scores once more, normalised by the logarithm of
// the sum that attention left behind. The only kernel whose output grows with queries times keys.
#include "generators/scores.h"
#include "generators/storage.h"
#include "schedules/tuning_space.h"

namespace posattn {

using namespace Halide;

class AttentionWeights : public ScoreGenerator<AttentionWeights>, public schedules::Tunable {
 public:
  GeneratorParam<int> key_block{"key_block", kKeyBlock};
  GeneratorParam<int> query_block{"query_block", kQueryBlock};

  // Heads that are averaged: 1 for the weights of each head, all of them for their mean.
  Input<int> mean_of{"mean_of"};
  Output<Buffer<void, 4>> out{"out"};  // (key, query, head, batch); one head for the mean

  void configure() {
    declare_branches();
    out.set_type(type);
  }

  void generate() {
    const schedules::Machine machine = schedules::machine(get_target());
    const KeyTiling tiling{machine.key_lanes, key_block / machine.key_lanes};

    // The algorithm.
    set_rows_are_queries();
    const Expr last_d = min(q.dim(0).extent(), keys.dim(1).extent());
    rd = RDom(0, last_d, "rd");
    product(lane, tile, row, block, row_block, head, batch) = 0.f;
    const Expr q_value = load_float(q(rd, query_of(row), head_of(row, head), batch), get_target());
    const Expr k_value =
        load_float(keys(lane, rd, block * tiling.tiles + tile, kv_head_of(head), batch), get_target());
    const FuncRef p = product(lane, tile, row, block, row_block, head, batch);
    // Scores are computed twice, for the sums and for the weights, and must come out the same: where products
    // are not fused with sums, fast math would round them in one order here and in another there.
    product(lane, tile, row, block, row_block, head, batch) =
        get_target().has_feature(Target::FMA)
            ? p + q_value * k_value
            : strict_float_op(Internal::Call::strict_add, p,
                              strict_float_op(Internal::Call::strict_mul, q_value, k_value));
    const Expr tiles_in_block = min(keys.dim(2).extent() - block * tiling.tiles, tiling.tiles);
    tiles = RDom(0, tiling.tiles, "tiles");
    tiles.where(tiles < tiles_in_block);
    score(lane, tile, row, block, row_block, head, batch) = undef<float>();
    score(lane, tiles, row, block, row_block, head, batch) =
        product(lane, tiles, row, block, row_block, head, batch) * scale;
    add_passes(score, tiling, tiles_in_block, tiles_in_block);

    // By lanes, each with a maximum of its own, over all keys; then across lanes.
    all_keys = RDom(0, tiling.tiles, 0, (keys.dim(2).extent() + tiling.tiles - 1) / tiling.tiles, "all_keys");
    all_keys.where(all_keys.y * tiling.tiles + all_keys.x < keys.dim(2).extent());
    lane_state(lane, row, head, batch) = Tuple(kMaximumStart, 0.f);
    {
      const Expr maximum = lane_state(lane, row, head, batch)[0], sum = lane_state(lane, row, head, batch)[1];
      const Expr s = score(lane, all_keys.x, row, all_keys.y, row / query_block, head, batch);
      const Expr decay = exp_nonpositive(select(s > maximum, maximum - s, s - maximum));
      lane_state(lane, row, head, batch) =
          Tuple(max(maximum, s),
                select(s > maximum, sum * decay + 1.f, sum + select(s < kLowestVisible, 0.f, decay)));
    }
    all_lanes = RDom(0, tiling.lanes, "all_lanes");
    row_maximum(row, head, batch) = kMaximumStart;
    row_maximum(row, head, batch) =
        max(row_maximum(row, head, batch), lane_state(all_lanes, row, head, batch)[0]);
    row_sum(row, head, batch) = 0.f;
    row_sum(row, head, batch) +=
        lane_state(all_lanes, row, head, batch)[1] *
        exp_nonpositive(lane_state(all_lanes, row, head, batch)[0] - row_maximum(row, head, batch));
    const auto weight = [&](const Expr &h) {
      const Expr in_block = key % tiling.keys();
      const Expr s = score(in_block % tiling.lanes, in_block / tiling.lanes, row, key / tiling.keys(),
                           row / query_block, h, batch);
      const Expr sum = row_sum(row, h, batch);
      return select(sum == 0.f, 0.f, exp_nonpositive(s - row_maximum(row, h, batch)) / sum);
    };
    rh = RDom(0, mean_of, "rh");
    mean(key, row, head, batch) = 0.f;
    mean(key, row, head, batch) += weight(head + rh);
    out(key, row, head, batch) =
        store_float(type, mean(key, row, head, batch) / cast<float>(mean_of), get_target());

    for (int i = 0; i < 4; i++) out.dim(i).set_min(0);
    declare_layout(tiling);
  }

  schedules::TuningSpace tuning_space() const override {
    const int key_lanes = schedules::machine(get_target()).key_lanes;
    schedules::TuningSpace space;
    space.parameters = {{"key_block", kKeyBlock, 2 * key_lanes, 1024, key_lanes},
                        {"query_block", kQueryBlock, 1, 32}};
    space.shapes = {{"any", 0, 0, {{{"heads", 4}, {"queries", 256}}, {{"heads", 1}, {"queries", 1024}}}}};
    return space;
  }

  void schedule() {
    const int lanes = schedules::machine(get_target()).lanes,
              key_lanes = schedules::machine(get_target()).key_lanes;
    Var ko("ko"), ki("ki"), ro("ro"), ri("ri");
    out.split(key, ko, ki, key_block, TailStrategy::GuardWithIf)
        .split(row, ro, ri, query_block, TailStrategy::GuardWithIf)
        .reorder(ki, ri, ko, ro, head, batch)
        .vectorize(ki, lanes, TailStrategy::GuardWithIf)
        .parallel(ro)
        .parallel(head)
        .parallel(batch);
    for (const Var &v : {ko, ro, head, batch}) out.never_partition(v);
    mean.compute_at(out, ko)
        .store_in(MemoryType::Stack)
        .bound_storage(key, key_block)
        .bound_storage(row, query_block);
    mean.vectorize(key, lanes, TailStrategy::RoundUp);
    mean.update().reorder(key, row, rh).vectorize(key, lanes, TailStrategy::RoundUp);
    // Twice the same, for the row's sum and for the weights.
    Func again = score.clone_in(lane_state), product_again = product.clone_in(again);
    schedule_scores(score, product, mean, rh, lanes, key_lanes);

    row_sum.compute_at(out, ro);
    row_maximum.compute_at(out, ro);
    lane_state.compute_at(out, ro).vectorize(lane, lanes);
    lane_state.update().reorder(lane, all_keys.x, row, all_keys.y).vectorize(lane, lanes);
    schedule_scores(again, product_again, lane_state, all_keys.y, lanes, key_lanes);
  }

 private:
  static constexpr int kKeyBlock = 256, kQueryBlock = 8;

  // A block of scores, computed at each iteration of `loop`.
  void schedule_scores(Func scores, Func products, Func consumer, const RVar &loop, int lanes,
                       int key_lanes) {
    const auto one = [&](Func f) -> Func {
      return f.bound_extent(block, 1).bound_extent(row_block, 1).bound_extent(head, 1).bound_extent(batch, 1);
    };
    one(scores)
        .compute_at(consumer, loop)
        .store_in(MemoryType::Stack)
        .bound_extent(lane, key_lanes)
        .bound_extent(tile, key_block / key_lanes)
        .bound_storage(row, query_block);
    scores.update(0).reorder(lane, row, tiles).vectorize(lane, lanes).unroll(lane);
    for (size_t i = 0; i < passes_.size(); i++) {
      scores.update(int(i) + 1).reorder(lane, row, passes_[i]).vectorize(lane, lanes).unroll(lane);
    }
    one(products)
        .compute_at(scores, row)
        .store_in(MemoryType::Stack)
        .bound_extent(lane, key_lanes)
        .bound_extent(tile, 1);
    products.vectorize(lane, lanes).unroll(lane);
    products.update().reorder(lane, rd).vectorize(lane, lanes).unroll(lane).unroll(rd, 4);
  }

  Var key{"key"}, tile{"tile"};
  RDom rd, tiles, rh, all_keys, all_lanes;
  Func product{"product"}, score{"score"}, lane_state{"lane_state"}, row_maximum{"row_maximum"},
      row_sum{"row_sum"}, mean{"mean"};
};

}  // namespace posattn

HALIDE_REGISTER_GENERATOR(posattn::AttentionWeights, weights)
