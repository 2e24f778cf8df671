// Attention on tensor cores, written for one thread and the fragments of the matrix products that it holds:
// scores of a block of keys, their maximum and sum with those of the three neighbours that share its rows,
// weights, weighted values; then the next block. lowering/ has the products and copies of each generation of
// cards.
#include <memory>

#include "generators/fast_math.h"
#include "generators/scores.h"
#include "lowering/ampere.h"
#include "lowering/ampere_float.h"
#include "lowering/hopper.h"
#include "lowering/hopper_float.h"
#include "lowering/ptx_kernel.h"
#include "schedules/cuda_tensor.h"

namespace posattn {

using namespace Halide;

class AttentionTensor : public ScoreGenerator<AttentionTensor>, public PtxKernel, public schedules::Tunable {
 public:
  GeneratorParam<int> head_dim{"head_dim", 64};
  GeneratorParam<std::string> card{"card", "sm90a"};
  // Of few rows: the keys are split over blocks of threads, and outputs are partial, in float32. Rows are as
  // in the attention kernel, of all heads of a key head (row_heads is group), and out and lse have (row, one
  // of the splits of such heads) in place of (query, head).
  GeneratorParam<bool> decode{"decode", false};
  // Which terms of a score are compiled in. all; plain: none, and the scale must be positive; offsets: the
  // tabulated bias; dense: the dense bias; dense_16: one of the type of the queries, by a tensor map.
  GeneratorParam<std::string> compiled_terms{"compiled_terms", "all"};
  // See TensorTiles. -1: the schedule's own choice.
  GeneratorParam<int> key_block{"key_block", -1};
  GeneratorParam<int> warpgroups{"warpgroups", -1};
  GeneratorParam<int> row_tiles{"row_tiles", -1};
  GeneratorParam<int> stages{"stages", -1};
  GeneratorParam<int> copy_warpgroup{"copy_warpgroup", -1};
  GeneratorParam<int> overlap{"overlap", -1};
  GeneratorParam<int> early_value_wait{"early_value_wait", -1};
  GeneratorParam<int> shared_queries{"shared_queries", -1};
  GeneratorParam<int> blocks_per_sm{"blocks_per_sm", -1};
  GeneratorParam<int> ahead{"ahead", -1};
  GeneratorParam<int> in_turns{"in_turns", -1};
  GeneratorParam<int> bias_places{"bias_places", -1};

  // Blocks of threads that share the tiles; as many as there are tiles at most.
  Input<int> blocks{"blocks"};
  // Stored to.
  Input<Buffer<void, 4>> out{"out"};   // (d, query, head, batch)
  Input<Buffer<float, 3>> lse{"lse"};  // (query, head, batch)

  Output<Func> done{"done", Int(32), 5};

  void configure() {
    declare_inputs();
    out.set_type(decode ? Float(32) : Type(type));
    stored_to = {"out", "lse"};
    if (starts_early()) add_input<int>("starts_early");  // says so to whoever launches it
    // Tensor maps: (channel, token, head, batch), 64 channels and `estimate` tokens a box, swizzled by 128
    // bytes.
    if (is_hopper()) {
      for (const char *name : {"q_map", "k_map", "v_map"}) maps_.push_back(add_input<uint64_t>(name));
    }
    if (has_bias_tiles()) {
      maps_.push_back(add_input<uint64_t>("dense_map"));
      // 1, or 0 where all heads, or batches, have the same.
      for (const char *name : {"dense_of_head", "dense_of_batch"}) shared_.push_back(add_input<int>(name));
    }
  }

