#include "lowering/hopper.h"

#include <stdexcept>

#include "lowering/wgmma.h"

namespace posattn {

using Halide::cast;

namespace {

// Registers of a thread while one more warpgroup copies: multiples of 8, 512 * 128 in all.
struct RegisterShares {
  int copy, multiply;
};
RegisterShares register_shares(int warpgroups) {
  if (warpgroups == 1) return {40, 240};
  if (warpgroups == 2) return {24, 240};
  return warpgroups == 3 ? RegisterShares{32, 160} : RegisterShares{24, 112};
}

// A posted task, and how many there is place for: one that is posted two rounds ahead replaces one of six
// rounds before, which every warp has read, as the rings of keys and values are no longer than two steps.
constexpr int kTaskNumbers = 9, kTaskBytes = 64, kTaskPlaceBits = 3, kTaskPlaces = 1 << kTaskPlaceBits;

}  // namespace

Hopper::Hopper(InlinePtx &ptx, const TensorTiles &tiles, bool is_bfloat)
    : TensorBackend(ptx, tiles, is_bfloat) {
  chunks_ = (tiles.head_dim + 63) / 64;
  int at = 0;
  const auto take = [&](int bytes) { return (at += bytes) - bytes; };
  const int stages = tiles.stages;
  q_.chunk_bytes = tiles.rows() * 128;
  k_.chunk_bytes = v_.chunk_bytes = tiles.keys * 128;
  q_.tiles = take(query_places() * chunks_ * q_.chunk_bytes);
  k_.tiles = take(stages * chunks_ * k_.chunk_bytes);
  v_.tiles = take(stages * chunks_ * v_.chunk_bytes);
  if (tiles.bias_places > 0 && (!tiles.copy_warpgroup || tiles.keys % 64 != 0))
    throw std::logic_error("a bias comes in chunks of 64 keys, by a copy warpgroup");
  bias_.chunk_bytes = tiles.rows() * 128;
  bias_.tiles = take(tiles.bias_places * bias_bytes());
  // Those that one thread arrives at come first.
  q_.full = take(8 * query_places());
  for (Ring *ring : {&k_, &v_}) ring->full = take(8 * stages);
  bias_.full = take(8 * tiles.bias_places);
  posted_ = take(tiles.copy_warpgroup ? 8 * kTaskPlaces : 0);
  q_.empty = take(8 * query_places());
  for (Ring *ring : {&k_, &v_}) ring->empty = take(8 * stages);
  bias_.empty = take(8 * tiles.bias_places);
  tasks_ = take(kTaskPlaces * kTaskBytes);
  end_ = at;

  ptx.in_module(".extern .shared .align 1024 .b8 posattn_shared[];");
  ptx.declare_register(".b32 %P<" + number(tiles.scores() / 2) + ">");
  for (const char *name : {".b32 %shared", ".b32 %thread", ".pred %leader", ".pred %warp0", ".pred %lane0",
                           ".pred %always", ".pred %never"}) {
    ptx.declare_register(name);
  }
  ptx.at_entry(
      "\t{ .reg .b32 a, b; mov.u32 %shared, posattn_shared;\n"
      "\tmov.u32 a, %tid.x; mov.u32 b, %tid.y; mad.lo.u32 %thread, b, 128, a;\n"
      "\tsetp.eq.u32 %leader, %thread, 0; setp.lt.u32 %warp0, %thread, 32;\n"
      "\tand.b32 a, %thread, 31; setp.eq.u32 %lane0, a, 0;\n"
      "\tmov.u32 a, 0; setp.eq.u32 %always, a, 0; setp.ne.u32 %never, a, 0; }\n");
  if (tiles.bias_places == 0) return;
  ptx.declare_register(".b32 %B<" + number(tiles.scores() / 2) + ">");
  ptx.declare_register(".b32 %bias");  // where a lane's row for ldmatrix begins, permuted
  ptx.at_entry(
      "\t{ .reg .b32 a, b; shr.u32 a, %thread, 5; shl.b32 a, a, 4; and.b32 b, %thread, 15; add.u32 a, a, b;\n"
      "\tshl.b32 %bias, a, 7; shr.u32 a, %thread, 4; xor.b32 a, a, %thread; and.b32 a, a, 1;\n"
      "\tand.b32 b, %thread, 6; or.b32 a, a, b; shl.b32 a, a, 4; add.u32 %bias, %bias, a; }\n");
}

// Barriers. A tile is full when its bytes are there, and empty when every warp has said so.

Halide::Expr Hopper::initialize_barriers(const Expr &token) {
  // Each lane of the first warp makes one.
  const int full = (q_.empty - q_.full) / 8, all = (tasks_ - q_.full) / 8;
  if (all > 32) throw std::logic_error("more barriers than a warp has lanes");
  return ops.ptx.effect("\t{ .reg .b32 at, arrivals; .reg .pred p, q; setp.lt.u32 p, %thread, " +
                            number(all) + "; mad.lo.u32 at, %thread, 8, %shared; add.u32 at, at, " +
                            number(q_.full) + "; setp.lt.u32 q, %thread, " + number(full) +
                            "; selp.u32 arrivals, 1, " + number(4 * tiles.warpgroups) +
                            ", q; @p mbarrier.init.shared::cta.b64 [at], arrivals;\n"
                            "\tfence.proxy.async.shared::cta; bar.sync 0; }\n",
                        {token});
}

Halide::Expr Hopper::wait(const Expr &barrier, const Expr &parity, const Expr &token) {
  return ops.ptx.effect(
      "\t{ .reg .b32 a; .reg .pred q; add.u32 a, %shared, $0;\n"
      "\tWAIT$u: mbarrier.try_wait.parity.shared::cta.b64 q, [a], $1; @!q bra WAIT$u; }\n",
      {barrier, parity, token});
}

Halide::Expr Hopper::release(const Expr &barrier, const Expr &token) {
  return ops.ptx.effect(
      "\t{ .reg .b32 a; add.u32 a, %shared, $0; @%lane0 mbarrier.arrive.shared::cta.b64 _, [a]; }\n",
      {barrier, token});
}

// Copies. What lies beyond the tensor, in channels or tokens, arrives as zeros.

std::string Hopper::copy_tile(const std::string &map, int chunk_bytes, const std::string &to,
                              const std::string &barrier, const std::string &token, const std::string &head,
                              const std::string &batch, const std::string &guard) const {
  std::string text = "\t" + guard + "mbarrier.arrive.expect_tx.shared::cta.b64 _, [" + barrier + "], " +
                     number(chunks_ * chunk_bytes) + ";\n";
  for (int c = 0; c < chunks_; c++) {
    text += "\tmov.u32 channel, " + number(c * 64) + "; " + guard +
            "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [" + to +
            "], [" + map + ", {channel, " + token + ", " + head + ", " + batch + "}], [" + barrier +
            "]; add.u32 " + to + ", " + to + ", " + number(chunk_bytes) + ";\n";
  }
  return text;
}

Halide::Expr Hopper::copy_queries(const TensorTask &task, const Expr &token) {
  return ops.ptx.effect("\t{ .reg .b32 to, barrier, channel; add.u32 to, %shared, " + number(q_.tiles) +
                            "; add.u32 barrier, %shared, " + number(q_.full) + ";\n" +
                            copy_tile("$@0", q_.chunk_bytes, "to", "barrier", "$1", "$2", "$3", "@%leader ") +
                            "\t}\n",
                        {task.q.map, task.first_row, task.head, task.batch, token});
}

// By the first warp, and only where there is such a step.
Halide::Expr Hopper::copy_block(const TensorTask &task, const TensorSource &source, const Ring &ring,
                                const Expr &step, const Expr &token) {
  return ops.ptx.effect(
      "\t{ .reg .b32 to, barrier, channel; .reg .pred p, q; setp.lt.s32 p, $0, $1; and.pred p, p, %warp0; "
      "@!p bra "
      "SKIP$u;\n\tadd.u32 to, %shared, $8;\n"
      "\tWAIT$u: mbarrier.try_wait.parity.shared::cta.b64 q, [to], $9; @!q bra WAIT$u;\n"
      "\tadd.u32 barrier, %shared, $7; add.u32 to, %shared, $6;\n" +
          copy_tile("$@2", ring.chunk_bytes, "to", "barrier", "$3", "$4", "$5", "@%leader ") +
          "\tSKIP$u: }\n",
      {step, task.steps, source.map, task.block(step) * tiles.keys, task.kv_head, task.batch,
       tile(ring, step), ring.full + stage(step) * 8, ring.empty + stage(step) * 8, 1 - phase(step), token});
}

// By the copy warpgroup: a block of keys of the queries' biases.
std::string Hopper::copy_bias(const std::string &map, const std::string &of_head,
                              const std::string &of_batch) const {
  std::string text =
      "\tmad.lo.u32 barrier, bias_place, 8, %shared; add.u32 to, barrier, " + number(bias_.empty) +
      "; add.u32 barrier, barrier, " + number(bias_.full) +
      ";\n\tBIAS$u: mbarrier.try_wait.parity.shared::cta.b64 q, [to], bias_parity; @!q bra BIAS$u;\n"
      "\tmad.lo.u32 to, bias_place, " +
      number(bias_bytes()) + ", %shared; add.u32 to, to, " + number(bias_.tiles) +
      "; mul.lo.s32 bias_head, head, " + of_head + "; mul.lo.s32 bias_batch, batch, " + of_batch +
      ";\n\tmbarrier.arrive.expect_tx.shared::cta.b64 _, [barrier], " + number(bias_bytes()) + ";\n";
  for (int c = 0; c < tiles.keys / 64; c++) {
    text += "\tadd.s32 channel, block, " + number(c * 64) +
            "; cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [to], [" +
            map + ", {channel, row, bias_head, bias_batch}], [barrier]; add.u32 to, to, " +
            number(bias_.chunk_bytes) + ";\n";
  }
  return text + "\tadd.u32 bias_place, bias_place, 1; setp.eq.u32 q, bias_place, " +
         number(tiles.bias_places) + "; @q mov.u32 bias_place, 0; @q xor.b32 bias_parity, bias_parity, 1;\n";
}

Halide::Expr Hopper::post(const TensorTask &task, const Expr &token) {
  const Expr place = task.round & (kTaskPlaces - 1);
  std::string text = "\t{ .reg .b32 to; @!%leader bra SKIP$u; add.u32 to, %shared, $0;\n";
  for (int i = 0; i < kTaskNumbers; i++) {
    text += "\tst.shared.b32 [to+" + number(4 * i) + "], $" + number(2 + i) + ";\n";
  }
  text += "\tadd.u32 to, %shared, $1; mbarrier.arrive.shared::cta.b64 _, [to];\n\tSKIP$u: }\n";
  return ops.ptx.effect(
      text, {tasks_ + place * kTaskBytes, posted_ + place * 8, task.first_row, task.head, task.kv_head,
             task.batch, task.steps, task.last_block, task.first_block, task.right, task.masked, token});
}

Halide::Expr Hopper::enter(const Expr &round, const Expr &token) {
  const Expr place = round & (kTaskPlaces - 1);
  const Expr parity = cast<int>(cast<uint32_t>(round) / kTaskPlaces % 2);
  return ops.ptx.effect(
      "\t{ .reg .b32 steps; .reg .pred p; add.u32 steps, %shared, $0; ld.shared.b32 steps, [steps+16]; "
      "setp.gt.s32 p, steps, 0; @p bra GO$u;\n\t" +
          std::string(tiles.ahead ? "wgmma.wait_group.sync.aligned 0; " : "") + "exit;\n\tGO$u: }\n",
      {tasks_ + place * kTaskBytes, wait(posted_ + place * 8, parity, token)});
}

void Hopper::read_posted(TensorTask &task, const Expr &token) {
  int at = 0;
  const Expr place = tasks_ + (task.round & (kTaskPlaces - 1)) * kTaskBytes;
  for (Expr *x : {&task.first_row, &task.head, &task.kv_head, &task.batch, &task.steps, &task.last_block,
                  &task.first_block, &task.right, &task.masked}) {
    *x = ops.ptx.read(Halide::Int(32),
                      "\t{ .reg .b32 a; add.u32 a, %shared, $0; ld.shared.b32 $r, [a+" + number(at) + "]; }",
                      {place, token});
    at += 4;
  }
}

// The last warpgroup becomes the one that copies: one thread of it takes the tasks as they are posted,
// streams their keys and values through the rings, and exits after the last.
Halide::Expr Hopper::start_copy_warpgroup(const TensorTask &task, const Expr &token) {
  const int first = 128 * tiles.warpgroups;
  const RegisterShares shares = register_shares(tiles.warpgroups);
  const auto wait_for = [](const std::string &label, const std::string &barrier, const std::string &parity) {
    return "\t" + label + ": mbarrier.try_wait.parity.shared::cta.b64 q, [" + barrier + "], " + parity +
           "; @!q bra " + label + ";\n";
  };
  std::string text =
      "\t{ .reg .b32 step, stage, parity, block, other, to, barrier, channel, left, round, slot;\n"
      "\t.reg .b32 row, head, kv_head, batch, steps, last, first, right, masked; .reg .pred p, q;\n"
      "\t.reg .b32 bias_place, bias_parity, bias_head, bias_batch; mov.u32 bias_place, 0; mov.u32 "
      "bias_parity, "
      "1;\n"
      "\tsetp.lt.u32 p, %thread, " +
      number(first) + "; @p bra MULTIPLY$u;\n\tsetmaxnreg.dec.sync.aligned.u32 " + number(shares.copy) +
      ";\n\tsetp.ne.u32 p, %thread, " + number(first) + "; @p bra DONE$u;\n" +
      "\tmov.u32 stage, 0; mov.u32 parity, 1; mov.u32 round, 0;\n\tTASK$u:\n";
  text += "\tand.b32 slot, round, " + number(kTaskPlaces - 1) +
          "; shl.b32 barrier, slot, 3; add.u32 barrier, barrier, %shared; add.u32 barrier, "
          "barrier, " +
          number(posted_) + "; shr.u32 other, round, " + number(kTaskPlaceBits) +
          "; and.b32 other, other, 1;\n" + wait_for("POSTED$u", "barrier", "other") +
          "\tmad.lo.u32 to, slot, " + number(kTaskBytes) + ", %shared; add.u32 to, to, " + number(tasks_) +
          ";\n";
  int place = 0;
  for (const char *name : {"row", "head", "kv_head", "batch", "steps", "last", "first", "right", "masked"}) {
    text += std::string("\tld.shared.b32 ") + name + ", [to+" + number(4 * place++) + "];\n";
  }
  text +=
      "\tsetp.le.s32 p, steps, 0; @p bra DONE$u;\n\tand.b32 slot, round, " + number(query_places() - 1) +
      "; shr.u32 other, round, " + number(query_places() - 1) +
      "; and.b32 other, other, 1; xor.b32 other, other, 1;\n\tmad.lo.u32 barrier, slot, 8, %shared; add.u32 "
      "barrier, barrier, " +
      number(q_.empty) + ";\n" + wait_for("QUERIES$u", "barrier", "other");
  text += "\tmad.lo.u32 to, slot, " + number(chunks_ * q_.chunk_bytes) + ", %shared; add.u32 to, to, " +
          number(q_.tiles) + "; add.u32 barrier, barrier, " + number(q_.full - q_.empty) + ";\n" +
          copy_tile("$@0", q_.chunk_bytes, "to", "barrier", "row", "head", "batch", "");
  text +=
      "\tmov.u32 step, 0; sub.s32 left, masked, right;\n\tNEXT$u:\n"
      // TensorTask::block
      "\tsub.s32 block, last, step; setp.lt.s32 p, step, right; @p bra KNOWN$u;\n"
      "\tadd.s32 block, block, left; setp.ge.s32 p, step, masked; @p bra KNOWN$u;\n"
      "\tsub.s32 other, step, right; add.s32 block, other, first;\n"
      "\tKNOWN$u: mul.lo.s32 block, block, " +
      number(tiles.keys) + ";\n";
  for (const Ring *ring : {&k_, &v_}) {
    text += "\tshl.b32 to, stage, 3; add.u32 to, to, %shared; add.u32 barrier, to, " + number(ring->full) +
            "; add.u32 to, to, " + number(ring->empty) + ";\n" +
            wait_for(ring == &k_ ? "KEYS$u" : "VALUES$u", "to", "parity") + "\tmad.lo.u32 to, stage, " +
            number(chunks_ * ring->chunk_bytes) + ", %shared; add.u32 to, to, " + number(ring->tiles) +
            ";\n" +
            copy_tile(ring == &k_ ? "$@1" : "$@2", ring->chunk_bytes, "to", "barrier", "block", "kv_head",
                      "batch", "");
    if (ring == &k_ && tiles.bias_places > 0) text += copy_bias("$@3", "$4", "$5");
  }
  text += "\tadd.u32 step, step, 1; add.u32 stage, stage, 1; setp.eq.u32 p, stage, " + number(tiles.stages) +
          "; @p mov.u32 stage, 0; @p xor.b32 parity, parity, 1; setp.lt.s32 p, step, steps; @p bra NEXT$u;\n"
          "\tadd.u32 round, round, 1; bra TASK$u;\n"
          "\tDONE$u: exit;\n\tMULTIPLY$u: setmaxnreg.inc.sync.aligned.u32 " +
          number(shares.multiply) + ";\n\t}\n";
  std::vector<Expr> arguments = {task.q.map, task.k.map, task.v.map};
  if (tiles.bias_places > 0)
    arguments.insert(arguments.end(), {task.bias_map, task.bias_of_head, task.bias_of_batch});
  arguments.push_back(token);
  return ops.ptx.effect(text, arguments);
}

// Products.

// %S = a warpgroup's 64 rows of queries times the keys.
Halide::Expr Hopper::multiply_keys(const Expr &queries, const Expr &keys, const Expr &token) {
  std::string text =
      "\t{ .reg .b32 a, b; .reg .b64 da, db, ea, eb; add.u32 a, %shared, $0; add.u32 b, %shared, $1;\n" +
      wgmma_descriptor("da", "a", 16, 1024) + wgmma_descriptor("db", "b", 16, 1024) +
      "\twgmma.fence.sync.aligned;\n";
  for (int k = 0; k < tiles.head_dim / 16; k++) {
    const int chunk = k / 4, inside = k % 4 * 2;
    text += "\tadd.s64 ea, da, " + number(chunk * (q_.chunk_bytes / 16) + inside) + "; add.s64 eb, db, " +
            number(chunk * (k_.chunk_bytes / 16) + inside) + ";\n\twgmma.mma_async.sync.aligned.m64n" +
            number(tiles.keys) + "k16.f32." + type_name() + "." + type_name() + " " +
            register_list("%S", 0, tiles.scores()) + ", ea, eb, " + (k > 0 ? "%always" : "%never") +
            ", 1, 1, 0, 0;\n";
  }
  return ops.ptx.effect(text + "\twgmma.commit_group.sync.aligned;\n\t}\n", {queries, keys, token});
}

// %O += the weights in %P times the values of the step.
Halide::Expr Hopper::multiply_values(const Expr &step, const Expr &token) {
  const Expr ready = wait(v_.full + stage(step) * 8, phase(step), token);
  std::string text = "\t{ .reg .b32 b; .reg .b64 db, eb; add.u32 b, %shared, $0;\n" +
                     wgmma_descriptor("db", "b", v_.chunk_bytes, 1024) + "\twgmma.fence.sync.aligned;\n";
  for (int k = 0; k < tiles.keys / 16; k++) {
    text += "\tadd.s64 eb, db, " + number(k * 128) + ";\n\twgmma.mma_async.sync.aligned.m64n" +
            number(tiles.head_dim) + "k16.f32." + type_name() + "." + type_name() + " " +
            register_list("%O", 0, tiles.outputs()) + ", " + register_list("%P", k * 4, 4) +
            ", eb, %always, 1, 1, 1;\n";
  }
  return ops.ptx.effect(text + "\twgmma.commit_group.sync.aligned;\n\t}\n", {tile(v_, step), ready});
}

Halide::Expr Hopper::wait_products(int pending, const Expr &token) {
  return ops.ptx.effect("\twgmma.wait_group.sync.aligned " + number(pending) + ";", {token});
}

// Warpgroups take turns: each waits for the one before it to have started its products.

Halide::Expr Hopper::take_turn(const Expr &token) {
  if (!tiles.in_turns) return token;
  return ops.ptx.effect("\t{ .reg .b32 own; mov.u32 own, %tid.y; add.u32 own, own, 1; bar.sync own, 256; }",
                        {token});
}

Halide::Expr Hopper::pass_turn(const Expr &token) {
  if (!tiles.in_turns) return token;
  return ops.ptx.effect(
      "\t{ .reg .b32 next; .reg .pred p; mov.u32 next, %tid.y; add.u32 next, next, 2; "
      "setp.gt.u32 p, next, " +
          number(tiles.warpgroups) + "; @p mov.u32 next, 1; bar.arrive next, 256; }",
      {token});
}

// The kernel's parts.

Halide::Expr Hopper::setup(const std::vector<TensorTask> &tasks, const Expr &token) {
  Expr done = initialize_barriers(token);
  if (!tiles.copy_warpgroup) return done;
  for (const TensorTask &task : tasks) done = post(task, done);
  done = start_copy_warpgroup(tasks[0], done);
  if (!tiles.in_turns) return done;
  // The last one gives the first its turn.
  done = ops.ptx.effect("\t{ .reg .b32 own; .reg .pred p; mov.u32 own, %tid.y; setp.eq.u32 p, own, " +
                            number(tiles.warpgroups - 1) + "; @p bar.arrive 1, 256; }",
                        {done});
  return tiles.ahead ? take_turn(done) : done;
}

Halide::Expr Hopper::begin(const TensorTask &task, const Expr &token) {
  Expr done = token;
  if (!tiles.copy_warpgroup) {
    done = copy_queries(task, done);
    for (int s = 0; s < tiles.stages - 1; s++) {
      done = copy_block(task, task.k, k_, s, done);
      // With overlap, values are used a step later, and so come free a step later.
      if (!tiles.overlap || s < tiles.stages - 2) done = copy_block(task, task.v, v_, s, done);
    }
  }
  done = ops.fill("%O", tiles.outputs(), 0.f, done);
  return tiles.ahead ? done : wait(q_.full, query_phase(task.round), done);
}

// Where there is no such task, what is multiplied is what lies there, and nobody reads the result.
Halide::Expr Hopper::start_scores(const Expr &round, const Expr &steps_before, const Expr &group,
                                  const Expr &token) {
  const Expr place = round & (kTaskPlaces - 1), queries = query_place(round);
  const auto wait_for = [](const std::string &label, const std::string &barrier, const std::string &parity) {
    return "\t" + label + "$u: mbarrier.try_wait.parity.shared::cta.b64 q, [" + barrier + "], " + parity +
           "; @!q bra " + label + "$u;\n";
  };
  const Expr there = ops.ptx.effect(
      "\t{ .reg .b32 posted, task, queries, keys, steps; .reg .pred p, q; add.u32 posted, %shared, $0; "
      "add.u32 "
      "task, %shared, $2; add.u32 queries, %shared, $3; add.u32 keys, %shared, $5;\n" +
          wait_for("POSTED", "posted", "$1") +
          "\tld.shared.b32 steps, [task+16]; setp.le.s32 p, steps, 0; @p bra NONE$u;\n" +
          wait_for("QUERIES", "queries", "$4") + wait_for("KEYS", "keys", "$6") + "\tNONE$u: }\n",
      {posted_ + place * 8, cast<int>(cast<uint32_t>(round) / kTaskPlaces % 2), tasks_ + place * kTaskBytes,
       q_.full + queries * 8, query_phase(round), k_.full + stage(steps_before) * 8, phase(steps_before),
       token});
  return pass_turn(multiply_keys(queries_of(round, group), tile(k_, steps_before), there));
}

Halide::Expr Hopper::scores(const TensorTask &task, const Step &step, const Expr &group, const Expr &token) {
  const Expr j = task.steps_before + step.index;
  Expr done = token;
  if (tiles.ahead && step.is_first) return release(k_.empty + stage(j) * 8, wait_products(0, done));
  if (!tiles.copy_warpgroup) {
    done = copy_block(task, task.k, k_, step.index + tiles.stages - 1, done);
    done = copy_block(task, task.v, v_, step.index + tiles.stages - (tiles.overlap ? 2 : 1), done);
  }
  done = wait(k_.full + stage(j) * 8, phase(j), done);
  done = multiply_keys(queries_of(task.round, group), tile(k_, j), take_turn(done));
  const bool with_values = tiles.overlap && !step.is_first;
  if (with_values) done = multiply_values(j - 1, done);
  done = pass_turn(done);
  done = wait_products(with_values ? 1 : 0, done);
  return release(k_.empty + stage(j) * 8, done);
}

// Biases that are lower than any visible score, but not -infinity, become the lowest one; they are rare.
std::string Hopper::clamp_bias() const {
  const int count = tiles.scores() / 2;
  std::string text = "\tmov.b32 least, %B0;\n";
  for (int i = 1; i < count; i++) text += "\tmin.bf16x2 least, least, %B" + number(i) + ";\n";
  const std::string lowest = "0fFF1D0000";  // about kLowestVisible
  text +=
      "\tand.b32 high, least, 0xffff0000; shl.b32 low, least, 16; min.f32 low, low, high; setp.lt.f32 p, "
      "low, " +
      lowest + "; vote.sync.any.pred p, p, 0xffffffff; @!p bra HIGH$u;\n";
  for (int i = 0; i < count; i++) {
    const std::string b = "%B" + number(i);
    text += "\tand.b32 high, " + b + ", 0xffff0000; shl.b32 low, " + b + ", 16;\n";
    for (const char *half : {"high", "low"}) {
      // A NaN is neither lower nor higher, and stays.
      text += std::string("\tsetp.lt.f32 p, ") + half + ", " + lowest + "; setp.neu.and.f32 p, " + half +
              ", 0fFF800000, p; @p mov.b32 " + half + ", " + lowest + ";\n";
    }
    text += "\tshr.u32 low, low, 16; or.b32 " + b + ", high, low;\n";
  }
  return text + "\tHIGH$u:\n";
}

Halide::Expr Hopper::load_bias(const TensorTask &task, const Step &step, const Expr &token) {
  const Expr j = task.steps_before + step.index, place = j & (tiles.bias_places - 1);
  const Expr there =
      wait(bias_.full + place * 8, cast<int>(cast<uint32_t>(j) / tiles.bias_places % 2), token);
  std::string text =
      "\t{ .reg .b32 at, to; .reg .b32 least, high, low; .reg .pred p; add.u32 at, %shared, $0;\n";
  for (int piece = 0; piece < tiles.keys / 8; piece += 2) {
    text += "\txor.b32 to, %bias, " + number(piece % 8 * 16) +
            "; add.u32 to, to, at; ldmatrix.sync.aligned.m8n8.x4.shared.b16 " +
            register_list("%B", 2 * piece, 4) + ", [to+" + number(piece / 8 * bias_.chunk_bytes) + "];\n";
  }
  const Expr loaded = ops.ptx.effect(text + (is_bfloat ? clamp_bias() : "") + "\t}\n",
                                     {bias_.tiles + place * bias_bytes(), there});
  return release(bias_.empty + place * 8, loaded);
}

Halide::Expr Hopper::accumulate(const TensorTask &task, const Step &step, const std::vector<Expr> &decay,
                                const std::vector<Expr> &weights, const Expr &token) {
  const Expr j = task.steps_before + step.index;
  Expr done = token;
  if (tiles.overlap && !step.is_first) {
    // A wait for the next values, which must come anyway, starts a new basic block: without one ptxas moves
    // the wait for the products before the exponentials, and nothing overlaps. It pays where a bias makes the
    // exponentials' block long (491 -> 571 TFLOP/s), and costs where there is none (670 -> 621).
    if (tiles.early_value_wait) done = wait(v_.full + stage(j) * 8, phase(j), done);
    done = wait_products(0, done);
    done = release(v_.empty + stage(j - 1) * 8, done);
  }
  if (!step.is_first) done = scale_outputs(decay, done);
  // Only now is the product that reads %P over. Earlier, ptxas would wait for each product (warning C7513).
  done = pack_weights(weights, done);
  if (tiles.overlap) return done;
  done = multiply_values(j, done);
  done = wait_products(0, done);
  return release(v_.empty + stage(j) * 8, done);
}

Halide::Expr Hopper::finish(const TensorTask &task, const Expr &token) {
  Expr done = token;
  if (tiles.copy_warpgroup) done = release(q_.empty + query_place(task.round) * 8, done);
  if (tiles.ahead) done = take_turn(done);
  if (tiles.overlap) done = multiply_values(task.steps_before + task.steps - 1, done);
  return done;
}

Halide::Expr Hopper::wait_for_outputs(const TensorTask &task, const Expr &token) {
  if (!tiles.overlap) return token;
  const Expr last = task.steps_before + task.steps - 1;
  return release(v_.empty + stage(last) * 8, wait_products(tiles.ahead ? 1 : 0, token));
}

}  // namespace posattn
