#include "lowering/ptx_kernel.h"

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

Stmt DropTokens::visit(const For *op) {
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