  void generate() {
    const schedules::TensorScores scores = compiled_scores();
    is_plain_ = scores == schedules::TensorScores::plain;
    // One copy of the code for every block of keys where the terms make it long, or where fetching the code
    // takes as long as running it.
    is_single_loop_ = std::string(compiled_terms) == "all" || decode;
    TensorTiles chosen = decode       ? schedules::tensor_decode_tiles(head_dim, Type(type).bytes())
                         : is_float() ? schedules::tensor_float_tiles(is_hopper_float(), head_dim, scores)
                                      : schedules::tensor_tiles(is_hopper(), head_dim, scores);
    const auto set = [](auto &tile, int value) { tile = value >= 0 ? value : tile; };
    set(chosen.keys, key_block), set(chosen.warpgroups, warpgroups), set(chosen.row_tiles, row_tiles);
    set(chosen.stages, stages), set(chosen.shared_queries, shared_queries);
    set(chosen.copy_warpgroup, copy_warpgroup), set(chosen.overlap, overlap);
    set(chosen.early_value_wait, early_value_wait);
    set(chosen.blocks_per_sm, blocks_per_sm), set(chosen.ahead, ahead);
    set(chosen.in_turns, in_turns), set(chosen.bias_places, bias_places);
    chosen.starts_early = starts_early();
    tiles_ = std::make_unique<TensorTiles>(chosen);
    if (is_hopper()) {
      backend_ = std::make_unique<Hopper>(ptx, *tiles_, Type(type).is_bfloat());
    } else if (is_hopper_float()) {
      backend_ = std::make_unique<HopperFloat>(ptx, *tiles_);
    } else if (is_float()) {
      backend_ = std::make_unique<AmpereFloat>(ptx, *tiles_);
    } else {
      backend_ = std::make_unique<Ampere>(ptx, *tiles_, Type(type).is_bfloat());
    }
    const TensorTiles &t = *tiles_;
    const PtxOps &ops = backend_->ops;
    const int R = t.thread_rows();
    ptx.declare_register(".f32 %m<" + number(R) + ">");
    ptx.declare_register(".f32 %l<" + number(R) + ">");
    ptx.declare_register(".b32 %base<1>");  // steps of all tasks before
    const std::string threads =
        "\t.maxntid " + number(t.group_threads()) + ", " + number(t.groups()) + ", 1\n";
    const bool for_hopper = std::string(card) == "sm90a";
    ptx_head = {for_hopper ? "8.4" : "7.0", for_hopper ? "sm_90a" : "sm_80",
                threads + "\t.minnctapersm " + number(t.blocks_per_sm) + "\n"};
    assemble_for = ptx_head.target;
    embeds_text = !for_hopper;
    // Blocks of what merges the splits may come and wait as soon as all of these are there.
    if (t.starts_early) ptx.at_entry("\tgriddepcontrol.launch_dependents;\n");
    split_blocks.set_estimate(t.keys);
    declare_layout({1, 1});
    for (int i = 0; i < 4; i++) out.dim(i).set_min(0);
    for (int i = 0; i < 3; i++) lse.dim(i).set_min(0);
    lse.dim(0).set_stride(Expr());
    tanh_ = [&ops](const Expr &x) { return ops.tanh(x); };
    at_least_ = [&ops](const Expr &x, float least) { return ops.at_least(x, least); };
    blocks.set_estimate(t.blocks_per_sm);
    offsets.dim(0).set_min(0), offsets.dim(1).set_min(0);
    for (int i = 0; i < 4; i++) dense_bias.dim(i).set_min(0);
    dense_bias.dim(0).set_stride(Expr());
    for (size_t i = 0; i < maps_.size(); i++) {
      const bool is_of_keys = i == 1 || i == 2;
      maps_[i]->set_estimate(static_cast<uint64_t>(is_of_keys ? t.keys : t.rows()));
    }

    // Blocks of threads share out the tiles among themselves. A kernel without a copy warpgroup has a block
    // for each tile.
    const Expr queries = q.dim(1).extent(),
               heads = decode ? q.dim(2).extent() / row_heads : q.dim(2).extent();
    if (!decode) set_rows_are_queries();
    // One tile has all rows, for each split.
    tile_count_ = decode ? out.dim(2).extent() / heads : (queries + t.rows() - 1) / t.rows();
    const Expr items = tile_count_ * heads * q.dim(3).extent();
    block_count_ = t.copy_warpgroup ? max(min(blocks, items), 1) : tile_count_;
    Func share("share");
    if (t.copy_warpgroup) {
      share(of_thread()) = share_out();
      share_ = {share(of_thread())[0], share(of_thread())[1]};
    } else {
      share(of_thread()) = Expr(1);
      share_.tiles = share(of_thread());
    }

    // The algorithm.
    Func setup("setup"), rounds("rounds"), enter("enter"), plan("plan"), length("length"), start("start"),
        first("first"), loop("loop"), last("last");
    const Expr is_set_up = backend_->setup({task_of(0), task_of(1)}, ops.fill("%base", 1, 0.f, 0));
    setup(of_thread()) = t.ahead ? backend_->start_scores(0, 0, warpgroup, is_set_up) : is_set_up;

    // Tasks that are made ahead of time are read where they were posted: making them takes divisions.
    const Expr entered = setup(of_thread()) + round_;
    enter(of_round()) = t.copy_warpgroup ? backend_->enter(round_, entered) : entered;
    TensorTask task = task_of(round_);
    if (t.copy_warpgroup) backend_->read_posted(task, enter(of_round()));
    // Behind an instruction: from the bounds of these two Halide would make more conditions in the loops over
    // blocks of keys, which then cost up to a tenth of the time.
    for (Expr *x : {&task.steps, &task.masked}) *x = ops.after(*x, enter(of_round()));
    const Expr steps_before = ptx.read(Int(32), "\tmov.b32 $r, %base0;", {enter(of_round())});
    plan(of_round()) = Tuple(task.steps, task.masked, task.last_block, task.first_block, task.right,
                             steps_before, task.first_row, task.head, task.kv_head, task.batch);
    const FuncRef planned = plan(of_round());
    task.steps = planned[0], task.masked = planned[1];
    task.last_block = planned[2], task.first_block = planned[3], task.right = planned[4];
    task.steps_before = t.copy_warpgroup ? Expr(planned[5]) : Expr(0);
    if (t.copy_warpgroup)
      task.first_row = planned[6], task.head = planned[7], task.kv_head = planned[8], task.batch = planned[9];
    length(of_round()) = visible_in(task.batch);
    visible_keys_ = length(of_round());
    task_ = task;
    {
      Expr token = ops.fill("%m", R, start_of_maximum(), enter(of_round()));
      token = ops.fill("%l", R, 0.f, token);
      start(of_round()) = backend_->begin(task, token);
    }
    const Expr most_steps = blocks_up_to(keys_->dim(1).extent()) + 1;
    if (is_single_loop_) {
      f.masked_steps = RDom(0, most_steps, "masked_steps");
      f.masked_steps.where(f.masked_steps < task.steps);
      Func every = key_block_of("", {step, task.block(step), false}, Kind::masked, start, f.masked);
      loop(of_round()) = start(of_round());
      loop(of_round()) = loop(of_round()) + every(at(f.masked_steps));
    } else {
      first(of_round()) =
          key_block_of("_first", {Expr(0), task.last_block, true}, Kind::first, start, f.first)(at(0));
      f.of_round.push_back(first);
      f.masked_steps = RDom(1, most_steps, "masked_steps");
      f.masked_steps.where(f.masked_steps < task.masked);
      f.inner_steps = RDom(1, most_steps, "inner_steps");
      f.inner_steps.where(f.inner_steps >= task.masked && f.inner_steps < task.steps);
      Func masked =
          key_block_of("_masked", {step, task.masked_block(step), false}, Kind::masked, first, f.masked);
      Func inner = key_block_of("_inner", {step, task.inner_block(step), false}, Kind::inner, first, f.inner);
      loop(of_round()) = first(of_round());
      loop(of_round()) = loop(of_round()) + masked(at(f.masked_steps));
      loop(of_round()) = loop(of_round()) + inner(at(f.inner_steps));
    }
    // A task two rounds ahead, while the last product runs.
    Expr token = backend_->finish(task, loop(of_round()) + 1);
    if (t.copy_warpgroup) token = backend_->post(task_of(round_ + TensorBackend::kTasksAhead), token);
    if (t.ahead) {
      token = backend_->start_scores(round_ + 1, task.steps_before + task.steps, warpgroup, token);
    }
    last(of_round()) = backend_->wait_for_outputs(task, token);

    Func sum("sum"), result("result");
    std::vector<Expr> sums;
    sums.reserve(static_cast<size_t>(R));
    for (int r = 0; r < R; r++) sums.push_back(over_row(ops.get("%l" + number(r), last(of_round())), false));
    sum(of_round()) = Tuple(sums);
    result(of_round()) =
        ptx.effect("\tadd.u32 %base0, %base0, $0;", {task.steps, store(sum(of_round()), last(of_round()))});

    f.round = t.copy_warpgroup ? RDom(0, items + 1, "round") : RDom(0, 1, "round");
    rounds(of_thread()) = setup(of_thread());
    rounds(of_thread()) =
        rounds(of_thread()) + result(thread, warpgroup, f.round, block_, block_y_, block_z_);
    done(of_thread()) = backend_->leave(rounds(of_thread()));

    f.done = done;
    f.rounds = rounds;
    f.loop = loop;
    f.of_thread = {share, setup};
    for (const Func &g : {enter, plan, length, start, last, sum, result}) f.of_round.push_back(g);
    f.vars = {i, thread, warpgroup, block_, block_y_, block_z_};
    Func(done)
        .bound(block_, 0, block_count_)
        .bound(block_y_, 0, t.copy_warpgroup ? Expr(1) : heads)
        .bound(block_z_, 0, t.copy_warpgroup ? Expr(1) : Expr(q.dim(3).extent()));
  }

