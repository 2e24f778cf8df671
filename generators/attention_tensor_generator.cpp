// Attention on tensor cores, written for one thread and the fragments of the matrix products that it holds:
// scores of a block of keys, their maximum and sum with those of the three neighbours that share its rows,
// weights, weighted values; then the next block. lowering/ has the products and copies of each generation of
// cards.
#include <memory>

#include "generators/fast_math.h"
#include "lowering/hopper.h"
#include "lowering/ptx_kernel.h"
#include "schedules/cuda_tensor.h"

namespace posattn {

using namespace Halide;

class AttentionTensor : public Generator<AttentionTensor>, public PtxKernel {
 public:
  GeneratorParam<Type> type{"type", BFloat(16)};
  GeneratorParam<std::string> branches{"branches", "none"};
  GeneratorParam<int> head_dim{"head_dim", 64};
  GeneratorParam<std::string> card{"card", "sm90a"};
  // Which terms are compiled in. plain: none; offsets, dense: that one.
  GeneratorParam<std::string> terms{"terms", "plain"};

  Input<float> scale{"scale"}, softcap{"softcap"};
  Input<int> group{"group"};
  Input<int> diagonal{"diagonal"}, window_left{"window_left"}, window_right{"window_right"};
  Input<bool> has_lengths{"has_lengths"};
  Input<int> offset_zero{"offset_zero"};
  Input<uint64_t> q_map{"q_map"}, k_map{"k_map"}, v_map{"v_map"};
  Input<Buffer<void, 4>> q{"q"}, k{"k"}, v{"v"};  // (d, token, head, batch)
  Input<Buffer<int, 1>> lengths{"lengths"};
  Input<Buffer<float, 2>> offsets{"offsets"};
  Input<Buffer<float, 4>> dense_bias{"dense_bias"};
  // Stored to.
  Input<Buffer<void, 4>> out{"out"};   // (d, query, head, batch)
  Input<Buffer<float, 3>> lse{"lse"};  // (query, head, batch)

  Output<Func> done{"done", Int(32), 5};

  void configure() {
    q.set_type(type), k.set_type(type), v.set_type(type), out.set_type(type);
    stored_to = {"out", "lse"};
  }

