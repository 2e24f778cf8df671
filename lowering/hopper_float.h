// Float32 on Hopper's tensor cores (sm_90a): wgmma takes tf32, numbers of 11 bits, so that every operand is
// split into a high and a low part, and the three products of parts that count are summed, as in
// ampere_float.h. wgmma multiplies more than twice as fast as mma.sync, and reads keys and values from shared
// memory, so that they are split once for all warps, into tiles of their own, while a product runs. Values
// are transposed on the way: of tf32, wgmma takes rows of the summed dimension only. Queries and weights are
// split in registers.
#pragma once

#include <string>
#include <vector>

#include "lowering/ampere.h"

namespace posattn {

class HopperFloat : public Ampere {
 public:
  // One stage: a block of keys is on its way while the values of the one before are multiplied.
  HopperFloat(InlinePtx &ptx, const TensorTiles &tiles);

  int shared_bytes() const override { return values_low() + tile_bytes(); }
  Expr begin(const TensorTask &task, const Expr &token) override;
  Expr scores(const TensorTask &task, const Step &step, const Expr &group, const Expr &token) override;
  Expr accumulate(const TensorTask &task, const Step &step, const std::vector<Expr> &decay,
                  const std::vector<Expr> &weights, const Expr &token) override;

 private:
  // Tiles in shared memory: keys, whose high parts replace them; values; queries; low parts of the keys;
  // parts of the transposed values, chunks of 32 keys with a row for each channel.
  int keys_low() const { return query_tile() + chunks_ * tiles.rows() * 128; }
  int values_high() const { return keys_low() + tile_bytes(); }
  int values_low() const { return values_high() + tile_bytes(); }

  // Products of queries and keys that are summed on tensor cores: of so many times eight channels.
  static constexpr int kGroupSteps = 2;
  int score_groups() const { return tiles.head_dim / (8 * kGroupSteps); }
  std::string add_scores(int group) const;

  Expr copy_keys(const TensorTask &task, const Expr &step, const Expr &token);
  Expr copy_values(const TensorTask &task, const Expr &step, const Expr &token);
  Expr split_keys(const Expr &token);
  Expr split_values(const Expr &token);
  Expr multiply_keys(const Expr &keys, const Expr &token) override;
  Expr multiply_values(const Expr &values, const Expr &token) override;
  std::string product(int columns, const std::string &sum, const std::string &a,
                      const std::string &descriptor, bool from_zero) const;
};

}  // namespace posattn
