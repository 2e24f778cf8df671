#include "lowering/ptx_kernel.h"

#include <stdexcept>
#include <vector>

namespace posattn {

using namespace Halide::Internal;

bool DropTokens::is_of_buffer(const Halide::Expr &e) const {
  class Find : public IRVisitor {
   public:
    explicit Find(const std::string &name) : name(name) {}
    using IRVisitor::visit;
    void visit(const Variable *op) override { found = found || op->name == name; }
    std::string name;
    bool found = false;
  } find(func_ + ".buffer");
  e.accept(&find);
  return find.found;
}

Stmt DropTokens::visit(const Store *op) {
  return op->name == func_ ? Evaluate::make(op->value) : IRMutator::visit(op);
}

Stmt DropTokens::visit(const LetStmt *op) {
  return is_of_buffer(op->value) ? mutate(op->body) : IRMutator::visit(op);
}

Stmt DropTokens::visit(const Evaluate *op) {
  return is_of_buffer(op->value) ? Evaluate::make(0) : IRMutator::visit(op);
}

namespace {

// All conditions around the store to a Func, and the names that are defined on the way.
class FindGuard : public IRVisitor {
 public:
  explicit FindGuard(const std::string &func) : func_(func) {}
  Halide::Expr guard;
  Scope<> defined;

 protected:
  using IRVisitor::visit;
  void visit(const IfThenElse *op) override {
    around_.push_back(op->condition);
    op->then_case.accept(this);
    around_.back() = !op->condition;
    if (op->else_case.defined()) op->else_case.accept(this);
    around_.pop_back();
  }
  void visit(const Store *op) override {
    if (op->name.rfind(func_ + ".", 0) != 0) return;
    for (const Halide::Expr &condition : around_) guard = guard.defined() ? guard && condition : condition;
  }
  void visit(const LetStmt *op) override {
    defined.push(op->name);
    op->body.accept(this);
  }

 private:
  std::string func_;
  std::vector<Halide::Expr> around_;
};

void check_usable(const Halide::Expr &guard, const Scope<> &defined) {
  class Check : public IRVisitor {
   public:
    explicit Check(const Scope<> &defined) : defined(defined) {}
    using IRVisitor::visit;
    void visit(const Variable *op) override { bad = bad || defined.contains(op->name); }
    const Scope<> &defined;
    bool bad = false;
  } check(defined);
  guard.accept(&check);
  if (check.bad) throw std::logic_error("the condition of a loop over steps is computed inside it");
}

}  // namespace

Stmt DropTokens::visit(const For *op) {
  if (in_kernel_ && op->for_type == ForType::Serial && op->name.rfind(loop_ + ".s", 0) == 0) {
    FindGuard find(loop_);
    op->body.accept(&find);
    Stmt body = mutate(op->body);
    if (find.guard.defined()) {
      check_usable(find.guard, find.defined);
      body = IfThenElse::make(find.guard, body);
    }
    return For::make(op->name, op->min, op->extent, op->for_type, op->partition_policy, op->device_api, body);
  }
  if (in_kernel_ || op->for_type != ForType::GPUBlock) return IRMutator::visit(op);
  in_kernel_ = true;
  Stmt body = mutate(op->body);
  in_kernel_ = false;
  if (shared_bytes_ > 0) {
    body = Allocate::make("shared_bytes", Halide::UInt(8), Halide::MemoryType::GPUShared, {shared_bytes_},
                          const_true(), body);
  }
  return For::make(op->name, op->min, op->extent, op->for_type, op->partition_policy, op->device_api, body);
}

}  // namespace posattn