  void generate() {
    const std::string terms = this->terms;
    is_plain_ = terms == "plain";
    tiles_ = std::make_unique<TensorTiles>(schedules::tensor_tiles(
        true, head_dim, is_plain_ ? schedules::TensorScores::plain : schedules::TensorScores::biased));
    backend_ = std::make_unique<Hopper>(ptx, *tiles_, Type(type).is_bfloat());
    const TensorTiles &t = *tiles_;
    const PtxOps &ops = backend_->ops;
    const int R = t.thread_rows();
    ptx.declare_register(".f32 %m<" + number(R) + ">");
    ptx.declare_register(".f32 %l<" + number(R) + ">");
    head = {"8.4", "sm_90a",
            "\t.maxntid 128, " + number(t.groups()) + ", 1\n\t.minnctapersm " + number(t.blocks_per_sm) + "\n"};
    assemble_for = "sm_90a";
    for (auto *b : {&q, &k, &v, &out}) {
      for (int i = 0; i < 4; i++) b->dim(i).set_min(0);
    }
    for (int i = 0; i < 3; i++) lse.dim(i).set_min(0);
    lse.dim(0).set_stride(Expr());
    lengths.dim(0).set_min(0);
    offsets.dim(0).set_min(0), offsets.dim(1).set_min(0);
    for (int i = 0; i < 4; i++) dense_bias.dim(i).set_min(0);
    dense_bias.dim(0).set_stride(Expr());
    q_map.set_estimate(static_cast<uint64_t>(t.rows()));
    k_map.set_estimate(static_cast<uint64_t>(t.keys));
    v_map.set_estimate(static_cast<uint64_t>(t.keys));

    // What this block of threads works on. The last rows come first: causal ones see the most keys.
    const Expr queries = q.dim(1).extent(), keys = k.dim(1).extent();
    const Expr tile_count = (queries + t.rows() - 1) / t.rows();
    TensorTask &task = task_;
    task.first_row = (tile_count - 1 - tile) * t.rows();
    task.head = head_, task.kv_head = head_ / group, task.batch = batch;
    task.q = source(q, q_map), task.k = source(k, k_map), task.v = source(v, v_map);
    const Expr last_row = min(task.first_row + t.rows(), queries) - 1;
    visible_keys_ = select(has_lengths, clamp(lengths(batch), 0, keys), keys);
    const Expr begin = max(task.first_row + diagonal - window_left, 0);
    const Expr end = min(visible_keys_, last_row + diagonal + window_right + 1);
    const Expr inner_begin = max(last_row + diagonal - window_left, 0);
    const Expr inner_end = max(min(visible_keys_, task.first_row + diagonal + window_right + 1), 0);
    const auto up = [&](const Expr &x) { return (x + t.keys - 1) / t.keys; };
    task.first_block = begin / t.keys;
    const Expr end_block = max(up(max(end, 0)), task.first_block + 1);
    task.last_block = end_block - 1;
    task.steps = end_block - task.first_block;
    // The first step is masked always.
    task.right = clamp(end_block - inner_end / t.keys, 1, task.steps);
    task.masked = min(task.right + clamp(up(inner_begin) - task.first_block, 0, task.steps), task.steps);
    // Computed once: bounds of loops, which Halide need not look into.
    Func plan("plan");
    plan(here_vars()) = Tuple(task.steps, task.last_block, task.first_block, task.right, task.masked, visible_keys_);
    const FuncRef planned = plan(here_vars());
    task.steps = planned[0], task.last_block = planned[1], task.first_block = planned[2], task.right = planned[3];
    task.masked = planned[4], visible_keys_ = planned[5];

    // The algorithm.
    const std::vector<Expr> here{thread, warpgroup, tile, head_, batch};
    Func start("start"), first("first"), loop("loop"), last("last");
    {
      Expr token = ops.fill("%m", R, start_of_maximum() * 1.f, 0);
      token = ops.fill("%l", R, 0.f, token);
      start(here) = backend_->begin(task, thread, warpgroup, token);
    }
    first(here) = block("_first", {Expr(0), task.last_block, true}, Kind::first, start, f.first)(at(0));
    const Expr most_steps = up(keys) + 1;
    f.masked_steps = RDom(1, most_steps, "masked_steps");
    f.masked_steps.where(f.masked_steps < task.masked);
    f.inner_steps = RDom(1, most_steps, "inner_steps");
    f.inner_steps.where(f.inner_steps >= task.masked && f.inner_steps < task.steps);
    Func masked = block("_masked", {step, task.masked_block(step), false}, Kind::masked, first, f.masked);
    Func inner = block("_inner", {step, task.inner_block(step), false}, Kind::inner, first, f.inner);
    loop(here) = first(here);
    loop(here) = loop(here) + masked(at(f.masked_steps));
    loop(here) = loop(here) + inner(at(f.inner_steps));
    last(here) = backend_->finish(task, loop(here) + 1);

    Func sum("sum"), result("result");
    std::vector<Expr> sums, results;
    for (int r = 0; r < R; r++) sums.push_back(over_row(ops.get("%l" + number(r), last(here)), false));
    sum(here) = Tuple(sums);
    result(here) = store(sum(here), last(here));
    done(here_vars()) = result(here);

    f.done = done;
    f.loop = loop;
    f.of_thread = {plan, start, first, loop, last, sum, result};
    f.vars = {i, thread, warpgroup, tile, head_, batch};
    Func(done).bound(tile, 0, tile_count).bound(head_, 0, q.dim(2).extent()).bound(batch, 0, q.dim(3).extent());
  }

  void schedule() {
    schedules::schedule_tensor(f, *tiles_);
    get_pipeline().add_custom_lowering_pass(new DropTokens(f.done.name(), backend_->shared_bytes()));
  }

 private:
  enum class Kind { first, masked, inner };

  std::vector<Var> here_vars() const { return {thread, warpgroup, tile, head_, batch}; }
  std::vector<Expr> at(const Expr &s) const { return {thread, warpgroup, tile, s, head_, batch}; }
  std::vector<Expr> at(const Expr &element, const Expr &s) const {
    return {element, thread, warpgroup, tile, s, head_, batch};
  }
  std::vector<Var> vars_at() const { return {thread, warpgroup, tile, step, head_, batch}; }
  std::vector<Var> fragment_vars() const { return {i, thread, warpgroup, tile, step, head_, batch}; }

  // By address and by map: a backend takes what it needs.
  template <typename I, typename M>
  TensorSource source(I &buffer, M &map) {
    return {device_address(buffer),    buffer.dim(1).stride(), buffer.dim(2).stride(), buffer.dim(3).stride(),
            buffer.dim(1).extent(), buffer.dim(0).extent(), Expr(map)};
  }