  schedules::TuningSpace tuning_space() const override {
    if (decode || is_float()) return {};
    return schedules::tensor_tuning_space(is_hopper(), head_dim, compiled_scores());
  }

  void schedule() {
    schedules::schedule_tensor(f, *tiles_);
    get_pipeline().add_custom_lowering_pass(
        new DropTokens(f.done.name(), f.loop.name(), backend_->shared_bytes()));
  }

 private:
  enum class Kind { first, masked, inner };

  // Whether its own instructions are used: for decoding, those of all cards are as fast as memory is.
  bool is_hopper() const { return std::string(card) == "sm90a" && !decode && !is_float(); }
  bool starts_early() const { return decode && std::string(card) == "sm90a"; }
  bool is_float() const { return Type(type).bits() == 32; }
  bool is_hopper_float() const { return std::string(card) == "sm90a" && !decode && is_float(); }
  bool has_bias_tiles() const { return std::string(compiled_terms) == "dense_16"; }
  schedules::TensorScores compiled_scores() const {
    using schedules::TensorScores;
    const std::string terms = compiled_terms;
    if (terms == "plain") return TensorScores::plain;
    if (terms == "offsets") return TensorScores::table;
    if (terms == "dense") return TensorScores::dense;
    if (terms == "dense_16") return TensorScores::dense_tiles;
    return split_branches(branches).empty() ? TensorScores::full : TensorScores::branches;
  }

  std::vector<Var> of_thread() const { return {thread, warpgroup, block_, block_y_, block_z_}; }
  std::vector<Var> of_round() const { return {thread, warpgroup, round_, block_, block_y_, block_z_}; }
  std::vector<Expr> at(const Expr &s) const {
    return {thread, warpgroup, s, round_, block_, block_y_, block_z_};
  }
  std::vector<Expr> at(const Expr &element, const Expr &s) const {
    return {element, thread, warpgroup, s, round_, block_, block_y_, block_z_};
  }
  std::vector<Var> vars_at() const { return {thread, warpgroup, step, round_, block_, block_y_, block_z_}; }
  std::vector<Var> fragment_vars() const {
    return {i, thread, warpgroup, step, round_, block_, block_y_, block_z_};
  }

  Expr blocks_up_to(const Expr &key) const { return (key + tiles_->keys - 1) / tiles_->keys; }
  // For Halide, which cannot know.
  static Expr bounded(const Expr &index, const Expr &extent) {
    return unsafe_promise_clamped(index, 0, extent - 1);
  }

  // Divides numbers that are not negative.
  static Expr quotient(const Expr &a, const Expr &b) {
    return cast<int>(cast<uint32_t>(a) / cast<uint32_t>(max(b, 1)));
  }

