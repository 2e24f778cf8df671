#include "lowering/tile_matmul.h"

#include <algorithm>
#include <map>
#include <optional>
#include <sstream>
#include <utility>

#include "lowering/tile_operand.h"

namespace posattn::lowering {

using namespace Halide;
using namespace Halide::Internal;

namespace {

constexpr int kTile = 16;   // rows of a tile; sums in a row of one
constexpr int kDepth = 32;  // bfloat16 in a row of a tile
constexpr int kRowBytes = 64;

template <typename... Args>
[[noreturn]] void fail(const TileMatmul &matmul, const Args &...args) {
  std::ostringstream text;
  text << "AMX tiles for Func " << matmul.func << ": ";
  (text << ... << args);
  text << "\n";
  throw CompileError(text.str());
}

Expr tile_int(int value) { return Expr(static_cast<int16_t>(value)); }

// The Var of a loop of an update. Halide lets some loops start at 0 and renames them.
std::string var_of(const For *loop) {
  const std::string var = loop->name.substr(loop->name.rfind(".s1.") + 4), suffix = ".rebased";
  const size_t size = var.size() - std::min(var.size(), suffix.size());
  return var.compare(size, std::string::npos, suffix) == 0 ? var.substr(0, size) : var;
}

// Replaces loops over n, m and k by tile instructions.
class Nest {
 public:
  Nest(const TileMatmul &matmul, const Stmt &stmt) : matmul_(matmul) {
    find_store(stmt);
    const std::pair<const char *, const std::string *> roles[] = {
        {"n", &matmul.n}, {"m", &matmul.m}, {"k", &matmul.k}};
    for (const auto &[role, name] : roles) {
      if (!loops_.count(*name)) fail(matmul, "expected an innermost serial loop over ", role, " = ", *name);
    }
    rows_ = constant_extent(matmul.m, kTile);
    columns_ = constant_extent(matmul.n, kTile);
    depth_ = constant_extent(matmul.k, kDepth);
    if (!matmul.steps.empty() && !loops_.count(matmul.steps)) {
      fail(matmul, "expected a loop over steps = ", matmul.steps, " around the others");
    }
    find_operands();
  }

  // As many steps as there are at run time.
  Stmt lower() const {
    if (matmul_.steps.empty()) return blocks(1);
    const Expr steps = loops_.at(matmul_.steps).extent;
    // A version for each number of steps: sums never leave their registers.
    Stmt result = blocks(matmul_.most_steps);
    for (int count = matmul_.most_steps - 1; count >= 0; count--) {
      result = IfThenElse::make(steps <= count, blocks(count), result);
    }
    return result;
  }

 private:
  struct Loop {
    std::string name;  // in the statement
    Expr min, extent;
  };

  // Where an element lies: n, m, k of a step and the step.
  struct Place {
    int n = 0, m = 0, k = 0, step = 0;
  };

  void find_store(Stmt stmt) {
    std::vector<std::pair<std::string, Expr>> lets;
    const auto inlined = [&](Expr e) {
      for (size_t i = lets.size(); i-- > 0;) e = substitute(lets[i].first, lets[i].second, e);
      return e;
    };
    for (;;) {
      if (const For *loop = stmt.as<For>()) {
        if (loop->for_type != ForType::Serial) fail(matmul_, "expected a serial loop, got ", loop->name);
        loops_[var_of(loop)] = {loop->name, inlined(loop->min), simplify(inlined(loop->extent))};
        stmt = loop->body;
      } else if (const LetStmt *let = stmt.as<LetStmt>()) {
        lets.emplace_back(let->name, let->value);
        stmt = let->body;
      } else {
        break;
      }
    }
    const Store *store = stmt.as<Store>();
    if (!store || store->name != matmul_.func || !is_const_one(store->predicate)) {
      fail(matmul_, "expected one store inside of its loops, got\n", stmt);
    }
    c_index_ = inlined(store->index);
    value_ = substitute_in_all_lets(inlined(store->value));
  }

