// One factor of a product of bfloat16, as it is stored.
#pragma once

#include <optional>
#include <string>

#include "Halide.h"

namespace posattn::lowering {

struct TileOperand {
  std::string name;  // of the memory
  Halide::Type type;
  Halide::Expr index;  // of the element or word that is loaded
  // In float32, with a variable kLoaded in place of the load.
  Halide::Expr value;
  Halide::Expr bytes() const { return index * type.bytes(); }
};

// Nothing if `factor` does not come from exactly one scalar load of a bfloat16 or of a 32-bit word.
std::optional<TileOperand> find_operand(const Halide::Expr &factor);

// What `value` is, once all else than the load is constant: 0 for a bfloat16 or the low half of a word, 1 for
// the high half, nothing for anything else.
std::optional<int> half_of(const Halide::Expr &value, const TileOperand &operand);

}  // namespace posattn::lowering
