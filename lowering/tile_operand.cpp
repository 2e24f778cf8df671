#include "lowering/tile_operand.h"

#include <vector>

namespace posattn::lowering {

using namespace Halide;
using namespace Halide::Internal;

namespace {

constexpr const char *kLoaded = "loaded";

bool is_word(const Type &type) { return type == Int(32) || type == UInt(32); }

class FindLoads : public IRVisitor {
 public:
  std::vector<const Load *> loads;

 protected:
  using IRVisitor::visit;
  void visit(const Load *op) override {
    loads.push_back(op);
    IRVisitor::visit(op);
  }
};

class ReplaceLoads : public IRMutator {
 protected:
  using IRMutator::visit;
  Expr visit(const Load *op) override { return Variable::make(op->type, kLoaded); }
};

}  // namespace

std::optional<TileOperand> find_operand(const Expr &factor) {
  FindLoads find;
  factor.accept(&find);
  if (find.loads.empty()) return std::nullopt;
  // A choice between the halves of a word loads it once in each.
  const Load *load = find.loads[0];
  for (const Load *other : find.loads) {
    if (other->name != load->name || !equal(other->index, load->index)) return std::nullopt;
  }
  if (load->type != BFloat(16) && !is_word(load->type)) return std::nullopt;
  return TileOperand{load->name, load->type, load->index, ReplaceLoads().mutate(factor)};
}

std::optional<int> half_of(const Expr &value, const TileOperand &operand) {
  const Expr loaded = Variable::make(operand.type, kLoaded);
  const auto is = [&](const Expr &form) { return equal(simplify(value), simplify(form)); };
  if (operand.type == BFloat(16)) {
    const Expr bits = reinterpret<uint16_t>(loaded);
    if (is(cast<float>(loaded)) || is(reinterpret<float>(cast<uint32_t>(bits) << 16))) return 0;
    return std::nullopt;
  }
  const Expr word = operand.type == Int(32) ? reinterpret<uint32_t>(loaded) : loaded;
  if (is(reinterpret<float>(word << 16))) return 0;
  if (is(reinterpret<float>(word & Expr(0xffff0000u)))) return 1;
  return std::nullopt;
}

}  // namespace posattn::lowering
