// Tensor cores of Ampere and later (sm_80): mma.sync multiplies fragments in registers, which ldmatrix loads
// from shared memory, which cp.async fills.
#pragma once

#include <string>
#include <vector>

#include "lowering/tensor_backend.h"

namespace posattn {

class Ampere : public TensorBackend {
 public:
  Ampere(InlinePtx &ptx, const TensorTiles &tiles, bool is_bfloat) : Ampere(ptx, tiles, is_bfloat, 2) {}

  int shared_bytes() const override;
  Expr setup(const std::vector<TensorTask> &tasks, const Expr &token) override;
  Expr begin(const TensorTask &task, const Expr &token) override;
  Expr scores(const TensorTask &task, const Step &step, const Expr &group, const Expr &token) override;
  Expr accumulate(const TensorTask &task, const Step &step, const std::vector<Expr> &decay,
                  const std::vector<Expr> &weights, const Expr &token) override;
  Expr finish(const TensorTask &task, const Expr &token) override;
  Expr wait_for_outputs(const TensorTask &task, const Expr &token) override;

 protected:
  // bytes: of an element.
  Ampere(InlinePtx &ptx, const TensorTiles &tiles, bool is_bfloat, int bytes);

  // %S = the queries times the keys, and %O += the weights in %P times the values, which lie there in shared
  // memory.
  virtual Expr multiply_keys(const Expr &keys, const Expr &token);
  virtual Expr multiply_values(const Expr &values, const Expr &token);
  virtual Expr keep_weights(const std::vector<Expr> &weights, const Expr &token) {
    return pack_weights(weights, token);
  }
  std::string load_query_step(int k, const std::string &to) const;
  int steps_of_row() const { return tiles.head_dim * bytes_ / 32; }  // two pieces each

  int threads() const { return tiles.warpgroups * tiles.group_threads(); }
  int tile_bytes() const { return chunks_ * tiles.keys * 128; }
  Expr copy_tile(const TensorSource &source, const Expr &exists, const Expr &first_row, const Expr &head,
                 const Expr &batch, int rows, const Expr &to, const Expr &token);
  // Of this thread's copies all but the last `pending` groups; then of all threads'.
  Expr wait_copies(int pending, const Expr &token);
  // Where the queries are copied to.
  int query_tile() const { return tiles.shared_queries ? 2 * tiles.stages * tile_bytes() : 0; }

  // A tile in shared memory is a row of chunks: rows of 128 bytes whose eight pieces of 16 are permuted by
  // the row, so that no two lanes of ldmatrix meet in a bank.
  int bytes_, chunks_;

 private:
  Expr copy_rows(const TensorTask &task, const Expr &token);
  // Of a stream; see ampere_stream.cpp. Blocks of 16 bits are multiplied in less time than they take to come,
  // and are all asked for as soon as there is place. Products of float32 take longer: the first blocks of
  // all warps shall not have to wait for second ones.
  bool copies_ahead() const { return tiles.streams && bytes_ == 2; }
  void declare_stream();
  Expr begin_stream(const TensorTask &task, const Expr &token);
  Expr copy_stream(const TensorTask &task, const Expr &step, const Expr &token);
  Expr copy_block(const TensorTask &task, const Expr &step, const Expr &token);
  Expr load_queries(const Expr &token);
  std::string multiply(const std::string &sum, int first, const std::string &a, const std::string &b,
                       bool from_zero) const;
};

}  // namespace posattn
