#include "lowering/ampere.h"

#include <algorithm>

namespace posattn {

using Halide::cast;

namespace {

// Which register a thread's copy goes by when it is so many rows further down. Blocks of threads have at
// least four such rows: where it is not a multiple of eight, its piece's place in the permuted row is 64
// bytes away.
std::string place(int rows_down) { return rows_down % 8 == 0 ? "to" : "far"; }

}  // namespace

Ampere::Ampere(InlinePtx &ptx, const TensorTiles &tiles, bool is_bfloat, int bytes)
    : TensorBackend(ptx, tiles, is_bfloat), bytes_(bytes), chunks_((tiles.head_dim * bytes + 127) / 128) {
  ptx.in_module(".extern .shared .align 1024 .b8 posattn_shared[];");
  // Where a thread copies to and reads from in a tile, and its first row and piece of a row.
  for (const char *name : {".b32 %shared", ".b32 %copy", ".b32 %row", ".b32 %piece", ".b32 %across<4>",
                           ".b32 %along<4>", ".b32 %warp", ".f32 %zero"}) {
    ptx.declare_register(name);
  }
  if (!tiles.shared_queries) {
    ptx.declare_register(".b32 %Q<" + number(tiles.row_tiles * tiles.head_dim / 4) + ">");
  }
  ptx.declare_register(".b32 %P<" + number(tiles.scores() * bytes / 4) + ">");
  if (tiles.streams) declare_stream();
  std::string text =
      "\t{ .reg .b32 thread, lane, a, b, c; mov.u32 %shared, posattn_shared; mov.f32 %zero, 0f00000000;\n"
      "\tmov.u32 thread, %tid.x; mov.u32 a, %tid.y; mad.lo.u32 thread, a, 128, thread;\n"
      "\tand.b32 lane, thread, 31; shr.u32 %warp, thread, 5; and.b32 %piece, thread, 7; shr.u32 %row, "
      "thread, 3;\n"
      "\tand.b32 a, %row, 7; xor.b32 a, a, %piece; shl.b32 a, a, 4; mad.lo.u32 %copy, %row, 128, a;\n";
  for (int j = 0; j < 4; j++) {
    // Keys: matrices 0 and 1 are side by side, 2 and 3 eight rows below. Values and queries: 1 is below 0.
    text += "\tshr.u32 a, lane, 4; shr.u32 b, lane, 3; and.b32 b, b, 1; and.b32 c, lane, 7;\n";
    for (const bool is_key : {true, false}) {
      const std::string below = is_key ? "a" : "b", beside = is_key ? "b" : "a";
      text += "\t{ .reg .b32 r, p; mad.lo.u32 r, " + below + ", 8, c; add.u32 p, " + beside + ", " +
              number(2 * j) + "; xor.b32 p, p, c; shl.b32 p, p, 4; mad.lo.u32 " +
              (is_key ? "%across" : "%along") + number(j) + ", r, 128, p; }\n";
    }
  }
  ptx.at_entry(text + "\t}\n");
}

int Ampere::shared_bytes() const {
  const int blocks = 2 * tiles.stages * tile_bytes(), queries = chunks_ * tiles.rows() * 128;
  return tiles.shared_queries ? blocks + queries : std::max(blocks, queries);
}

// Copies `rows` rows. What lies beyond the tensor, in channels or tokens, arrives as zeros.
Halide::Expr Ampere::copy_tile(const TensorSource &source, const Expr &exists, const Expr &first_row,
                               const Expr &head, const Expr &batch, int rows, const Expr &to,
                               const Expr &token) {
  const Expr start =
      source.address +
      cast<uint64_t>((cast<int64_t>(source.batch_stride) * batch + cast<int64_t>(source.head_stride) * head) *
                     bytes_);
  const int step = threads() / 8;
  std::string text =
      "\t{ .reg .b64 from, at, bytes; .reg .b32 to, far, row, size, whole, left; .reg .pred p, q, here;\n"
      "\tsetp.ne.s32 here, $0, 0; @!here bra SKIP$u;\n" +
      // Threads that have no row.
      (rows < step ? "\tsetp.lt.u32 here, %row, " + number(rows) + "; @!here bra SKIP$u;\n" : std::string()) +
      "\tadd.s32 row, $2, %row; mul.wide.s32 bytes, row, $3; mul.lo.s64 bytes, bytes, " + number(bytes_) +
      "; add.s64 from, $1, bytes;\n"
      "\tmul.wide.u32 bytes, %piece, 16; add.s64 from, from, bytes; cvta.to.global.u64 from, from;\n"
      "\tmul.wide.s32 bytes, $3, " +
      number(step * bytes_) + "; add.u32 to, %shared, %copy; add.u32 to, to, $6; xor.b32 far, to, 64;\n";
  for (int c = 0; c < chunks_; c++) {
    // Bytes of this piece that exist.
    text += "\tshl.b32 whole, %piece, 4; sub.s32 left, $5, whole; sub.s32 left, left, " + number(c * 128) +
            "; max.s32 left, left, 0; min.s32 whole, left, 16; add.s64 at, from, " + number(c * 128) +
            "; add.s32 row, $2, %row;\n";
    const int pieces = std::min(8, tiles.head_dim * bytes_ / 16 - 8 * c);
    if (pieces < 8) text += "\tsetp.lt.u32 q, %piece, " + number(pieces) + ";\n";
    for (int i = 0; i < std::max(rows / step, 1); i++) {
      text += "\tsetp.lt.s32 p, row, $4; selp.b32 size, whole, 0, p; " +
              std::string(pieces < 8 ? "@q " : "") + "cp.async.cg.shared.global [" + place(i * step) + "+" +
              number(c * rows * 128 + i * step * 128) +
              "], [at], 16, size; add.s64 at, at, bytes; add.s32 row, row, " + number(step) + ";\n";
    }
  }
  return ops.ptx.effect(text + "\tSKIP$u: }\n", {cast<int>(exists), start, first_row, source.token_stride,
                                                 source.tokens, source.channels * bytes_, to, token});
}

// Queries row by row, wherever they are. Rows past the last one repeat it.
Halide::Expr Ampere::copy_rows(const TensorTask &task, const Expr &token) {
  const int step = threads() / 8;
  std::string text =
      "\t{ .reg .b64 at, along; .reg .b32 to, far, whole, left; .reg .pred q;\n"
      "\tmul.wide.u32 along, %piece, 16; add.u32 to, %shared, %copy; add.u32 to, to, " +
      number(query_tile()) + "; xor.b32 far, to, 64;\n";
  for (int c = 0; c < chunks_; c++) {
    const int pieces = std::min(8, tiles.head_dim * bytes_ / 16 - 8 * c);
    text += "\tshl.b32 whole, %piece, 4; sub.s32 left, $0, whole; sub.s32 left, left, " + number(c * 128) +
            "; max.s32 left, left, 0; min.s32 whole, left, 16; setp.lt.u32 q, %piece, " + number(pieces) +
            ";\n";
    for (int i = 0; i < tiles.rows() / step; i++) {
      text += "\tadd.s64 at, $" + number(i + 1) +
              ", along; cvta.to.global.u64 at, at; @q cp.async.cg.shared.global [" + place(i * step) + "+" +
              number(c * tiles.rows() * 128 + i * step * 128) + "], [at+" + number(c * 128) +
              "], 16, whole;\n";
    }
  }
  std::vector<Expr> arguments = task.row_addresses(token);
  arguments.insert(arguments.begin(), task.q.channels * bytes_);
  arguments.push_back(token);
  return ops.ptx.effect(text + "\t}\n", arguments);
}

Halide::Expr Ampere::copy_block(const TensorTask &task, const Expr &step, const Expr &token) {
  if (tiles.streams) return ops.ptx.effect("\tcp.async.commit_group;", {copy_stream(task, step, token)});
  const Expr stage = (step & (tiles.stages - 1)) * tile_bytes(), first = task.block(step) * tiles.keys;
  const Expr exists = step < task.steps;
  Expr done = copy_tile(task.k, exists, first, task.kv_head, task.batch, tiles.keys, stage, token);
  done = copy_tile(task.v, exists, first, task.kv_head, task.batch, tiles.keys,
                   stage + tiles.stages * tile_bytes(), done);
  return ops.ptx.effect("\tcp.async.commit_group;", {done});
}

Halide::Expr Ampere::wait_copies(int pending, const Expr &token) {
  const std::string barrier = threads() == 32 ? "bar.warp.sync 0xffffffff;" : "bar.sync 0;";
  return ops.ptx.effect("\tcp.async.wait_group " + number(pending) + "; " + barrier, {token});
}

// Into four registers for each row tile, `at` being the warp's first row.
std::string Ampere::load_query_step(int k, const std::string &to) const {
  const int row_tile = 16 * 128, chunk = tiles.rows() * 128;
  std::string text = "\tadd.u32 a, at, %along" + number(k % 4) + ";\n";
  for (int m = 0; m < tiles.row_tiles; m++) {
    const int first = to == "%Q" ? (m * steps_of_row() + k) * 4 : m * 4;
    text += "\tldmatrix.sync.aligned.m8n8.x4.shared.b16 " + register_list(to, first, 4) + ", [a+" +
            number(query_tile() + k / 4 * chunk + m * row_tile) + "];\n";
  }
  return text;
}

Halide::Expr Ampere::load_queries(const Expr &token) {
  std::string text =
      "\t{ .reg .b32 at, a; mad.lo.u32 at, %warp, " + number(tiles.row_tiles * 16 * 128) + ", %shared;\n";
  for (int k = 0; k < steps_of_row(); k++) text += load_query_step(k, "%Q");
  return ops.ptx.effect(text + "\tbar.sync 0; }\n", {token});
}

std::string Ampere::multiply(const std::string &sum, int first, const std::string &a, const std::string &b,
                             bool from_zero) const {
  const std::string registers = register_list(sum, first, 4);
  return "\tmma.sync.aligned.m16n8k16.row.col.f32." + type_name() + "." + type_name() + ".f32 " + registers +
         ", " + a + ", " + b + ", " + (from_zero ? "{%zero,%zero,%zero,%zero}" : registers) + ";\n";
}

// %S = the queries times the keys.
Halide::Expr Ampere::multiply_keys(const Expr &keys, const Expr &token) {
  const int columns = tiles.keys / 8, steps = steps_of_row();
  std::string text = "\t{ .reg .b32 at, a, f<4>, keys, q<" + number(4 * tiles.row_tiles) +
                     ">; add.u32 keys, %shared, $0; mad.lo.u32 at, %warp, " +
                     number(tiles.row_tiles * 16 * 128) + ", %shared;\n";
  for (int k = 0; k < steps; k++) {
    if (tiles.shared_queries) text += load_query_step(k, "q");
    text += "\tadd.u32 a, keys, %across" + number(k % 4) + ";\n";
    for (int n = 0; n < columns; n += 2) {
      text += "\tldmatrix.sync.aligned.m8n8.x4.shared.b16 {f0,f1,f2,f3}, [a+" +
              number(k / 4 * tiles.keys * 128 + n * 8 * 128) + "];\n";
      for (int m = 0; m < tiles.row_tiles; m++) {
        for (int side = 0; side < 2; side++) {
          const std::string queries = tiles.shared_queries ? register_list("q", m * 4, 4)
                                                           : register_list("%Q", (m * steps + k) * 4, 4);
          text += multiply("%S", (m * columns + n + side) * 4, queries, side == 0 ? "{f0,f1}" : "{f2,f3}",
                           k == 0);
        }
      }
    }
  }
  return ops.ptx.effect(text + "\t}\n", {keys, token});
}

// %O += the weights in %P times the values.
Halide::Expr Ampere::multiply_values(const Expr &values, const Expr &token) {
  const int columns = tiles.head_dim / 8, steps = tiles.keys / 16;
  std::string text = "\t{ .reg .b32 at, a, f<4>; add.u32 at, %shared, $0;\n";
  for (int k = 0; k < steps; k++) {
    for (int n = 0; n < columns; n += 2) {
      text += "\tadd.u32 a, at, %along" + number(n / 2 % 4) +
              "; ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {f0,f1,f2,f3}, [a+" +
              number(n / 8 * tiles.keys * 128 + k * 16 * 128) + "];\n";
      for (int m = 0; m < tiles.row_tiles; m++) {
        for (int side = 0; side < 2; side++) {
          text += multiply("%O", (m * columns + n + side) * 4, register_list("%P", (m * steps + k) * 4, 4),
                           side == 0 ? "{f0,f1}" : "{f2,f3}", false);
        }
      }
    }
  }
  return ops.ptx.effect(text + "\t}\n", {values, token});
}

Halide::Expr Ampere::setup(const std::vector<TensorTask> &, const Expr &token) { return token; }

Halide::Expr Ampere::begin(const TensorTask &task, const Expr &token) {
  if (tiles.streams) {
    // Keys first: what it takes to find the queries is done while they come.
    Expr done = copy_rows(task, copy_stream(task, 0, begin_stream(task, token)));
    done = ops.ptx.effect("\tcp.async.commit_group;", {done});
    for (int s = 1; s < tiles.stages - (copies_ahead() ? 0 : 1); s++) done = copy_block(task, s, done);
    return ops.fill("%O", tiles.outputs(), 0.f, done);
  }
  Expr done =
      copy_tile(task.q, Expr(true), task.first_row, task.head, task.batch, tiles.rows(), query_tile(), token);
  // Those that go on to registers pass through the place of the keys. Others are waited for with the keys.
  if (!tiles.shared_queries) {
    done = load_queries(wait_copies(0, ops.ptx.effect("\tcp.async.commit_group;", {done})));
  }
  for (int s = 0; s < tiles.stages - 1; s++) done = copy_block(task, s, done);
  return ops.fill("%O", tiles.outputs(), 0.f, done);
}

Halide::Expr Ampere::scores(const TensorTask &task, const Step &step, const Expr &, const Expr &token) {
  Expr done = wait_copies(copies_ahead() ? tiles.stages - 1 : tiles.stages - 2, token);
  // Every warp is done with the block before: its place is free.
  if (!copies_ahead()) done = copy_block(task, step.index + tiles.stages - 1, done);
  return multiply_keys((step.index & (tiles.stages - 1)) * tile_bytes(), done);
}

Halide::Expr Ampere::accumulate(const TensorTask &task, const Step &step, const std::vector<Expr> &decay,
                                const std::vector<Expr> &weights, const Expr &token) {
  Expr done = token;
  if (!step.is_first) done = scale_outputs(decay, done);
  done = keep_weights(weights, done);
  done =
      multiply_values((step.index & (tiles.stages - 1)) * tile_bytes() + tiles.stages * tile_bytes(), done);
  if (!copies_ahead()) return done;
  // A single warp is done with this block itself.
  return copy_block(task, step.index + tiles.stages, ops.ptx.effect("\tbar.warp.sync 0xffffffff;", {done}));
}

Halide::Expr Ampere::finish(const TensorTask &, const Expr &token) { return token; }
Halide::Expr Ampere::wait_for_outputs(const TensorTask &, const Expr &token) { return token; }

}  // namespace posattn
