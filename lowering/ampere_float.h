// The same for float32, whose tensor cores take numbers of 11 bits (tf32): every operand is split into a high
// and a low part, and of their four products the three that count are summed. That is off by about 2^-21 of
// each product, some bits less than float32 itself, and several times as fast as CUDA cores.
#pragma once

#include <string>
#include <vector>

#include "lowering/ampere.h"

namespace posattn {

class AmpereFloat : public Ampere {
 public:
  // Queries stay in shared memory.
  AmpereFloat(InlinePtx &ptx, const TensorTiles &tiles);

 protected:
  Expr multiply_keys(const Expr &keys, const Expr &token) override;
  Expr multiply_values(const Expr &values, const Expr &token) override;
  Expr keep_weights(const std::vector<Expr> &weights, const Expr &token) override;

 private:
  struct Product {
    std::string sum;
    int first;  // of four registers of the sum
    std::string a, b;
  };
  std::string multiply(const std::vector<Product> &products, bool from_zero) const;
};

}  // namespace posattn