  // Scores stay products until the exponential where nothing is added to them.
  Expr to_log2() const { return is_plain_ ? scale * kLog2E : Expr(kLog2E); }
  // A plain product is scaled only afterwards, which must not overflow.
  float hidden() const { return is_plain_ ? -1e30f : kHidden; }
  float start_of_maximum() const { return is_plain_ ? -1e29f : kMaximumStart * kLog2E; }

  // The r-th row of a thread, and the key of an element of its fragment.
  Expr row(int r) const {
    return task_.first_row + (warpgroup * 4 + thread / 32) * (16 * tiles_->row_tiles) + r / 2 * 16 + thread % 32 / 4 +
           r % 2 * 8;
  }
  Expr row_of(const Expr &element) const {
    return element / (tiles_->keys / 2) * 2 + element / 2 % 2;
  }
  Expr column(const Expr &element) const { return element % (tiles_->keys / 2) / 4 * 8 + element % 2; }
  Expr mux_row(const Expr &element, const std::vector<Expr> &of_rows) const {
    Expr value = of_rows[0];
    for (size_t r = 1; r < of_rows.size(); r++) value = select(row_of(element) == static_cast<int>(r), of_rows[r], value);
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

  Expr logit(const Expr &product, const Expr &block) {
    if (is_plain_) return product;
    const PtxOps &ops = backend_->ops;
    std::vector<Expr> rows;
    for (int r = 0; r < tiles_->thread_rows(); r++) rows.push_back(row(r));
    const Expr query = mux_row(i, rows), key = block * tiles_->keys + thread % 4 * 2 + column(i);
    if (std::string(terms) == "offsets") return ops.fma(product, scale, offsets(unsafe_promise_clamped(key - query + offset_zero, 0, offsets.dim(0).extent() - 1), head_));
    return ops.fma(product, scale,
                   dense_bias(unsafe_promise_clamped(min(key, k.dim(1).extent() - 1), 0, dense_bias.dim(0).extent() - 1),
                              min(query, q.dim(1).extent() - 1), head_, batch));
  }

  // One block of keys: the scores, their weights, and what they do to the state.
  Func block(const std::string &suffix, const TensorBackend::Step &where, Kind kind, const Func &before,
             schedules::TensorBlockFuncs &funcs) {
    const PtxOps &ops = backend_->ops;
    const TensorTiles &t = *tiles_;
    const int R = t.thread_rows();
    Func ready("ready" + suffix), score("score" + suffix), maximum("maximum" + suffix), reference("reference" + suffix);
    Func decay("decay" + suffix), weight("weight" + suffix), sum("sum" + suffix), state("state" + suffix);
    Func end("end" + suffix);
    const auto in_log2 = to_log2();

    const Expr block_of_keys = where.block;
    ready(vars_at()) = backend_->scores(task_, where, warpgroup, before(thread, warpgroup, tile, head_, batch));
    Expr value = logit(ops.get("%S", i, ready(at(step))), block_of_keys);
    if (kind != Kind::inner) {
      const Expr first_key = block_of_keys * t.keys + thread % 4 * 2;
      std::vector<Expr> low, high;
      for (int r = 0; r < R; r++) {
        low.push_back(row(r) + diagonal - window_left - first_key);
        high.push_back(min(row(r) + diagonal + window_right, visible_keys_ - 1) - first_key);
      }
      value = ops.keep_within(column(i), mux_row(i, low), mux_row(i, high), value, hidden());
    }
    score(fragment_vars()) = value;

    std::vector<Expr> rows = fold(score, [&](Expr a, Expr b) { return ops.max(a, b); });
    for (Expr &x : rows) x = over_row(x, true) * in_log2;
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
    weight(fragment_vars()) = ops.exp2(ops.fma(score(at(i, step)), in_log2, -mux_row(i, references)));
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
    funcs = {{ready, maximum, reference, decay, sum, state, end}, {score, weight}};
    return end;
  }

  // Divides the outputs by the sums, and stores them and the logarithms.
  Expr store(const FuncRef &sums, const Expr &token) {
    const PtxOps &ops = backend_->ops;
    const TensorTiles &t = *tiles_;
    const int R = t.thread_rows();
    const Expr channels = out.dim(0).extent();
    const auto offset = [&](auto &buffer, int dim, const Expr &index) {
      return cast<int64_t>(buffer.dim(dim).stride()) * cast<int64_t>(index);
    };
    const Expr column = thread % 4 * 2;
    const auto even = [](const Expr &stride) { return (stride & 1) == 0; };
    const Expr whole = channels == t.head_dim && (device_address(out) & Expr(uint64_t{3})) == Expr(uint64_t{0}) &&
                       even(out.dim(1).stride()) && even(out.dim(2).stride()) && even(out.dim(3).stride());
    const std::string packed = std::string("cvt.rn.") + (Type(type).is_bfloat() ? "bf16" : "f16") + "x2.f32";
    // $0 whole, $1 channels, $2 column, $3 queries; then for each row: sum, %m, row, address, lse's address.
    std::vector<Expr> arguments{cast<int>(whole), channels, column, q.dim(1).extent()};
    std::string text =
        "\t{ .reg .pred whole, seen, row, left, right, first; .reg .f32 inverse, a, b, lse; .reg .b32 pair, channel; "
        ".reg .b16 low, high; .reg .b64 at;\n\tsetp.ne.s32 whole, $0, 0; setp.eq.s32 first, $2, 0;\n";
    for (int r = 0; r < R; r++) {
      const int at = static_cast<int>(arguments.size());
      const auto argument = [&](int n) { return "$" + number(at + n); };
      const Expr address = device_address(out) +
                           cast<uint64_t>((offset(out, 3, task_.batch) + offset(out, 2, task_.head) +
                                           offset(out, 1, row(r)) + cast<int64_t>(column)) *
                                          Type(type).bytes());
      const Expr lse_address =
          device_address(lse) +
          cast<uint64_t>((offset(lse, 2, task_.batch) + offset(lse, 1, task_.head) + offset(lse, 0, row(r))) * 4);
      arguments.insert(arguments.end(), {Expr(sums[r]), row(r), address, lse_address});
      const std::string done = "DONE$u_" + number(r), parts = "PARTS$u_" + number(r);
      // A row that sees nothing is zero, whatever was multiplied by its zero weights.
      text += "\tsetp.lt.s32 row, " + argument(1) + ", $3; @!row bra " + done + ";\n" +
              "\tsetp.neu.f32 seen, " + argument(0) + ", 0f00000000; rcp.approx.ftz.f32 inverse, " + argument(0) +
              ";\n\tlg2.approx.ftz.f32 lse, " + argument(0) + "; add.ftz.f32 lse, lse, %m" + number(r) +
              "; mul.ftz.f32 lse, lse, 0f3F317218; selp.f32 lse, lse, 0fFF800000, seen;\n\tcvta.to.global.u64 at, " +
              argument(3) + "; @first st.global.f32 [at], lse;\n\tcvta.to.global.u64 at, " + argument(2) +
              "; @!whole bra " + parts + ";\n";
      for (const bool is_whole : {true, false}) {
        for (int n = 0; n < t.head_dim / 8; n++) {
          const int o = r / 2 * (t.head_dim / 2) + n * 4 + r % 2 * 2;
          text += "\tmul.ftz.f32 a, %O" + number(o) + ", inverse; mul.ftz.f32 b, %O" + number(o + 1) + ", inverse; " +
                  packed + " pair, b, a; selp.b32 pair, pair, 0, seen;\n";
          if (is_whole) {
            text += "\tst.global.b32 [at+" + number(n * 16) + "], pair;\n";
          } else {
            text += "\tmov.b32 {low, high}, pair; add.s32 channel, $2, " + number(n * 8) +
                    "; setp.lt.s32 left, channel, $1; add.s32 channel, channel, 1; setp.lt.s32 right, channel, $1;\n" +
                    "\t@left st.global.b16 [at+" + number(n * 16) + "], low; @right st.global.b16 [at+" +
                    number(n * 16 + 2) + "], high;\n";
          }
        }
        text += is_whole ? "\tbra " + done + ";\n\t" + parts + ":\n" : "\t" + done + ":\n";
      }
    }
    arguments.push_back(token);
    (void)ops;
    return ptx.effect(text + "\t}\n", arguments);
  }

  Var i{"i"}, thread{"thread"}, warpgroup{"warpgroup"}, tile{"tile"}, head_{"head"}, batch{"batch"}, step{"step"};
  schedules::TensorFuncs f;
  std::unique_ptr<TensorTiles> tiles_;
  std::unique_ptr<TensorBackend> backend_;
  TensorTask task_;
  Expr visible_keys_;
  bool is_plain_ = true;
};

}  // namespace posattn

HALIDE_REGISTER_GENERATOR(posattn::AttentionTensor, attention_tensor)
