// The pass that puts matrix products on AMX tiles: what it writes for every shape that it takes, what it says
// of those it does not take, and, where the machine has AMX, that the products are right.
#include "lowering/tile_matmul.h"

#include <gtest/gtest.h>

#include <map>
#include <random>

#include "runtime/cpu.h"

namespace posattn::lowering {
namespace {

using namespace Halide;
using namespace Halide::Internal;

Target amx_target() {
  return Target(
      "x86-64-linux-avx-avx2-avx512-avx512_cannonlake-avx512_sapphirerapids-avx512_skylake-avx512_zen4-f16c-"
      "fma-"
      "sse41");
}

Expr half_of_word(const Expr &word, const Expr &half) {
  return reinterpret<float>(select(half == 0, word << 16, word & Expr(0xffff0000u)));
}

// c(n, m) = sum over r of a(r, m) b(n, r), in the forms that attention has.
struct Product {
  int rows, columns, depth, steps = 1;
  bool words_of_a = false;  // both operands hold r with r + 16
  float initial = 0;

  ImageParam a{BFloat(16), 2, "a"}, a_words{UInt(32), 2, "a_words"}, b{UInt(32), 2, "b"};
  Param<int> used{"used"};
  Var n{"n"}, m{"m"};
  RDom r, r2;
  Func c{"c"}, out{"out"};

  Product(int rows, int columns, int depth) : rows(rows), columns(columns), depth(depth) {}

  virtual ~Product() = default;
  virtual Expr a_at(const Expr &k) {
    if (words_of_a) return half_of_word(a_words(k / 32 * 16 + k % 16, m), k % 32 / 16);
    return cast<float>(a(k, m));
  }
  virtual Expr b_at(const Expr &k) {
    if (words_of_a) return half_of_word(b(n, k / 32 * 16 + k % 16), k % 32 / 16);
    return half_of_word(b(n, k / 2), k % 2);
  }
  virtual Expr product(const Expr &k) { return a_at(k) * b_at(k); }