  // How blocks of threads share out the tiles of all pairs of a head and a batch. Causal tiles differ in
  // length, so a long one of one pair comes with a short one of the next: then all blocks have as much to do,
  // and those that work at the same time read the same keys. If the number of pairs is odd, the last one's
  // tiles come last, from the longest on. Tiles that are alike come one by one.
  struct Share {
    Expr tiles;   // of this block of threads
    Expr paired;  // of those, in twos
  };
  Expr turn(const Expr &t) const {
    return t * block_count_ + select((t & 1) == 0, block_, block_count_ - 1 - block_);
  }
  Expr differ() const { return *window_right_ < keys_->dim(1).extent(); }
  Expr pairs() const { return q.dim(2).extent() * q.dim(3).extent(); }
  Tuple share_out() const {
    // Of so many items, taken in turns.
    const auto part_of = [&](const Expr &items) {
      const Expr turns = quotient(items, block_count_);
      return turns + select(turn(turns) < items, 1, 0);
    };
    const Expr twos = select(differ(), pairs() / 2, 0);
    const Expr paired = 2 * part_of(twos * tile_count_);
    return Tuple(paired + part_of((pairs() - 2 * twos) * tile_count_), paired);
  }
  struct Place {
    Expr tile, head, batch;  // tiles count from the last rows on
  };
  // That of the block of threads' r-th tile.
  Place shared_out(const Expr &r) const {
    const Expr heads = q.dim(2).extent(), batches = q.dim(3).extent();
    const Expr is_paired = r < share_.paired, second = select(is_paired, r & 1, 0);
    const Expr item = turn(select(is_paired, r / 2, r - share_.paired));
    // Batches may share a dense bias, so that the same tile of all of them comes together, if tiles are
    // alike.
    const Expr together = has_bias_tiles() ? select(differ(), 1, batches) : Expr(1);
    const Expr of_tile = quotient(item, together), place = item - of_tile * together;
    const Expr high = quotient(of_tile, tile_count_), low = of_tile - high * tile_count_;
    const Expr single = select(differ(), pairs() - 1, 0) + high * together + place;
    const Expr pair = select(is_paired, 2 * high + second, single);
    const Expr major = quotient(pair, has_bias_tiles() ? batches : heads);
    const Expr minor = pair - major * (has_bias_tiles() ? batches : heads);
    return {select(second == 1, tile_count_ - 1 - low, low), has_bias_tiles() ? major : minor,
            has_bias_tiles() ? minor : major};
  }

  // The block of threads' r-th tile: where it lies, and which blocks of keys its rows see.
  TensorTask task_of(const Expr &r) {
    const TensorTiles &t = *tiles_;
    const Expr heads = q.dim(2).extent(), queries = q.dim(1).extent();
    TensorTask task;
    task.round = r;
    if (decode) {
      task.first_row = 0;
      task.head = block_y_, task.batch = block_z_;
    } else if (t.copy_warpgroup) {
      const auto [tile, head, batch] = shared_out(r);
      task.first_row = (tile_count_ - 1 - tile) * t.rows();
      task.head = head, task.batch = batch;
    } else {
      task.first_row = (tile_count_ - 1 - block_) * t.rows();
      task.head = block_y_, task.batch = block_z_;
    }
    task.kv_head = decode ? task.head : task.head / group;
    task.q = source(q, 0), task.k = source(*keys_, 1), task.v = source(*values_, 2);
    if (has_bias_tiles()) {
      task.bias_map = *maps_[3], task.bias_of_head = *shared_[0], task.bias_of_batch = *shared_[1];
    }
    const Expr visible = visible_in(decode ? task.batch : min(task.batch, q.dim(3).extent() - 1));
    // What is behind a batch's length may be anything.
    if (decode || is_float()) task.k.tokens = task.v.tokens = visible;
    task.is_stream = decode;
    if (decode) {
      task.row_addresses = [this, task](const Expr &token) { return row_addresses(task, token); };
    }
    const Expr first_query = task.first_row;
    const Expr last_query = decode ? queries - 1 : min(task.first_row + t.rows(), queries) - 1;
    const Expr begin = max(first_query + *diagonal_ - *window_left_, 0);
    const Expr end = min(visible, last_query + *diagonal_ + *window_right_ + 1);
    const Expr inner_begin = max(last_query + *diagonal_ - *window_left_, 0);
    const Expr inner_end = max(min(visible, first_query + *diagonal_ + *window_right_ + 1), 0);
    task.first_block = begin / t.keys;
    Expr end_block = blocks_up_to(max(end, 0));
    if (decode) {
      const Expr end_of_split = (block_ + 1) * split_blocks;
      task.first_block = min(max(task.first_block, block_ * split_blocks), end_of_split - 1);
      end_block = min(end_block, end_of_split);
    }
    // Where there is nothing to see, one block is all hidden.
    end_block = max(end_block, task.first_block + 1);
    task.last_block = end_block - 1;
    // The first step is masked always.
    const Expr steps = end_block - task.first_block;
    task.right = clamp(end_block - inner_end / t.keys, 1, steps);
    task.masked = min(task.right + clamp(blocks_up_to(inner_begin) - task.first_block, 0, steps), steps);
    task.steps = select(r < share_.tiles, steps, 0);
    return task;
  }

  // Of the rows of queries that a thread copies; nothing of it is done before the token is there.
  std::vector<Expr> row_addresses(const TensorTask &task, const Expr &token) {
    const int step = tiles_->group_threads() / 8;
    const Expr first = backend_->ops.after(thread, token) / 8;
    const Expr all_rows = cast<int64_t>(q.dim(3).stride()) * task.batch +
                          cast<int64_t>(q.dim(2).stride()) * (task.head * row_heads);
    std::vector<Expr> all;
    for (int i = 0; i < tiles_->rows() / step; i++) {
      const Expr row = min(first + i * step, rows() - 1), query = query_of_row(row);
      const Expr place = all_rows + cast<int64_t>(q.dim(2).stride()) * (row - query * row_heads) +
                         cast<int64_t>(q.dim(1).stride()) * query;
      all.push_back(device_address(q) + cast<uint64_t>(place * Type(type).bytes()));
    }
    return all;
  }
  // Of one of a decoding kernel's few rows. Unsigned numbers take fewer instructions.
  Expr query_of_row(const Expr &row) const {
    return cast<int>(cast<uint32_t>(row) / cast<uint32_t>(row_heads));
  }
  // length_of() of a decoding kernel, which starts with what comes of it, without a load where none is given.
  Expr visible_in(const Expr &item) {
    if (!decode) return length_of(bounded(item, q.dim(3).extent()));
    using Internal::Variable;
    const Expr keys = keys_->dim(1).extent();
    const Parameter lengths = input_parameter("lengths")[0], given = input_parameter("has_lengths")[0];
    const Expr stride = Variable::make(Int(32), lengths.name() + ".stride.0", lengths);
    const Expr address = device_address(lengths) + cast<uint64_t>(cast<int64_t>(stride) * item * 4);
    const Expr length =
        ptx.pure(Int(32),
                 "\t{ .reg .pred p; .reg .b64 at; setp.eq.s32 p, $0, 0; mov.b32 $r, $2; @p bra NONE$u;\n\t" +
                     std::string(starts_early() ? "griddepcontrol.wait; " : "") +
                     "cvta.to.global.u64 at, $1; ld.global.b32 $r, [at]; NONE$u: }",
                 {cast<int>(Variable::make(Bool(), given.name(), given)), address, keys});
    return clamp(length, 0, keys);
  }