  int constant_extent(const std::string &var, int unit) const {
    const Expr extent = loops_.at(var).extent;
    const std::optional<int64_t> value = as_const_int(extent);
    if (!value || *value <= 0 || *value % unit != 0) {
      fail(matmul_, "expected a constant multiple of ", unit, " for the extent of ", var, ", got ", extent);
    }
    return static_cast<int>(*value);
  }

  // `e`, an expression in the loops' variables, at a place.
  Expr at(const Expr &e, const Place &place) const {
    std::map<std::string, Expr> values;
    const auto set = [&](const std::string &var, int offset) {
      const Loop &loop = loops_.at(var);
      values[loop.name] = loop.min + offset;
    };
    set(matmul_.n, place.n), set(matmul_.m, place.m), set(matmul_.k, place.k);
    if (!matmul_.steps.empty()) set(matmul_.steps, place.step);
    return simplify(substitute(values, e));
  }

  // Bytes from where the operand lies at `from` to where it lies at `to`.
  int64_t distance(const char *name, const Expr &bytes, const Place &from, const Place &to) const {
    const Expr difference = simplify(at(bytes, to) - at(bytes, from));
    const std::optional<int64_t> value = as_const_int(difference);
    if (!value) fail(matmul_, "expected constant strides of ", name, ", got a distance of ", difference);
    return *value;
  }

  void find_operands() {
    const Add *sum = value_.as<Add>();
    const auto is_old = [&](const Expr &e) {
      const Load *load = e.as<Load>();
      return load && load->name == matmul_.func && can_prove(load->index == c_index_);
    };
    const Mul *product = nullptr;
    if (sum && is_old(sum->a)) product = sum->b.as<Mul>();
    if (sum && is_old(sum->b)) product = sum->a.as<Mul>();
    if (!product || value_.type() != Float(32)) {
      fail(matmul_, "expected a sum in float32 of itself and a product, got ", value_);
    }
    std::optional<TileOperand> x = find_operand(product->a), y = find_operand(product->b);
    if (!x || !y) fail(matmul_, "expected a product of two stored bfloat16, got ", Expr(product));
    const bool x_is_b = distance("an operand", x->index, {}, {1, 0, 0, 0}) != 0;
    a_ = x_is_b ? *y : *x;
    b_ = x_is_b ? *x : *y;
    check_c();
    check_a();
    check_b();
  }

  void check_c() {
    const Expr bytes = c_index_ * 4;
    c_stride_ = distance("c", bytes, {}, {0, 1, 0, 0});
    for (int n = 1; n < columns_; n++) {
      if (n % kTile != 0 && distance("c", bytes, {n - n % kTile, 0, 0, 0}, {n, 0, 0, 0}) != n % kTile * 4) {
        fail(matmul_, "expected c to be contiguous along ", matmul_.n);
      }
    }
    check_rows("c", bytes, c_stride_);
  }

  void check_rows(const char *name, const Expr &bytes, int64_t stride) const {
    for (int m = 1; m < rows_; m++) {
      if (distance(name, bytes, {}, {0, m, 0, 0}) != m * stride) {
        fail(matmul_, "expected equal distances of ", name, " along ", matmul_.m);
      }
    }
  }

  // Byte of the element within its operand, from the element at k = 0 of the same step, on a word's low half.
  int64_t offset(const char *name, const TileOperand &operand, int k) const {
    const std::optional<int> half = half_of(at(operand.value, {0, 0, k, 0}), operand);
    if (!half) fail(matmul_, "expected ", name, " to be a bfloat16 or half of a word at k = ", k);
    return distance(name, operand.bytes(), {}, {0, 0, k, 0}) + 2 * *half;
  }

