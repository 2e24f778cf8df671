// How a single warp streams keys and values through shared memory (TensorTiles::streams). Before its first
// load, and between two blocks, nothing else happens, so that every instruction there is time in which less
// memory is on its way.
#include "lowering/ampere.h"

namespace posattn {

using Halide::cast;

namespace {

constexpr int kRowsDown = 4;  // rows of a tile that the warp's threads copy at a time, 128 bytes of each

}  // namespace

// Where the thread's piece of the first row is in the keys (0) and values (1), how far it is from there to
// its next row, and whether rows are as long as a tile's.
void Ampere::declare_stream() {
  for (const char *name : {".b64 %from<2>", ".b64 %down<2>", ".b32 %whole"}) ops.ptx.declare_register(name);
}

Halide::Expr Ampere::begin_stream(const TensorTask &task, const Expr &token) {
  // The first access to memory but for lengths.
  std::string text = std::string(tiles.starts_early ? "\tgriddepcontrol.wait;\n" : "") +
                     "\t{ .reg .b64 a; .reg .pred p; setp.eq.s32 p, $4, " +
                     number(int64_t{tiles.head_dim} * bytes_) + "; setp.eq.and.s32 p, $5, " +
                     number(int64_t{tiles.head_dim} * bytes_) + ", p; selp.b32 %whole, 1, 0, p;\n";
  std::vector<Expr> starts, strides;
  for (const TensorSource *source : {&task.k, &task.v}) {
    starts.push_back(source->address + cast<uint64_t>((cast<int64_t>(source->batch_stride) * task.batch +
                                                       cast<int64_t>(source->head_stride) * task.kv_head) *
                                                      bytes_));
    strides.push_back(source->token_stride);
  }
  for (int i = 0; i < 2; i++) {
    const std::string from = "%from" + number(i), down = "%down" + number(i), stride = "$" + number(2 + i);
    text += "\tmul.wide.s32 a, %row, " + stride + "; mul.lo.s64 a, a, " + number(bytes_) +
            "; add.s64 a, a, $" + number(i) + "; mul.wide.u32 " + down + ", %piece, 16; add.s64 a, a, " +
            down + "; cvta.to.global.u64 " + from + ", a; mul.wide.s32 " + down + ", " + stride + ", " +
            number(kRowsDown * bytes_) + ";\n";
  }
  return ops.ptx.effect(text + "\t}\n", {starts[0], starts[1], strides[0], strides[1],
                                         task.k.channels * bytes_, task.v.channels * bytes_, token});
}

// A block of keys and values. What lies beyond the tensors arrives as zeros.
Halide::Expr Ampere::copy_stream(const TensorTask &task, const Expr &step, const Expr &token) {
  const int keys = tiles.keys, row_pieces = tiles.head_dim * bytes_ / 16;
  // The copy of a row's piece of chunk c, so many rows down, from `at`.
  const auto copy = [&](int tensor, int chunk, int down, const std::string &size) {
    const int pieces = row_pieces - 8 * chunk, value_tiles = tensor * tiles.stages * tile_bytes();
    return std::string(pieces < 8 ? "@q " : "") + "cp.async.cg.shared.global [" +
           (down % 8 == 0 ? "to" : "far") + "+" + number(value_tiles + chunk * keys * 128 + down * 128) +
           "], [at+" + number(chunk * 128) + "], 16" + size + ";";
  };
  std::string text =
      "\t{ .reg .b64 at; .reg .b32 to, far, left, have, row, i, size; .reg .pred p, q, here, whole;\n"
      "\tsetp.ne.s32 here, $0, 0; @!here bra SKIP$u;\n"
      "\tadd.u32 to, %shared, %copy; add.u32 to, to, $2; xor.b32 far, to, 64; sub.s32 left, $3, $1;\n";
  if (row_pieces % 8 != 0) text += "\tsetp.lt.u32 q, %piece, " + number(row_pieces % 8) + ";\n";
  const auto start = [&](int tensor) {
    const std::string t = number(tensor);
    return "\tmul.wide.s32 at, $1, $" + number(4 + tensor) + "; mul.lo.s64 at, at, " + number(bytes_) +
           "; add.s64 at, at, %from" + t + ";\n";
  };
  text += "\tsetp.ge.s32 whole, left, " + number(keys) +
          "; setp.ne.and.s32 whole, %whole, 0, whole; @!whole bra EDGE$u;\n";
  for (int tensor = 0; tensor < 2; tensor++) {
    text += start(tensor);
    for (int down = 0; down < keys; down += kRowsDown) {
      text += "\t";
      for (int c = 0; c < chunks_; c++) text += copy(tensor, c, down, "") + " ";
      text += "add.s64 at, at, %down" + number(tensor) + ";\n";
    }
  }
  // Where some of it does not exist, which is once a stream at most, as few instructions as can be: code has
  // to be fetched, too.
  text += "\tbra SKIP$u;\n\tEDGE$u:\n";
  for (int tensor = 0; tensor < 2; tensor++) {
    const std::string loop = "LOOP$u_" + number(tensor);
    text += start(tensor) + "\tmov.u32 i, 0; mov.u32 row, %row; shl.b32 have, %piece, 4; sub.s32 have, $" +
            number(6 + tensor) + ", have;\n\t" + loop + ":\n\t.pragma \"nounroll\";\n";
    for (int down = 0; down < 2 * kRowsDown; down += kRowsDown) {
      text += "\tsetp.lt.s32 p, row, left; add.s32 row, row, " + number(kRowsDown) + ";\n";
      for (int c = 0; c < chunks_; c++) {
        text += "\tsub.s32 size, have, " + number(c * 128) +
                "; max.s32 size, size, 0; min.s32 size, size, 16; selp.b32 size, size, 0, p; " +
                copy(tensor, c, down, ", size") + "\n";
      }
      text += "\tadd.s64 at, at, %down" + number(tensor) + ";\n";
    }
    const std::string next = number(2 * kRowsDown * 128);
    text += "\tadd.u32 to, to, " + next + "; add.u32 far, far, " + next + "; add.s32 i, i, " +
            number(2 * kRowsDown) + "; setp.lt.s32 p, i, " + number(keys) + "; @p bra " + loop +
            ";\n\tsub.u32 to, to, " + number(keys * 128) + "; sub.u32 far, far, " + number(keys * 128) +
            ";\n";
  }
  const Expr stage = (step & (tiles.stages - 1)) * tile_bytes();
  return ops.ptx.effect(text + "\tSKIP$u: }\n", {cast<int>(step < task.steps), task.block(step) * keys, stage,
                                                 task.k.tokens, task.k.token_stride, task.v.token_stride,
                                                 task.k.channels * bytes_, task.v.channels * bytes_, token});
}

}  // namespace posattn
