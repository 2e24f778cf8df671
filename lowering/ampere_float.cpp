#include "lowering/ampere_float.h"

#include <algorithm>
#include <stdexcept>

#include "lowering/tf32.h"

namespace posattn {

namespace {

std::string declare(const std::string &name, int count) {
  std::string text = "\t.reg .b32 ";
  for (int i = 0; i < count; i++) {
    const std::string each = name + number(i);
    text += (i > 0 ? ", " : "") + each + ", " + each + "h, " + each + "l";
  }
  return text + ";\n";
}
std::string parts(const std::string &name, int first, int count) {
  std::string text = "{";
  for (int i = 0; i < count; i++) text += (i > 0 ? "," : "") + name + number(first + i) + "*";
  return text + "}";
}

constexpr int kTogether = 4;  // products that go on at the same time

}  // namespace

AmpereFloat::AmpereFloat(InlinePtx &ptx, const TensorTiles &tiles) : Ampere(ptx, tiles, false, 4) {
  if (!tiles.shared_queries) throw std::logic_error("queries of float32 stay in shared memory");
  // Where a thread's channel of its first value lies: two rows of the tile make a pair of operands.
  ptx.declare_register(".b32 %value<8>");
  std::string text =
      "\t{ .reg .b32 lane, row, piece, a, b; mov.u32 lane, %tid.x; and.b32 lane, lane, 31;\n"
      "\tand.b32 row, lane, 3; shl.b32 row, row, 1; shr.u32 piece, lane, 4; shr.u32 b, lane, 2; "
      "and.b32 b, b, 3; shl.b32 b, b, 2;\n";
  for (int j = 0; j < 4; j++) {
    for (int odd = 0; odd < 2; odd++) {
      text +=
          "\tadd.u32 a, piece, " + number(2 * j) + "; xor.b32 a, a, row; " +
          (odd ? std::string("xor.b32 a, a, 1; ") : std::string()) +
          "shl.b32 a, a, 4; add.u32 a, a, b; mad.lo.u32 %value" + number(2 * j + odd) + ", row, 128, a;" +
          (odd ? " add.u32 %value" + number(2 * j + odd) + ", %value" + number(2 * j + odd) + ", 128;" : "") +
          "\n";
    }
  }
  ptx.at_entry(text + "\t}\n");
}

// Products of split operands, whose names are lists with a * for the part, step by step of all of them: each
// product waits for the one before it in the same sum, and not for others.
std::string AmpereFloat::multiply(const std::vector<Product> &products, bool from_zero) const {
  // Sums of tensor cores are cut off, not rounded, which adds up over many keys: each product is a sum of its
  // own, the small ones first, and added to the others by an instruction that rounds.
  const auto part_of = [](const std::string &names, const char *part) {
    std::string out;
    for (char c : names) out += c == '*' ? part : std::string(1, c);
    return out;
  };
  std::string text;
  const char *parts[][2] = {{"l", "h"}, {"h", "l"}, {"h", "h"}};
  for (int i = 0; i < 3; i++) {
    for (size_t j = 0; j < products.size(); j++) {
      const Product &p = products[j];
      const std::string own = register_list("t", static_cast<int>(4 * j), 4);
      text += "\tmma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 " +
              (i == 2 && from_zero ? register_list(p.sum, p.first, 4) : own) + ", " +
              part_of(p.a, parts[i][0]) + ", " + part_of(p.b, parts[i][1]) + ", " +
              (i == 0 ? "{%zero,%zero,%zero,%zero}" : own) + ";\n";
    }
  }
  for (size_t j = 0; j < products.size() && !from_zero; j++) {
    for (int i = 0; i < 4; i++) {
      const std::string name = products[j].sum + number(products[j].first + i);
      text += "\tadd.f32 " + name + ", " + name + ", t" + number(static_cast<int>(4 * j) + i) + ";\n";
    }
  }
  return text;
}

Halide::Expr AmpereFloat::multiply_keys(const Expr &keys, const Expr &token) {
  const int columns = tiles.keys / 8, rows = tiles.row_tiles, together = std::min(columns, kTogether / rows);
  std::string text = "\t{ .reg .b32 at, a, keys; .reg .f32 t<" + number(4 * kTogether) +
                     ">; add.u32 keys, %shared, $0; mad.lo.u32 at, %warp, " + number(rows * 16 * 128) +
                     ", %shared;\n" + declare("q", 4 * rows) + declare("k", 2 * together);
  for (int k = 0; k < steps_of_row(); k++) {
    text += load_query_step(k, "q");
    for (int i = 0; i < 4 * rows; i++) text += split_tf32("q" + number(i), "q" + number(i));
    text += "\tadd.u32 a, keys, %across" + number(k % 4) + ";\n";
    for (int n = 0; n < columns; n += together) {
      std::vector<Product> products;
      for (int i = 0; i < together; i += 2) {
        text += "\tldmatrix.sync.aligned.m8n8.x4.shared.b16 " + register_list("k", 2 * i, 4) + ", [a+" +
                number(k / 4 * tiles.keys * 128 + (n + i) * 8 * 128) + "];\n";
      }
      for (int i = 0; i < 2 * together; i++) text += split_tf32("k" + number(i), "k" + number(i));
      for (int i = 0; i < together; i++) {
        for (int m = 0; m < rows; m++) {
          products.push_back({"%S", (m * columns + n + i) * 4, parts("q", m * 4, 4), parts("k", 2 * i, 2)});
        }
      }
      text += multiply(products, k == 0);
    }
  }
  return ops.ptx.effect(text + "\t}\n", {keys, token});
}

// A thread has the weights of two neighbouring keys, which may be any two of the eight in a product as long
// as its values are of the same ones.
Halide::Expr AmpereFloat::multiply_values(const Expr &values, const Expr &token) {
  const int columns = tiles.head_dim / 8, steps = tiles.keys / 8, rows = tiles.row_tiles;
  std::string text = "\t{ .reg .b32 at, values; .reg .f32 t<" + number(4 * kTogether) +
                     ">; add.u32 values, %shared, $0;\n" + declare("w", 4 * rows) +
                     declare("v", 2 * kTogether / rows);
  for (int k = 0; k < steps; k++) {
    for (int m = 0; m < rows; m++) {
      // Columns 2t and 2t + 1 of the scores, each of two rows, as the columns t and t + 4 of the operand.
      const int order[] = {0, 2, 1, 3};
      for (int i = 0; i < 4; i++) {
        text += split_tf32("w" + number(m * 4 + i), "%P" + number((m * steps + k) * 4 + order[i]));
      }
    }
    for (int n = 0; n < columns; n += kTogether / rows) {
      const int together = std::min(kTogether / rows, columns - n);
      std::vector<Product> products;
      for (int i = 0; i < 2 * together; i++) {
        const int column = n + i / 2;
        text += "\tadd.u32 at, values, %value" + number(2 * (column % 4) + i % 2) + "; ld.shared.b32 v" +
                number(i) + ", [at+" + number(column / 4 * tiles.keys * 128 + k * 8 * 128) + "];\n";
      }
      for (int i = 0; i < 2 * together; i++) text += split_tf32("v" + number(i), "v" + number(i));
      for (int i = 0; i < together; i++) {
        for (int m = 0; m < rows; m++) {
          products.push_back({"%O", (m * columns + n + i) * 4, parts("w", m * 4, 4), parts("v", 2 * i, 2)});
        }
      }
      text += multiply(products, false);
    }
  }
  return ops.ptx.effect(text + "\t}\n", {values, token});
}

Halide::Expr AmpereFloat::keep_weights(const std::vector<Expr> &weights, const Expr &token) {
  std::string text;
  for (int i = 0; i < tiles.scores(); i++) text += "\tmov.b32 %P" + number(i) + ", $" + number(i) + ";\n";
  std::vector<Expr> arguments = weights;
  arguments.push_back(token);
  return ops.ptx.effect(text, arguments);
}

}  // namespace posattn