  void check_a() {
    a_stride_ = distance("a", a_.bytes(), {}, {0, 1, 0, 0});
    if (distance("a", a_.bytes(), {}, {1, 0, 0, 0}) != 0)
      fail(matmul_, "both operands depend on ", matmul_.n);
    check_rows("a", a_.bytes(), a_stride_);
    for (int k0 = 0; k0 < depth_; k0 += kDepth) {
      std::vector<int64_t> bytes;
      for (int k = k0; k < k0 + kDepth; k++) bytes.push_back(offset("a", a_, k));
      // Where in the row each k lies.
      const int64_t first = *std::min_element(bytes.begin(), bytes.end());
      std::vector<int> order(kDepth, -1);
      for (int i = 0; i < kDepth; i++) {
        const int64_t place = (bytes[static_cast<size_t>(i)] - first) / 2;
        if (place < kDepth) order[static_cast<size_t>(place)] = k0 + i;
      }
      if (std::count(order.begin(), order.end(), -1) > 0) {
        fail(matmul_, "expected a to hold ", kDepth, " neighbouring bfloat16 along ", matmul_.k);
      }
      order_.insert(order_.end(), order.begin(), order.end());
    }
  }

  void check_b() {
    if (distance("b", b_.bytes(), {}, {0, 1, 0, 0}) != 0)
      fail(matmul_, "both operands depend on ", matmul_.m);
    for (int n = 1; n < columns_; n++) {
      if (n % kTile != 0 &&
          distance("b", b_.bytes(), {n - n % kTile, 0, 0, 0}, {n, 0, 0, 0}) != n % kTile * 4) {
        fail(matmul_, "expected b to hold pairs of ", matmul_.k, " side by side along ", matmul_.n);
      }
    }
    for (int k0 = 0; k0 < depth_; k0 += kDepth) {
      const auto of = [&](int place) { return offset("b", b_, order_[static_cast<size_t>(k0 + place)]); };
      const int64_t first = of(0);
      if (k0 == 0) b_stride_ = of(2) - first;
      for (int place = 0; place < kDepth; place++) {
        if (of(place) - first != place / 2 * b_stride_ + place % 2 * 2) {
          fail(matmul_, "expected b to hold the pairs of ", matmul_.k,
               " that a holds, in rows at equal distances");
        }
      }
    }
  }

  Expr load(const TileOperand &operand, int64_t stride, const Place &place) const {
    return Call::make(BFloat(16, kTile * kDepth), "tile_load",
                      {tile_int(kTile), tile_int(kRowBytes), Variable::make(Handle(), operand.name),
                       cast<int64_t>(at(operand.bytes(), place)), Expr(stride)},
                      Call::Intrinsic);
  }

  Stmt blocks(int steps) const {
    std::vector<Stmt> all;
    for (int n = 0; n < columns_; n += 2 * kTile) {
      for (int m = 0; m < rows_; m += 2 * kTile) all.push_back(block(n, m, steps));
    }
    return Block::make(all);
  }

  // Up to 2 x 2 tiles of sums, each loaded operand used twice.
  Stmt block(int n0, int m0, int steps) const {
    const int ms = std::min(2, (rows_ - m0) / kTile), ns = std::min(2, (columns_ - n0) / kTile);
    std::vector<std::pair<std::string, Expr>> lets;
    const auto let = [&](const Expr &e) {
      lets.emplace_back(unique_name('t'), e);
      return Variable::make(e.type(), lets.back().first);
    };
    Expr sums[2][2];
    for (auto &row : sums) {
      for (Expr &sum : row) {
        sum = Call::make(Float(32, kTile * kTile), "tile_zero", {tile_int(kTile), tile_int(kRowBytes)},
                         Call::Intrinsic);
      }
    }
    for (int step = 0; step < steps; step++) {
      for (int k0 = 0; k0 < depth_; k0 += kDepth) {
        const int k = order_[static_cast<size_t>(k0)];  // the first in memory
        // Each tile is loaded just before the first product that needs it.
        Expr a[2], b[2];
        for (int i = 0; i < ms; i++) {
          a[i] = let(load(a_, a_stride_, {0, m0 + i * kTile, k, step}));
          for (int j = 0; j < ns; j++) {
            if (i == 0) b[j] = let(load(b_, b_stride_, {n0 + j * kTile, 0, k, step}));
            sums[i][j] = let(Call::make(
                sums[i][j].type(), "tile_matmul",
                {tile_int(kTile), tile_int(kRowBytes), tile_int(kRowBytes), sums[i][j], a[i], b[j]},
                Call::Intrinsic));
          }
        }
      }
    }
    std::vector<Stmt> stores;
    for (int i = 0; i < ms; i++) {
      for (int j = 0; j < ns; j++) {
        const Expr place = at(c_index_ * 4, {n0 + j * kTile, m0 + i * kTile, 0, 0});
        stores.push_back(Evaluate::make(
            Call::make(Int(32), "tile_store",
                       {tile_int(kTile), tile_int(kRowBytes), Variable::make(Handle(), matmul_.func),
                        cast<int64_t>(place), Expr(c_stride_), sums[i][j]},
                       Call::Intrinsic)));
      }
    }
    Stmt result = Block::make(stores);
    for (size_t i = lets.size(); i-- > 0;) result = LetStmt::make(lets[i].first, lets[i].second, result);
    return result;
  }