  // By address and by map: a backend takes what it needs.
  template <typename I>
  TensorSource source(I &buffer, int map) {
    return {device_address(buffer),
            buffer.dim(1).stride(),
            buffer.dim(2).stride(),
            buffer.dim(3).stride(),
            buffer.dim(1).extent(),
            buffer.dim(0).extent(),
            is_hopper() ? Expr(*maps_[map]) : Expr()};
  }

  // Scores stay products until the exponential where nothing is added to them.
  Expr to_log2() const { return is_plain_ ? scale * kLog2E : Expr(kLog2E); }
  // A plain product is scaled only afterwards, which must not overflow.
  float hidden() const { return is_plain_ ? -1e30f : kHidden; }
  float start_of_maximum() const { return is_plain_ ? -1e20f : kMaximumStart * kLog2E; }

  // The r-th row of a thread, and the key of an element of its fragment.
  Expr row_at(int r) const {
    return task_.first_row + (warpgroup * 4 + thread / 32) * (16 * tiles_->row_tiles) + r / 2 * 16 +
           thread % 32 / 4 + r % 2 * 8;
  }
  Expr query_at(int r) const { return decode ? query_of_row(min(row_at(r), rows() - 1)) : row_at(r); }
  Expr head_at(int r) const {
    if (!decode) return task_.head;
    return task_.head * row_heads + min(row_at(r), rows() - 1) - query_at(r) * row_heads;
  }
  Expr row_of(const Expr &element) const { return element / (tiles_->keys / 2) * 2 + element / 2 % 2; }
  Expr column(const Expr &element) const { return element % (tiles_->keys / 2) / 4 * 8 + element % 2; }
  Expr mux_row(const Expr &element, const std::vector<Expr> &of_rows) const {
    Expr value = of_rows[0];
    for (size_t r = 1; r < of_rows.size(); r++)
      value = select(row_of(element) == static_cast<int>(r), of_rows[r], value);
    return value;
  }

  // Over the four threads that share a row.
  Expr over_row(Expr value, bool maximum) const {
    const PtxOps &ops = backend_->ops;
    for (int distance : {1, 2}) {
      const Expr other = ops.shuffle_xor(value, distance);
      value = maximum ? ops.max(value, other) : value + other;
    }
    return value;
  }

  // Over a thread's fragment, by rows.
  std::vector<Expr> fold(const Func &fragment, const std::function<Expr(Expr, Expr)> &combine) const {
    std::vector<Expr> rows(tiles_->thread_rows());
    for (int x = 0; x < tiles_->scores(); x++) {
      Expr &so_far = rows[tiles_->row_of_score(x)];
      const Expr value = fragment(at(x, step));
      so_far = so_far.defined() ? combine(so_far, value) : value;
    }
    return rows;
  }

  // The tabulated bias of a score. A row further down is a column further left, so rows 8 apart share all
  // values but those of 8 columns: the compiler sees that, as the loads are pure and at constant distances
  // from one address. (Loading them before the products are waited for was slower: 526 against 545 TFLOP/s.)
  Expr tabulated_bias(const Expr &block) {
    const Expr first = block * tiles_->keys + thread % 4 * 2 - row_at(0) + offset_zero;
    const Expr place = cast<int64_t>(offsets.dim(1).stride()) * task_.head + first;
    const Expr address = ptx.pure(UInt(64), "\tcvta.to.global.u64 $r, $0;",
                                  {device_address(offsets) + cast<uint64_t>(place * 4)});
    const Expr distance = column(i) - 8 * row_of(i);
    return ptx.pure(Float(32), "\tld.global.nc.f32 $r, [$0+$1];", {address, distance * 4});
  }