  Pipeline pipeline() {
    c(n, m) = initial;
    if (steps == 1) {
      r = RDom(0, depth, "r");
      c(n, m) += product(r);
    } else {
      r = RDom(0, depth, 0, steps, "r");
      r.where(r.y < used);
      c(n, m) += product(r.y * depth + r.x);
    }
    out(n, m) = c(n, m);
    out.bound(n, 0, columns).bound(m, 0, rows).vectorize(n, 16);
    c.compute_root().bound_extent(n, columns).bound_extent(m, rows);
    if (steps > 1) c.update().reorder(r.x, n, m, r.y);
    a.dim(0).set_bounds(0, depth * steps);
    a.dim(1).set_bounds(0, rows).set_stride(depth * steps);
    a_words.dim(0).set_bounds(0, depth * steps / 2);
    a_words.dim(1).set_bounds(0, rows).set_stride(depth * steps / 2);
    b.dim(0).set_bounds(0, columns);
    b.dim(1).set_bounds(0, depth * steps / 2).set_stride(columns);
    Pipeline result(out);
    result.add_custom_lowering_pass(new LowerTileMatmuls({matmul()}));
    return result;
  }
  virtual TileMatmul matmul() {
    if (steps == 1) return {c.name(), "n", "m", r.x.name(), "", 1};
    return {c.name(), "n", "m", r.x.name(), r.y.name(), steps};
  }
  std::vector<Argument> arguments() { return {a, a_words, b, used}; }
};

// Calls of each intrinsic in the lowered code.
std::map<std::string, int> intrinsics(Product &product) {
  class Count : public IRVisitor {
   public:
    std::map<std::string, int> calls;
    using IRVisitor::visit;
    void visit(const Call *op) override {
      if (op->name.rfind("tile_", 0) == 0) calls[op->name]++;
      IRVisitor::visit(op);
    }
  } count;
  const Module module = product.pipeline().compile_to_module(product.arguments(), "product", amx_target());
  for (const LoweredFunc &function : module.functions()) function.body.accept(&count);
  return count.calls;
}

std::string error_of(Product &product) {
  try {
    intrinsics(product);
  } catch (const CompileError &error) {
    return error.what();
  }
  return "no error";
}

#define EXPECT_ERROR(product, text)                              \
  do {                                                           \
    const std::string error = error_of(product);                 \
    EXPECT_NE(error.find(text), std::string::npos) << error;     \
    EXPECT_NE(error.find("Func c"), std::string::npos) << error; \
  } while (false)

using Counts = std::map<std::string, int>;

TEST(TileMatmul, LoadsAnOperandOnceForEachBlockOfTiles) {
  Product square(32, 32, 64);
  EXPECT_EQ(intrinsics(square),
            (Counts{{"tile_zero", 4}, {"tile_load", 8}, {"tile_matmul", 8}, {"tile_store", 4}}));
  Product one(16, 16, 32);
  EXPECT_EQ(intrinsics(one),
            (Counts{{"tile_zero", 1}, {"tile_load", 2}, {"tile_matmul", 1}, {"tile_store", 1}}));
  // Three columns of tiles: two and one.
  Product odd(16, 48, 32);
  EXPECT_EQ(intrinsics(odd),
            (Counts{{"tile_zero", 3}, {"tile_load", 5}, {"tile_matmul", 3}, {"tile_store", 3}}));
}

TEST(TileMatmul, TakesPairsThatAreNotNeighbours) {
  Product pairs(32, 32, 64);
  pairs.words_of_a = true;
  EXPECT_EQ(intrinsics(pairs),
            (Counts{{"tile_zero", 4}, {"tile_load", 8}, {"tile_matmul", 8}, {"tile_store", 4}}));
}

TEST(TileMatmul, HasCodeForEachNumberOfSteps) {
  Product steps(16, 16, 32);
  steps.steps = 3;
  steps.words_of_a = true;
  EXPECT_EQ(intrinsics(steps),
            (Counts{{"tile_zero", 4}, {"tile_load", 12}, {"tile_matmul", 6}, {"tile_store", 4}}));
}

TEST(TileMatmul, WrongShapesAreErrors) {
  Product rows(24, 32, 32), columns(32, 40, 32), depth(32, 32, 48);
  EXPECT_ERROR(rows, "expected a constant multiple of 16 for the extent of m, got 24");
  EXPECT_ERROR(columns, "expected a constant multiple of 16 for the extent of n, got 40");
  EXPECT_ERROR(depth, "expected a constant multiple of 32 for the extent of r");
  Product initial(16, 16, 32);
  initial.initial = 1;
  EXPECT_ERROR(initial, "expected an initial value of zero");
}

TEST(TileMatmul, WrongOperandsAreErrors) {
  struct Rounded : Product {
    using Product::Product;
    Expr a_at(const Expr &k) override { return cast<float>(a(k, m)) * 2.f; }
  } scaled(16, 16, 32);
  EXPECT_ERROR(scaled, "AMX tiles");
  struct Swapped : Product {
    using Product::Product;
    Expr b_at(const Expr &k) override { return half_of_word(b(n, k / 2), 1 - k % 2); }
  } swapped(16, 16, 32);
  EXPECT_ERROR(swapped, "expected b to hold the pairs");
  struct Strided : Product {
    using Product::Product;
    Expr a_at(const Expr &k) override { return cast<float>(a(31 - k, m)); }
  } reversed(16, 16, 32);
  EXPECT_ERROR(reversed, "expected b to hold the pairs");
  struct Reach : Product {
    using Product::Product;
    Expr a_at(const Expr &k) override { return cast<float>(a(k * 2 % 32, m)); }
  } repeated(16, 16, 32);
  EXPECT_ERROR(repeated, "neighbouring bfloat16");
  struct Transposed : Product {
    using Product::Product;
    Expr b_at(const Expr &k) override { return half_of_word(b(k / 2, n), k % 2); }
  } transposed(16, 16, 32);
  EXPECT_ERROR(transposed, "expected b to hold pairs of");
  struct Sum : Product {
    using Product::Product;
    Expr product(const Expr &k) override { return a_at(k) + b_at(k); }
  } sum(16, 16, 32);
  EXPECT_ERROR(sum, "a product");
  struct Same : Product {
    using Product::Product;
    Expr a_at(const Expr &k) override { return cast<float>(a(k, n)); }
  } same(16, 16, 32);
  EXPECT_ERROR(same, "AMX tiles");
}

TEST(TileMatmul, UnknownFuncsAndLoopsAreErrors) {
  struct Elsewhere : Product {
    using Product::Product;
    TileMatmul matmul() override { return {"Func c of elsewhere", "n", "m", r.x.name(), "", 1}; }
  } elsewhere(16, 16, 32);
  EXPECT_ERROR(elsewhere, "there is no loop nest");
  struct Loop : Product {
    using Product::Product;
    TileMatmul matmul() override { return {c.name(), "n", "q", r.x.name(), "", 1}; }
  } loop(16, 16, 32);
  EXPECT_ERROR(loop, "expected an innermost serial loop over m = q");
}

const char *lacks_amx() { return cpu_target(find_cpu_target("amx")).lacks(); }

void check_products(Product &product, int used) {
  const int depth = product.depth * product.steps;
  std::mt19937 random(1);
  std::uniform_int_distribution<int> integer(-8, 8);  // exact in any order
  Buffer<bfloat16_t> a(depth, product.rows);
  Buffer<uint32_t> a_words(depth / 2, product.rows), b(product.columns, depth / 2);
  std::vector<std::vector<float>> x(size_t(product.rows), std::vector<float>(size_t(depth)));
  std::vector<std::vector<float>> y(size_t(product.columns), std::vector<float>(size_t(depth)));
  const auto place = [&](int k) {  // of a word, and the half of it
    return product.words_of_a ? std::pair(k / 32 * 16 + k % 16, k % 32 / 16) : std::pair(k / 2, k % 2);
  };
  a_words.fill(0), b.fill(0);
  for (int k = 0; k < depth; k++) {
    const auto [word, half] = place(k);
    for (int m = 0; m < product.rows; m++) {
      const bfloat16_t value(x[size_t(m)][size_t(k)] = float(integer(random)));
      a(k, m) = value;
      a_words(word, m) |= uint32_t(value.to_bits()) << (16 * half);
    }
    for (int n = 0; n < product.columns; n++) {
      const bfloat16_t value(y[size_t(n)][size_t(k)] = float(integer(random)));
      b(n, word) |= uint32_t(value.to_bits()) << (16 * half);
    }
  }
  product.a.set(a), product.a_words.set(a_words), product.b.set(b), product.used.set(used);
  Pipeline pipeline = product.pipeline();
  const Buffer<float> out = pipeline.realize({product.columns, product.rows}, amx_target());
  for (int m = 0; m < product.rows; m++) {
    for (int n = 0; n < product.columns; n++) {
      float sum = 0;
      for (int k = 0; k < product.depth * used; k++) sum += x[size_t(m)][size_t(k)] * y[size_t(n)][size_t(k)];
      ASSERT_EQ(out(n, m), sum) << n << " " << m;
    }
  }
}

TEST(TileMatmul, ProductsAreRight) {
  if (lacks_amx()) GTEST_SKIP() << "skipped: " << lacks_amx();
  for (const auto &[rows, columns, depth] :
       {std::tuple(16, 16, 32), std::tuple(32, 64, 96), std::tuple(48, 80, 64)}) {
    for (const bool words : {false, true}) {
      Product product(rows, columns, depth);
      product.words_of_a = words;
      check_products(product, 1);
    }
  }
}

TEST(TileMatmul, StepsAreRight) {
  if (lacks_amx()) GTEST_SKIP() << "skipped: " << lacks_amx();
  for (int used = 0; used <= 4; used++) {
    Product product(32, 48, 32);
    product.steps = 4;
    product.words_of_a = true;
    check_products(product, used);
  }
}

}  // namespace
}  // namespace posattn::lowering