  const TileMatmul &matmul_;
  std::map<std::string, Loop> loops_;  // by their Vars
  Expr c_index_, value_;
  int rows_ = 0, columns_ = 0, depth_ = 0;
  TileOperand a_, b_;
  int64_t a_stride_ = 0, b_stride_ = 0, c_stride_ = 0;
  std::vector<int> order_;  // the k that lie side by side in a, step of 32 after step
};

// The loops of one definition of a Func: its initial value is stage 0, its update stage 1.
bool is_loop_of(const For *loop, const std::string &func, int stage) {
  const std::string prefix = func + ".s" + std::to_string(stage) + ".";
  return loop->name.compare(0, prefix.size(), prefix) == 0;
}

// Replaces the loops of the update, and drops those of the initial value: sums start from zeroed tiles.
class ReplaceLoops : public IRMutator {
 public:
  explicit ReplaceLoops(const TileMatmul &matmul) : matmul_(matmul) {}
  bool found_init = false, found_update = false;

 protected:
  using IRMutator::visit;
  Stmt visit(const For *op) override {
    if (is_loop_of(op, matmul_.func, 0)) {
      check_zero(op);
      found_init = true;
      return Evaluate::make(0);
    }
    if (!is_loop_of(op, matmul_.func, 1)) return IRMutator::visit(op);
    const std::string var = var_of(op);
    const bool inner = var == matmul_.n || var == matmul_.m || var == matmul_.k || var == matmul_.steps;
    if (!inner) return IRMutator::visit(op);
    found_update = true;
    return Nest(matmul_, op).lower();
  }

 private:
  void check_zero(const Stmt &init) const {
    class Values : public IRVisitor {
     public:
      bool zero = true;

     protected:
      using IRVisitor::visit;
      void visit(const Store *op) override { zero &= is_const_zero(op->value); }
    } values;
    init.accept(&values);
    if (!values.zero) fail(matmul_, "expected an initial value of zero");
  }
  const TileMatmul &matmul_;
};

}  // namespace

Stmt LowerTileMatmuls::mutate(const Stmt &stmt) {
  if (inside_) return IRMutator::mutate(stmt);
  inside_ = true;
  found_.assign(matmuls_.size(), false);
  Stmt result = IRMutator::mutate(stmt);
  inside_ = false;
  for (size_t i = 0; i < matmuls_.size(); i++) {
    if (!found_[i]) fail(matmuls_[i], "there is no loop nest that computes it");
  }
  return result;
}

Stmt LowerTileMatmuls::visit(const ProducerConsumer *op) {
  for (size_t i = 0; i < matmuls_.size(); i++) {
    if (!op->is_producer || op->name != matmuls_[i].func) continue;
    ReplaceLoops replace(matmuls_[i]);
    const Stmt body = replace.mutate(op->body);
    if (!replace.found_init) fail(matmuls_[i], "expected loops that set it to zero");
    if (!replace.found_update) fail(matmuls_[i], "expected loops of an update");
    found_[i] = true;
    return ProducerConsumer::make(op->name, true, body);
  }
  return IRMutator::visit(op);
}

}  // namespace posattn::lowering
