#include "lowering/hopper_float.h"

#include <algorithm>
#include <stdexcept>

#include "lowering/tf32.h"
#include "lowering/wgmma.h"

namespace posattn {

namespace {

constexpr int kChannels = 32;   // of a chunk, a row of 128 bytes
constexpr int kChunkSteps = 4;  // eight channels or keys each

// Where sums of every other group of products are.
const char *const kPartial[] = {"%T", "%U"};

std::string wait_products(int pending) {
  return "\twgmma.wait_group.sync.aligned " + number(pending) + ";\n";
}
const char *const kVisibleToProducts = "\tfence.proxy.async.shared::cta;\n";

}  // namespace

HopperFloat::HopperFloat(InlinePtx &ptx, const TensorTiles &tiles) : Ampere(ptx, tiles, false, 4) {
  if (!tiles.shared_queries || tiles.stages != 1 || tiles.row_tiles != 1)
    throw std::logic_error("tiles that float32 on Hopper does not take");
  if (tiles.keys % kChannels != 0 || tiles.head_dim % kChannels != 0)
    throw std::logic_error("chunks of float32 are of 32 keys or channels");
  // Sums of some products of queries and keys, and of a block's weighted values.
  for (const char *name : kPartial)
    ptx.declare_register(".f32 " + (name + ("<" + number(tiles.scores()) + ">")));
  ptx.declare_register(".f32 %N<" + number(tiles.outputs()) + ">");
  ptx.declare_register(".b32 %H<" + number(tiles.scores()) + ">");  // high parts of the weights
  ptx.declare_register(".pred %always");
  ptx.declare_register(".pred %never");
  ptx.at_entry("\t{ .reg .b32 a; mov.u32 a, 0; setp.eq.u32 %always, a, 0; setp.ne.u32 %never, a, 0; }\n");
}

// The copies of keys and of values are groups of their own.
Halide::Expr HopperFloat::copy_keys(const TensorTask &task, const Expr &step, const Expr &token) {
  const Expr copied = copy_tile(task.k, step < task.steps, task.block(step) * tiles.keys, task.kv_head,
                                task.batch, tiles.keys, 0, token);
  return ops.ptx.effect("\tcp.async.commit_group;", {copied});
}
Halide::Expr HopperFloat::copy_values(const TensorTask &task, const Expr &step, const Expr &token) {
  const Expr copied = copy_tile(task.v, step < task.steps, task.block(step) * tiles.keys, task.kv_head,
                                task.batch, tiles.keys, tile_bytes(), token);
  return ops.ptx.effect("\tcp.async.commit_group;", {copied});
}

// Keys become their high parts. Pieces of 16 bytes stay where they are.
Halide::Expr HopperFloat::split_keys(const Expr &token) {
  const int step = threads() * 16;
  std::string text = "\t{ .reg .b32 at, x<4>, " + split_names("x", 4) +
                     "; mov.u32 at, %tid.x; { .reg .b32 y; mov.u32 y, %tid.y; mad.lo.u32 at, y, 128, at; "
                     "mad.lo.u32 at, at, 16, %shared; }\n";
  for (int offset = 0; offset < tile_bytes(); offset += step) {
    text += "\tld.shared.v4.b32 {x0,x1,x2,x3}, [at+" + number(offset) + "];\n";
    for (int i = 0; i < 4; i++) text += split_tf32("x" + number(i), "x" + number(i));
    text += "\tst.shared.v4.b32 [at+" + number(offset) + "], {x0h,x1h,x2h,x3h}; st.shared.v4.b32 [at+" +
            number(keys_low() + offset) + "], {x0l,x1l,x2l,x3l};\n";
  }
  return ops.ptx.effect(text + kVisibleToProducts + "\t}\n", {token});
}

// A warp takes eight keys of 32 channels at a time, a lane one channel. The four even keys come before the
// odd ones: a thread's weights of two neighbours are the columns t and t + 4 of a product's operand.
Halide::Expr HopperFloat::split_values(const Expr &token) {
  const int warps = threads() / 32, parts = chunks_ * tiles.keys / 8;
  std::string text =
      "\t{ .reg .b32 lane, a, b, row, along<8>, part, chunk, group, from, to, x<8>, " + split_names("x", 8) +
      "; .reg .pred p;\n\tmov.u32 lane, %tid.x; and.b32 lane, lane, 31; and.b32 row, lane, 7;\n"
      "\tshr.u32 a, lane, 2; shl.b32 a, a, 4; and.b32 b, lane, 3; shl.b32 b, b, 2; or.b32 a, a, b;\n";
  for (int r = 0; r < 8; r++) text += "\txor.b32 along" + number(r) + ", a, " + number(16 * r) + ";\n";
  for (int i = 0; i < parts; i += warps) {
    const std::string skip = "SKIP$u_" + number(i);
    text += "\tadd.u32 part, %warp, " + number(i) + ";";
    if (i + warps > parts) text += " setp.ge.u32 p, part, " + number(parts) + "; @p bra " + skip + ";";
    text += " rem.u32 chunk, part, " + number(chunks_) + "; div.u32 group, part, " + number(chunks_) +
            ";\n\tmad.lo.u32 from, chunk, " + number(tiles.keys * 128) +
            ", %shared; mad.lo.u32 from, group, " + number(8 * 128) + ", from; add.u32 from, from, " +
            number(tile_bytes()) + ";\n";
    for (int r = 0; r < 8; r++) {
      text += "\tadd.u32 a, from, along" + number(r) + "; ld.shared.b32 x" + number(r) + ", [a+" +
              number(r * 128) + "];\n";
    }
    text += "\tshr.u32 a, group, 2; mad.lo.u32 to, a, " + number(tiles.head_dim * 128) +
            ", %shared; mad.lo.u32 a, chunk, 32, lane; mad.lo.u32 to, a, 128, to; and.b32 b, group, 3; "
            "shl.b32 b, b, 1; xor.b32 b, b, row; shl.b32 b, b, 4; add.u32 to, to, b; xor.b32 a, to, 16;\n";
    for (int r = 0; r < 8; r++) text += split_tf32("x" + number(r), "x" + number(r));
    for (int odd = 0; odd < 2; odd++) {
      for (const char *part : {"h", "l"}) {
        text += std::string("\tst.shared.v4.b32 [") + (odd ? "a" : "to") + "+" +
                number(*part == 'h' ? values_high() : values_low()) + "], {";
        for (int r = odd; r < 8; r += 2) text += (r > 1 ? "," : "") + ("x" + number(r)) + part;
        text += "};\n";
      }
    }
    text += "\t" + skip + ":\n";
  }
  return ops.ptx.effect(text + kVisibleToProducts + "\t}\n", {token});
}

std::string HopperFloat::product(int columns, const std::string &sum, const std::string &a,
                                 const std::string &descriptor, bool from_zero) const {
  return "\twgmma.mma_async.sync.aligned.m64n" + number(columns) + "k8.f32.tf32.tf32 " +
         register_list(sum, 0, columns / 2) + ", " + a + ", " + descriptor + ", " +
         (from_zero ? "%never" : "%always") + ", 1, 1;\n";
}

// %S += a group's sum.
std::string HopperFloat::add_scores(int group) const {
  std::string text;
  for (int i = 0; i < tiles.scores(); i++) {
    const std::string to = "%S" + number(i), from = kPartial[group % 2] + number(i);
    text += group == 0 ? "\tmov.b32 " + to + ", " + from + ";\n"
                       : "\tadd.f32 " + to + ", " + to + ", " + from + ";\n";
  }
  return text;
}

// %S = the queries times the keys, but for the last two groups' sums. Tensor cores cut their sums off, so
// that sums of many products are too small: few are summed there, the small ones first, and these sums are
// added by instructions that round. Meanwhile the next group is multiplied, and queries of the one after are
// split.
Halide::Expr HopperFloat::multiply_keys(const Expr &keys, const Expr &token) {
  const int chunk = tiles.keys * 128 / 16;
  std::string text = "\t{ .reg .b32 at, a, b; .reg .b64 high, low, to_high, to_low; mad.lo.u32 at, %warp, " +
                     number(16 * 128) + ", %shared;\n" + "\tadd.u32 b, %shared, $0;\n" +
                     wgmma_descriptor("high", "b", 16, 1024) + "\tadd.u32 b, b, " + number(keys_low()) +
                     ";\n" + wgmma_descriptor("low", "b", 16, 1024);
  for (int group = 0; group < score_groups(); group++) {
    if (group >= 2) text += wait_products(1) + add_scores(group - 2);
    const std::string q = "q" + number(group) + "_";
    text +=
        "\t.reg .b32 " + q + "<" + number(4 * kGroupSteps) + ">, " + split_names(q, 4 * kGroupSteps) + ";\n";
    const auto chunk_of = [&](int k) { return (group * kGroupSteps + k) / kChunkSteps; };
    const auto inside = [&](int k) { return (group * kGroupSteps + k) % kChunkSteps; };
    for (int k = 0; k < kGroupSteps; k++) {
      text += "\tadd.u32 a, at, %along" + number(inside(k)) + "; ldmatrix.sync.aligned.m8n8.x4.shared.b16 " +
              register_list(q, 4 * k, 4) + ", [a+" + number(query_tile() + chunk_of(k) * tiles.rows() * 128) +
              "];\n";
    }
    for (int i = 0; i < 4 * kGroupSteps; i++) text += split_tf32(q + number(i), q + number(i));
    text += "\twgmma.fence.sync.aligned;\n";
    for (const bool small : {true, false}) {
      for (int k = 0; k < kGroupSteps; k++) {
        const std::string step = number(chunk_of(k) * chunk + inside(k) * 2);
        const std::string low_queries = split_list(q, 4 * k, 'l'), high_queries = split_list(q, 4 * k, 'h');
        const auto add = [&](const std::string &a, const char *b, bool from_zero) {
          return product(tiles.keys, kPartial[group % 2], a, b, from_zero);
        };
        text += "\tadd.s64 to_high, high, " + step + "; add.s64 to_low, low, " + step + ";\n";
        text += small ? add(low_queries, "to_high", k == 0) + add(high_queries, "to_low", false)
                      : add(high_queries, "to_high", false);
      }
    }
    text += "\twgmma.commit_group.sync.aligned;\n";
  }
  return ops.ptx.effect(text + "\t}\n", {keys, token});
}

// %N = the weights in %H and %P, their low parts, times the values; the small products first.
Halide::Expr HopperFloat::multiply_values(const Expr &values, const Expr &token) {
  const int chunk = tiles.head_dim * 128 / 16, steps = tiles.keys / 8;
  std::string text = "\t{ .reg .b32 b; .reg .b64 high, low, to_high, to_low; add.u32 b, %shared, $0;\n" +
                     wgmma_descriptor("high", "b", 16, 1024) + "\tadd.u32 b, b, " + number(tile_bytes()) +
                     ";\n" + wgmma_descriptor("low", "b", 16, 1024) + "\twgmma.fence.sync.aligned;\n";
  // Columns 2t and 2t + 1 of the scores, each of two rows.
  const auto weights = [](const std::string &name, int k) {
    const auto w = [&](int i) { return name + number(4 * k + i); };
    return "{" + w(0) + "," + w(2) + "," + w(1) + "," + w(3) + "}";
  };
  for (const bool small : {true, false}) {
    for (int k = 0; k < steps; k++) {
      const std::string step = number(k / kChunkSteps * chunk + k % kChunkSteps * 2);
      text += "\tadd.s64 to_high, high, " + step + ";\n";
      if (!small) {
        text += product(tiles.head_dim, "%N", weights("%H", k), "to_high", false);
        continue;
      }
      text += "\tadd.s64 to_low, low, " + step + ";\n" +
              product(tiles.head_dim, "%N", weights("%P", k), "to_high", k == 0) +
              product(tiles.head_dim, "%N", weights("%H", k), "to_low", false);
    }
  }
  return ops.ptx.effect(text + "\twgmma.commit_group.sync.aligned;\n\t}\n", {values, token});
}

Halide::Expr HopperFloat::begin(const TensorTask &task, const Expr &token) {
  Expr done =
      copy_tile(task.q, Expr(true), task.first_row, task.head, task.batch, tiles.rows(), query_tile(), token);
  done = copy_values(task, 0, copy_keys(task, 0, done));
  return ops.fill("%O", tiles.outputs(), 0.f, done);
}

// Barriers in a step: when this block's keys are split and the values of the block before are multiplied;
// when its values are split and its keys multiplied; when the next keys are there.
Halide::Expr HopperFloat::scores(const TensorTask &, const Step &step, const Expr &, const Expr &token) {
  Expr done = token;
  if (step.is_first) done = split_keys(wait_copies(1, done));
  done = multiply_keys(0, wait_copies(0, done));
  done = split_values(done);
  std::string text = wait_products(0);
  for (int group = std::max(score_groups() - 2, 0); group < score_groups(); group++)
    text += add_scores(group);
  return ops.ptx.effect(text, {done});
}

Halide::Expr HopperFloat::accumulate(const TensorTask &task, const Step &step, const std::vector<Expr> &decay,
                                     const std::vector<Expr> &weights, const Expr &token) {
  std::string text = "\t{ .reg .b32 wh, wl;\n";
  for (int i = 0; i < tiles.scores(); i++) {
    text += split_tf32("w", "$" + number(i)) + "\tmov.b32 %H" + number(i) + ", wh; mov.b32 %P" + number(i) +
            ", wl;\n";
  }
  std::vector<Expr> arguments = weights;
  arguments.push_back(token);
  Expr done = ops.ptx.effect(text + "\tbar.sync 0; }\n", arguments);
  done = multiply_values(values_high(), done);
  done = copy_values(task, step.index + 1, copy_keys(task, step.index + 1, done));
  done = split_keys(wait_copies(1, done));
  text = wait_products(0);
  for (int i = 0; i < tiles.outputs(); i++) {
    const std::string o = "%O" + number(i);
    text += "\tfma.rn.ftz.f32 " + o + ", " + o + ", $" + number(tiles.row_of_output(i)) + ", %N" + number(i) +
            ";\n";
  }
  arguments = decay;
  arguments.push_back(done);
  return ops.ptx.effect(text, arguments);
}

}  // namespace posattn