  // The scores of a block with all that is done to scaled products, for compiled_terms other than plain and
  // offsets. Each term is a stage of its own, so that what is not asked for is one jump. (As updates of one
  // stage they would keep Halide from bounding the loop over blocks.)
  Func with_terms(Func logit, const std::string &suffix, const Expr &block, Kind kind,
                  schedules::TensorBlockFuncs &funcs) {
    const Expr queries = q.dim(1).extent(), heads = q.dim(2).extent();
    std::vector<Expr> queries_of_rows, heads_of_rows;
    for (int r = 0; r < tiles_->thread_rows(); r++) {
      queries_of_rows.push_back(min(query_at(r), queries - 1));
      heads_of_rows.push_back(head_at(r));
    }
    const ScoreRow at_row{bounded(mux_row(i, queries_of_rows), queries),
                          bounded(mux_row(i, heads_of_rows), heads), bounded(task_.batch, q.dim(3).extent())};
    const Expr keys = keys_->dim(1).extent(), own = block * tiles_->keys + thread % 4 * 2 + column(i);
    // Blocks that are not masked lie within the keys.
    const Expr key = bounded(kind == Kind::inner ? own : min(own, keys - 1), keys);
    const bool is_dense = std::string(compiled_terms) == "dense";
    for (const Term &term : terms(at_row)) {
      if (is_dense && std::string(term.name) != "dense") continue;
      const Expr before = logit(at(i, step)), after = term.apply(before, key);
      Func next("with_" + std::string(term.name) + suffix);
      if (decode) {
        // Rows of up to 8 heads of a group are the first half of a tile; the others' terms are not computed.
        const Expr is_half = rows() <= 8, is_upper = row_of(i) == 1;
        next(fragment_vars()) = select(term.condition && !(is_half && is_upper), after, before);
        next.specialize(term.condition && is_half).unroll(i);
        next.specialize(term.condition).unroll(i);
      } else if (is_dense || Internal::is_const_one(term.condition)) {
        next(fragment_vars()) = after;
      } else {
        next(fragment_vars()) = select(term.condition, after, before);
        next.specialize(term.condition).unroll(i);
      }
      funcs.of_fragment.push_back(next);
      logit = next;
    }
    return logit;
  }

  // Overwrites the products of the last block that a row may not see, where there are such: before the first
  // of its keys, or behind the last.
  Expr hide_products(const std::vector<Expr> &low, const std::vector<Expr> &high, const Expr &token) const {
    const TensorTiles &t = *tiles_;
    const Expr queries = q.dim(1).extent(), last_row = min(task_.first_row + t.rows(), queries) - 1;
    const Expr first_query = task_.first_row, last_query = decode ? queries - 1 : last_row;
    const Expr first_key = task_.last_block * t.keys, end = first_key + t.keys;
    const Expr hides_first = first_key < last_query + *diagonal_ - *window_left_;
    const Expr hides_last = end > min(visible_keys_, first_query + *diagonal_ + *window_right_ + 1);
    std::vector<Expr> arguments = {cast<int>(hides_first), cast<int>(hides_last)};
    std::string text = "\t{ .reg .pred p;\n";
    for (const bool is_first : {true, false}) {
      const std::string seen = is_first ? "SEEN$u_0" : "SEEN$u_1";
      text += std::string("\tsetp.eq.s32 p, ") + (is_first ? "$0" : "$1") + ", 0; @p bra " + seen + ";\n";
      const int at = static_cast<int>(arguments.size());
      for (const Expr &x : is_first ? low : high) arguments.push_back(x);
      for (int x = 0; x < t.scores(); x++) {
        const std::string score = "%S" + number(x), column = number(x % (t.keys / 2) / 4 * 8 + x % 2);
        text += std::string("\tsetp.") + (is_first ? "le" : "ge") + ".s32 p, $" +
                number(at + t.row_of_score(x)) + ", " + column + "; selp.b32 " + score + ", " + score + ", " +
                float_literal(hidden()) + ", p;\n";
      }
      text += "\t" + seen + ":\n";
    }
    arguments.push_back(token);
    return backend_->ops.ptx.effect(text + "\t}\n", arguments);
  }

  // One block of keys: the scores, their weights, and what they do to the state.
  Func key_block_of(const std::string &suffix, const TensorBackend::Step &where, Kind kind,
                    const Func &before, schedules::TensorBlockFuncs &funcs) {
    const PtxOps &ops = backend_->ops;
    const TensorTiles &t = *tiles_;
    const int R = t.thread_rows();
    Func ready("ready" + suffix), score("score" + suffix), maximum("maximum" + suffix),
        reference("reference" + suffix);
    Func decay("decay" + suffix), weight("weight" + suffix), sum("sum" + suffix), state("state" + suffix);
    Func end("end" + suffix);
    const auto in_log2 = to_log2();

    const Expr block_of_keys = where.block;
    const bool has_table = std::string(compiled_terms) == "offsets";
    ready(vars_at()) = backend_->scores(task_, where, warpgroup, before(of_round()));
    std::vector<Expr> low, high;  // of a row's visible keys, as columns of this thread
    if (kind != Kind::inner) {
      const Expr first_key = block_of_keys * t.keys + thread % 4 * 2;
      for (int r = 0; r < R; r++) {
        low.push_back(query_at(r) + *diagonal_ - *window_left_ - first_key);
        high.push_back(min(query_at(r) + *diagonal_ + *window_right_, visible_keys_ - 1) - first_key);
      }
    }
    // A short row has few other blocks, so the first is looked at before it is masked.
    const bool hides_products = kind == Kind::first && is_plain_;
    Func scored("scored" + suffix);
    const Expr products = ready(at(step));
    scored(vars_at()) = hides_products     ? hide_products(low, high, products)
                        : has_bias_tiles() ? backend_->load_bias(task_, where, products)
                                           : products;
    Expr value = ops.get("%S", i, scored(at(step)));
    if (has_table) {
      value = ops.fma(value, scale, tabulated_bias(block_of_keys));
    } else if (has_bias_tiles()) {
      value = ops.fma(value, scale, backend_->bias(i, scored(at(step))));
    } else if (!is_plain_) {
      Func logit("logit" + suffix);
      logit(fragment_vars()) = value * scale;
      funcs.of_fragment.push_back(logit);
      value = with_terms(logit, suffix, block_of_keys, kind, funcs)(at(i, step));
    }
    if (kind != Kind::inner && !hides_products) {
      value = ops.keep_within(column(i), mux_row(i, low), mux_row(i, high), value, hidden());
    }
    score(fragment_vars()) = value;

    std::vector<Expr> rows = fold(score, [&](Expr a, Expr b) { return ops.max(a, b); });
    // Scores may be low finite masks alone, whose products are rounded by more than any exponent: then the
    // reference is rounded down, and what is above it by that much is as good as there.
    const bool has_masks_in_scores = !is_plain_ && !has_table;
    for (Expr &x : rows) {
      x = over_row(x, true);
      x = has_masks_in_scores ? ops.multiply_down(x, in_log2) : x * in_log2;
    }
    maximum(vars_at()) = Tuple(rows);
    for (int r = 0; r < R; r++) {
      const Expr block_maximum = maximum(at(step))[r];
      rows[r] = ops.max(ops.get("%m" + number(r), block_maximum), block_maximum);
    }
    reference(vars_at()) = Tuple(rows);
    std::vector<Expr> references;
    for (int r = 0; r < R; r++) {
      const Expr now = reference(at(step))[r];
      references.push_back(now);
      rows[r] = ops.exp2(ops.get("%m" + number(r), now) - now);
    }
    decay(vars_at()) = Tuple(rows);
    const Expr exponent = ops.fma(score(at(i, step)), in_log2, -mux_row(i, references));
    weight(fragment_vars()) = ops.exp2(has_masks_in_scores ? ops.min(exponent, 1.f) : exponent);
    sum(vars_at()) = Tuple(fold(weight, [](Expr a, Expr b) { return a + b; }));

    // The state lives in named registers: %m the maximum in base 2, %l the sum, %O the output.
    std::string text;
    std::vector<Expr> arguments, decays, weights;
    for (int r = 0; r < R; r++) {
      decays.push_back(decay(at(step))[r]);
      text += "\tfma.rn.ftz.f32 %l" + number(r) + ", %l" + number(r) + ", $" + number(3 * r) + ", $" +
              number(3 * r + 1) + "; mov.b32 %m" + number(r) + ", $" + number(3 * r + 2) + ";\n";
      arguments.insert(arguments.end(), {decays[r], Expr(sum(at(step))[r]), references[r]});
    }
    for (int x = 0; x < t.scores(); x++) weights.push_back(weight(at(x, step)));
    state(vars_at()) = ptx.effect(text, arguments);
    end(vars_at()) = backend_->accumulate(task_, where, decays, weights, state(at(step)));
    for (const Func &g : {ready, scored, maximum, reference, decay, sum, state, end})
      funcs.of_thread.push_back(g);
    for (const Func &g : {score, weight}) funcs.of_fragment.push_back(g);
    return end;
  }

