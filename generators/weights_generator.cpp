// The weights themselves, for callers who ask for them: the scores once more, normalised by their sum, which
// a kernel of plain keys takes from attention's logarithm of it. The only kernel whose output grows with
// queries times keys.
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
    declare_inputs();
    out.set_type(type);
    if (!is_packed()) lse_ = add_input<Buffer<>>("lse", Float(32), 3);  // (query, head, batch)
  }

  void generate() {
    const schedules::Machine machine = schedules::machine(get_target());
    // On a GPU a thread has one key.
    const KeyTiling tiling =
        is_packed() ? KeyTiling{machine.key_lanes, key_block / machine.key_lanes} : KeyTiling{1, 1};

    // The algorithm.
    set_rows_are_queries();
    const Expr last_d = is_packed() ? min(q.dim(0).extent(), keys_->dim(1).extent() * packing().numbers())
                                    : q.dim(0).extent();
    rd = RDom(0, last_d, "rd");
    product(lane, tile, row, block, row_block, head, batch) = 0.f;
    const Expr q_value = load_float(q(rd, query_of(row), head_of(row, head), batch), get_target());
    const auto stored = [&](const Expr &e) {
      return stored_key(e, tiling.key(lane, tile, block), kv_head_of(head), batch);
    };
    const Expr k_value =
        is_packed() ? packing().key(*keys_, lane, rd, block * tiling.tiles + tile, kv_head_of(head), batch)
                    : element(stored, rd);
    const FuncRef p = product(lane, tile, row, block, row_block, head, batch);
    // Scores are computed twice, for the sums and for the weights, and must come out the same: where products
    // are not fused with sums, fast math would round them in one order here and in another there.
    product(lane, tile, row, block, row_block, head, batch) =
        get_target().has_feature(Target::FMA)
            ? p + q_value * k_value
            : strict_float_op(Internal::Call::strict_add, p,
                              strict_float_op(Internal::Call::strict_mul, q_value, k_value));
    const Expr all_tiles = (num_keys(tiling) + tiling.lanes - 1) / tiling.lanes;
    const Expr tiles_in_block = min(all_tiles - block * tiling.tiles, tiling.tiles);
    tiles = RDom(0, tiling.tiles, "tiles");
    tiles.where(tiles < tiles_in_block);
    score(lane, tile, row, block, row_block, head, batch) = undef<float>();
    score(lane, tiles, row, block, row_block, head, batch) =
        product(lane, tiles, row, block, row_block, head, batch) * scale;
    add_passes(score, tiling, tiles_in_block, tiles_in_block);

    // By lanes, each with a maximum of its own, over all keys; then across lanes.
    all_keys = RDom(0, tiling.tiles, 0, (all_tiles + tiling.tiles - 1) / tiling.tiles, "all_keys");
    all_keys.where(all_keys.y * tiling.tiles + all_keys.x < all_tiles);
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
      if (!is_packed()) {
        const Expr row_lse = (*lse_)(query_of(row), h, batch);
        return select(is_minus_infinity(row_lse), 0.f, exp_nonpositive(min(s - row_lse, 0.f)));
      }
      const Expr sum = row_sum(row, h, batch);
      return select(sum == 0.f, 0.f, exp_nonpositive(s - row_maximum(row, h, batch)) / sum);
    };
    rh = RDom(0, mean_of, "rh");
    mean(key, row, head, batch) = 0.f;
    mean(key, row, head, batch) += weight(head + rh);
    out(key, row, head, batch) =
        store_float(type, mean(key, row, head, batch) / cast<float>(mean_of), get_target());

    for (int i = 0; i < 4; i++) out.dim(i).set_min(0);
    for (int i = 0; i < (lse_ ? 3 : 0); i++) lse_->dim(i).set_min(0);
    declare_layout(tiling);
  }

  schedules::TuningSpace tuning_space() const override {
    if (get_target().has_gpu_feature()) return {};
    const int key_lanes = schedules::machine(get_target()).key_lanes;
    schedules::TuningSpace space;
    space.parameters = {{"key_block", kKeyBlock, 2 * key_lanes, 1024, key_lanes},
                        {"query_block", kQueryBlock, 1, 32}};
    space.shapes = {{"any", 0, 0, {{{"heads", 4}, {"queries", 256}}, {{"heads", 1}, {"queries", 1024}}}}};
    return space;
  }

  void schedule() {
    if (get_target().has_gpu_feature()) return schedule_cuda();
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

  // A thread has one key of one row, and loops over heads for their mean.
  void schedule_cuda() {
    Var ko("ko"), ki("ki"), ro("ro"), ri("ri"), heads("heads"), parts("parts");
    out.split(key, ko, ki, 32, TailStrategy::GuardWithIf)
        .split(row, ro, ri, query_block, TailStrategy::GuardWithIf)
        .fuse(head, batch, heads)
        .fuse(ko, heads, parts)
        .reorder(ki, ri, parts, ro)
        .gpu_threads(ki, ri)
        .gpu_blocks(parts, ro);
    mean.compute_at(out, ki);
    for (const Var &v : mean.args()) mean.bound_storage(v, 1);
    score.compute_at(mean, rh);
    product.compute_at(score, lane);
  }

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
  GeneratorInput<Buffer<>> *lse_ = nullptr;
};

}  // namespace posattn

HALIDE_REGISTER_GENERATOR(posattn::AttentionWeights, weights)
