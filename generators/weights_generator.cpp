// The weights themselves, for callers who ask for them: the scores once more, normalised by their sum. The
// only kernel whose output grows with queries times keys.
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
    if (is_packed()) return;
    // What a GPU's kernels hand on, in memory of the caller's. Of each head's rows, the maximum and the sum
    // over a part of the keys: (maximum or sum, part, query, head, batch); over all of them, that and the
    // sum's inverse: (maximum or inverse, query, head, batch).
    parts_ = add_output<Buffer<>>("parts", Float(32), 5);
    whole_ = add_output<Buffer<>>("whole", Float(32), 4);
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

    if (is_packed()) {
      sum_by_lanes(tiling, all_tiles);
    } else {
      sum_by_parts(tiling);
    }
    const auto weight = [&](const Expr &h) {
      if (!is_packed()) {
        // What rounding leaves above the maximum is not.
        const Expr exponent = -at_least((*whole_)(0, row, h, batch) - score_of(row, key, h), 0.f);
        return exp_nonpositive(exponent) * (*whole_)(1, row, h, batch);
      }
      const Expr in_block = key % tiling.keys();
      const Expr s = score(in_block % tiling.lanes, in_block / tiling.lanes, row, key / tiling.keys(),
                           row / query_block, h, batch);
      const Expr sum = row_sum(row, h, batch);
      return select(is_zero(sum), 0.f, exp_nonpositive(s - row_maximum(row, h, batch)) / sum);
    };
    rh = RDom(0, mean_of, "rh");
    mean(key, row, head, batch) = 0.f;
    mean(key, row, head, batch) += weight(head + rh);
    out(key, row, head, batch) =
        store_float(type, mean(key, row, head, batch) / cast<float>(mean_of), get_target());

    for (int i = 0; i < 4; i++) out.dim(i).set_min(0);
    for (auto *state : {parts_, whole_}) {
      for (int i = 0; state && i < state->dimensions(); i++) state->dim(i).set_min(0);
    }
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
  static constexpr int kThreads = 64;  // of a GPU's blocks

  // One more score of a softmax, whose state is a maximum and a sum.
  Tuple with_score(const FuncRef &state, const Expr &s) const {
    const Expr maximum = state[0], sum = state[1];
    const Expr decay = exp_nonpositive(select(s > maximum, maximum - s, s - maximum));
    return Tuple(max(maximum, s), select(s > maximum, sum * decay + 1.f,
                                         sum + select(is_below(s, kLowestVisible), 0.f, decay)));
  }

  // By lanes, each with a maximum of its own, over all keys; then across lanes.
  void sum_by_lanes(const KeyTiling &tiling, const Expr &all_tiles) {
    all_keys = RDom(0, tiling.tiles, 0, (all_tiles + tiling.tiles - 1) / tiling.tiles, "all_keys");
    all_keys.where(all_keys.y * tiling.tiles + all_keys.x < all_tiles);
    lane_state(lane, row, head, batch) = Tuple(kMaximumStart, 0.f);
    lane_state(lane, row, head, batch) =
        with_score(lane_state(lane, row, head, batch),
                   score(lane, all_keys.x, row, all_keys.y, row / query_block, head, batch));
    all_lanes = RDom(0, tiling.lanes, "all_lanes");
    row_maximum(row, head, batch) = kMaximumStart;
    row_maximum(row, head, batch) =
        max(row_maximum(row, head, batch), lane_state(all_lanes, row, head, batch)[0]);
    row_sum(row, head, batch) = 0.f;
    row_sum(row, head, batch) +=
        lane_state(all_lanes, row, head, batch)[1] *
        exp_nonpositive(lane_state(all_lanes, row, head, batch)[0] - row_maximum(row, head, batch));
  }

  // Of a single key, the last one where there are no more.
  Expr score_of(const Expr &at_row, const Expr &at_key, const Expr &at_head) {
    return score(0, 0, at_row, min(at_key, keys_->dim(1).extent() - 1), at_row / query_block, at_head, batch);
  }

  // By threads, each over some keys of a part; then over the threads of a part, and over the parts.
  // Attention's lse would not do in their place: under a mask of -1e9 it is rounded by more than an exponent.
  void sum_by_parts(const KeyTiling &tiling) {
    const Expr keys = num_keys(tiling);
    split_blocks.set_estimate(kThreads);  // for the caller, who counts in these
    own_keys = RDom(0, split_blocks, "own_keys");
    const Expr own_key = (part * split_blocks + own_keys) * kThreads + thread;
    own_keys.where(own_key < keys);
    thread_state(thread, row, part, head, batch) = Tuple(kMaximumStart, 0.f);
    thread_state(thread, row, part, head, batch) =
        with_score(thread_state(thread, row, part, head, batch), score_of(row, own_key, head));
    all_threads = RDom(0, kThreads, "all_threads");
    const FuncRef one = thread_state(all_threads, row, part, head, batch);
    part_maximum(row, part, head, batch) = kMaximumStart;
    part_maximum(row, part, head, batch) = max(part_maximum(row, part, head, batch), one[0]);
    part_sum(row, part, head, batch) = 0.f;
    part_sum(row, part, head, batch) +=
        one[1] * exp_nonpositive(one[0] - part_maximum(row, part, head, batch));
    (*parts_)(which, part, row, head, batch) =
        select(which == 0, part_maximum(row, part, head, batch), part_sum(row, part, head, batch));

    const Expr all_blocks = (keys + kThreads - 1) / kThreads;
    all_parts = RDom(0, (all_blocks + split_blocks - 1) / split_blocks, "all_parts");
    const auto of_part = [this](int i) -> Expr { return (*parts_)(i, all_parts, row, head, batch); };
    row_maximum(row, head, batch) = kMaximumStart;
    row_maximum(row, head, batch) = max(row_maximum(row, head, batch), of_part(0));
    row_sum(row, head, batch) = 0.f;
    row_sum(row, head, batch) += of_part(1) * exp_nonpositive(of_part(0) - row_maximum(row, head, batch));
    const Expr sum = row_sum(row, head, batch);
    (*whole_)(which, row, head, batch) =
        select(which == 0, row_maximum(row, head, batch), select(is_zero(sum), 0.f, 1.f / sum));
  }

  // A block of threads has some rows. A thread has a key at a time, whose channels it loads once for all of
  // them: loads of neighbouring keys share nothing, and cost more than all else.
  void schedule_cuda() {
    Var ro("ro"), ri("ri"), ko("ko"), ki("ki"), po("po"), pi("pi"), blocks("blocks");
    Func parts = *parts_, whole = *whole_, again = score.clone_in(thread_state),
         product_again = product.clone_in(again);
    // Of some rows, in registers.
    const auto bound_to = [&](int rows, Func g) {
      for (const Var &v : g.args()) {
        const int extent = v.same_as(row) ? rows : 1;
        g.bound_extent(v, extent).bound_storage(v, extent);
      }
    };
    const auto compute_scores = [&](Func scores, Func products, Func consumer, const RVar &loop) {
      bound_to(query_block, scores), bound_to(query_block, products);
      scores.compute_at(consumer, loop).unroll(row);
      scores.update(0).reorder(row, tiles, lane).unroll(row);
      for (size_t i = 0; i < passes_.size(); i++) {
        scores.update(int(i) + 1).reorder(row, passes_[i], lane).unroll(row);
      }
      products.compute_at(scores, lane).unroll(row);
      products.update().reorder(row, rd).unroll(row);
    };

    for (Func g : {whole, Func(out)}) g.never_partition_all();
    // Split as well: a dimension that is fused itself gets lost where several outputs are computed.
    parts.bound(which, 0, 2)
        .split(row, ro, ri, query_block, TailStrategy::GuardWithIf)
        .split(part, po, pi, 1, TailStrategy::GuardWithIf)
        .fuse(po, ro, blocks)
        .reorder(which, pi, ri, blocks, head, batch)
        .unroll(which)
        .gpu_threads(ri)
        .gpu_blocks(blocks, head, batch);
    thread_state.compute_at(parts, blocks)
        .bound_extent(thread, kThreads)
        .bound_extent(row, query_block)
        .bound_extent(part, 1)
        .bound_extent(head, 1)
        .bound_extent(batch, 1)
        .reorder(row, thread)
        .gpu_threads(thread);
    thread_state.update().reorder(row, own_keys, thread).unroll(row).gpu_threads(thread);
    compute_scores(again, product_again, thread_state, own_keys);
    for (Func g : {part_maximum, part_sum}) {
      bound_to(query_block, g.compute_at(parts, blocks).gpu_threads(row));
      g.update().gpu_threads(row);
    }

    whole.bound(which, 0, 2)
        .split(row, ro, ri, kThreads, TailStrategy::GuardWithIf)
        .reorder(which, ri, ro, head, batch)
        .unroll(which)
        .gpu_threads(ri)
        .gpu_blocks(ro, head, batch);
    for (Func g : {row_maximum, row_sum}) bound_to(1, g.compute_at(whole, ri));

    out.split(key, ko, ki, kThreads, TailStrategy::GuardWithIf)
        .split(row, ro, ri, query_block, TailStrategy::GuardWithIf)
        .fuse(ko, ro, blocks)
        .reorder(ri, ki, blocks, head, batch)
        .unroll(ri)
        .gpu_threads(ki)
        .gpu_blocks(blocks, head, batch);
    bound_to(query_block, mean.compute_at(out, ki).unroll(row));
    mean.update().reorder(row, rh).unroll(row);
    compute_scores(score, product, mean, rh);
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

  Var key{"key"}, tile{"tile"}, thread{"thread"}, part{"part"}, which{"which"};
  RDom rd, tiles, rh, all_keys, all_lanes, own_keys, all_threads, all_parts;
  Func product{"product"}, score{"score"}, lane_state{"lane_state"}, row_maximum{"row_maximum"},
      row_sum{"row_sum"}, mean{"mean"};
  Func thread_state{"thread_state"}, part_maximum{"part_maximum"}, part_sum{"part_sum"};
  GeneratorOutput<Buffer<>> *parts_ = nullptr, *whole_ = nullptr;
};

}  // namespace posattn

HALIDE_REGISTER_GENERATOR(posattn::AttentionWeights, weights)