  // Divides the outputs by the sums, and stores them and the logarithms.
  Expr store(const FuncRef &sums, const Expr &token) {
    const TensorTiles &t = *tiles_;
    const int R = t.thread_rows();
    const Expr channels = out.dim(0).extent();
    const auto offset = [&](auto &buffer, int dim, const Expr &index) {
      return cast<int64_t>(buffer.dim(dim).stride()) * cast<int64_t>(index);
    };
    // Pieces of 8 channels, which lie with the four threads that share a row, become one thread's: stores of
    // 16 bytes. Where rows are not made of such pieces, elements are stored one by one.
    const Expr quad = thread % 4;
    const auto in_pieces = [](const Expr &elements) { return (elements & 7) == 0; };
    const Expr whole =
        in_pieces(channels) && (device_address(out) & Expr(uint64_t{15})) == Expr(uint64_t{0}) &&
        in_pieces(out.dim(1).stride()) && in_pieces(out.dim(2).stride()) && in_pieces(out.dim(3).stride());
    const std::string packed = std::string("cvt.rn.") + (Type(type).is_bfloat() ? "bf16" : "f16") + "x2.f32";
    // $0 whole, $1 channels, $2 quad, $3 queries; then for each row: sum, row, address, lse's address.
    std::vector<Expr> arguments{cast<int>(whole), channels, quad, decode ? rows() : q.dim(1).extent()};
    // The splits of a head lie side by side.
    const Expr head = decode ? task_.head * tile_count_ + block_ : task_.head;
    std::string text =
        "\t{ .reg .pred whole, seen, row, left, right, first, odd, high; .reg .f32 inverse, a, b, lse;\n"
        "\t.reg .b32 channel, x, y, z, piece<4>; .reg .b16 low_half, high_half; .reg .b64 at, far, bytes;\n"
        "\tsetp.ne.s32 whole, $0, 0; setp.eq.s32 first, $2, 0; and.b32 x, $2, 1; setp.ne.s32 odd, x, 0;\n"
        "\tsetp.ge.s32 high, $2, 2;\n";
    // Swaps with the thread at `distance`, which has the other value of `upper`, half of two registers.
    const auto exchange = [](const std::string &upper, int distance, int one, int other) {
      const std::string p = "piece" + number(one), o = "piece" + number(other);
      return "\tselp.b32 x, " + p + ", " + o + ", " + upper + "; shfl.sync.bfly.b32 y, x, " +
             number(distance) + ", 0x1f, 0xffffffff; @" + upper + " mov.b32 " + p + ", y; @!" + upper +
             " mov.b32 " + o + ", y;\n";
    };
    for (int r = 0; r < R; r++) {
      const int at = static_cast<int>(arguments.size());
      const auto argument = [&](int n) { return "$" + number(at + n); };
      const Expr address =
          device_address(out) +
          cast<uint64_t>((offset(out, 3, task_.batch) + offset(out, 2, head) + offset(out, 1, row_at(r))) *
                         Type(out.type()).bytes());
      const Expr lse_address =
          device_address(lse) +
          cast<uint64_t>((offset(lse, 2, task_.batch) + offset(lse, 1, head) + offset(lse, 0, row_at(r))) *
                         4);
      arguments.insert(arguments.end(), {Expr(sums[r]), row_at(r), address, lse_address});
      const std::string done = "DONE$u_" + number(r), parts = "PARTS$u_" + number(r);
      // The logarithm back from base 2, by the inverse of the rounded kLog2E in two parts: for large scores
      // one rounding more of lse is a visible error of all weights. Shuffles need all threads: those of rows
      // past the end go along. A row that sees nothing is zero, whatever was multiplied by its zero weights.
      // But decoding's are few, and each is shuffled before.
      const std::string skip = decode ? "@!row bra " + done + "; " : "";
      text += "\tsetp.lt.s32 row, " + argument(1) + ", $3; " + skip + "setp.neu.f32 seen, " + argument(0) +
              ", 0f00000000; rcp.approx.ftz.f32 inverse, " + argument(0) + ";\n\tlg2.approx.ftz.f32 lse, " +
              argument(0) + "; mul.ftz.f32 lse, lse, 0f3F317218; fma.rn.ftz.f32 lse, %m" + number(r) +
              ", 0f31FC7FCA, lse; fma.rn.ftz.f32 lse, %m" + number(r) +
              ", 0f3F317218, lse; selp.f32 lse, lse, 0fFF800000, seen;\n" + "\tcvta.to.global.u64 at, " +
              argument(3) + "; and.pred left, first, row; @left st.global.f32 [at], " +
              "lse;\n\tcvta.to.global.u64 at, " + argument(2) + ";\n";
      if (decode || is_float()) {
        text += store_floats(r) + "\t" + done + ":\n";
        continue;
      }
      text += "\t@!whole bra " + parts + ";\n" +
              "\tmul.wide.u32 bytes, $2, 16; add.s64 far, at, bytes; shl.b32 channel, $2, 3;\n";
      const auto pair = [&](int n, const std::string &to) {
        const int o = r / 2 * (t.head_dim / 2) + n * 4 + r % 2 * 2;
        return "\tmul.ftz.f32 a, %O" + number(o) + ", inverse; mul.ftz.f32 b, %O" + number(o + 1) +
               ", inverse; " + packed + " " + to + ", b, a; selp.b32 " + to + ", " + to + ", 0, seen;\n";
      };
      for (int n = 0; n < t.head_dim / 8; n += 4) {
        for (int piece = 0; piece < 4; piece++) text += pair(n + piece, "piece" + number(piece));
        text += exchange("odd", 1, 0, 1) + exchange("odd", 1, 2, 3) + exchange("high", 2, 0, 2) +
                exchange("high", 2, 1, 3);
        text += "\tadd.s32 x, channel, " + number(n * 8) + "; setp.lt.and.s32 left, x, $1, row; @left " +
                "st.global.v4.b32 [far+" + number(n * 16) + "], {piece0, piece1, piece2, piece3};\n";
      }
      text += "\tbra " + done + ";\n\t" + parts +
              ": mul.wide.u32 bytes, $2, 4; add.s64 at, at, bytes; shl.b32 channel, "
              "$2, 1;\n";
      for (int n = 0; n < t.head_dim / 8; n++) {
        text += pair(n, "x") + "\tmov.b32 {low_half, high_half}, x; add.s32 y, channel, " + number(n * 8) +
                "; setp.lt.and.s32 left, y, $1, row; add.s32 y, y, 1; setp.lt.and.s32 right, y, $1, row;\n" +
                "\t@left st.global.b16 [at+" + number(n * 16) + "], low_half; @right st.global.b16 [at+" +
                number(n * 16 + 2) + "], high_half;\n";
      }
      text += "\t" + done + ":\n";
    }
    arguments.push_back(token);
    return ptx.effect(text + "\t}\n", arguments);
  }

  // Of one row; partial results, whose rows are multiples of 16 bytes, in pairs.
  std::string store_floats(int r) const {
    std::string text = "\tmul.wide.u32 bytes, $2, 8; add.s64 far, at, bytes; shl.b32 channel, $2, 1;\n";
    for (int n = 0; n < tiles_->head_dim / 8; n++) {
      const int o = r / 2 * (tiles_->head_dim / 2) + n * 4 + r % 2 * 2;
      text += "\tmul.ftz.f32 a, %O" + number(o) + ", inverse; mul.ftz.f32 b, %O" + number(o + 1) +
              ", inverse; selp.f32 a, a, 0f00000000, seen; selp.f32 b, b, 0f00000000, seen; add.s32 x, "
              "channel, " +
              number(n * 8) + "; setp.lt.and.s32 left, x, $1, row; ";
      if (decode) {
        text += "@left st.global.v2.f32 [far+" + number(n * 32) + "], {a, b};\n";
      } else {
        text += "add.s32 x, x, 1; setp.lt.and.s32 right, x, $1, row; @left st.global.f32 [far+" +
                number(n * 32) + "], a; @right st.global.f32 [far+" + number(n * 32 + 4) + "], b;\n";
      }
    }
    return text;
  }

  Var i{"i"}, thread{"thread"}, warpgroup{"warpgroup"}, block_{"block"}, block_y_{"block_y"},
      block_z_{"block_z"}, round_{"round"}, step{"step"};
  std::vector<GeneratorInput<uint64_t> *> maps_;
  std::vector<GeneratorInput<int> *> shared_;
  schedules::TensorFuncs f;
  std::unique_ptr<TensorTiles> tiles_;
  std::unique_ptr<TensorBackend> backend_;
  TensorTask task_;
  Expr visible_keys_, tile_count_, block_count_;
  Share share_;
  bool is_plain_ = true, is_single_loop_ = false;
};

}  // namespace posattn

HALIDE_REGISTER_GENERATOR(posattn::AttentionTensor, attention_tensor)
