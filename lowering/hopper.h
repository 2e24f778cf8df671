// Tensor cores of Hopper (sm_90a): wgmma multiplies tiles in shared memory, which the bulk copy engine fills.
#pragma once

#include <string>
#include <vector>

#include "lowering/tensor_backend.h"

namespace posattn {

class Hopper : public TensorBackend {
 public:
  Hopper(InlinePtx &ptx, const TensorTiles &tiles, bool is_bfloat);

  int shared_bytes() const override { return end_; }
  Expr setup(const std::vector<TensorTask> &tasks, const Expr &token) override;
  Expr begin(const TensorTask &task, const Expr &token) override;
  Expr post(const TensorTask &task, const Expr &token) override;
  Expr enter(const Expr &round, const Expr &token) override;
  void read_posted(TensorTask &task, const Expr &token) override;
  Expr start_scores(const Expr &round, const Expr &steps_before, const Expr &group,
                    const Expr &token) override;
  Expr scores(const TensorTask &task, const Step &step, const Expr &group, const Expr &token) override;
  Expr load_bias(const TensorTask &task, const Step &step, const Expr &token) override;
  Expr accumulate(const TensorTask &task, const Step &step, const std::vector<Expr> &decay,
                  const std::vector<Expr> &weights, const Expr &token) override;
  Expr finish(const TensorTask &task, const Expr &token) override;
  Expr wait_for_outputs(const TensorTask &task, const Expr &token) override;
  Expr leave(const Expr &token) override { return tiles.ahead ? wait_products(0, token) : token; }

 private:
  // A tile in shared memory is a row of chunks, each 64 channels wide: rows of 128 bytes, swizzled.
  struct Ring {
    int tiles, chunk_bytes;  // offset of the first tile; bytes of a chunk
    int full, empty;         // offsets of barriers, 8 bytes each
  };
  int bias_bytes() const { return tiles.keys / 64 * bias_.chunk_bytes; }
  std::string copy_bias(const std::string &map, const std::string &of_head,
                        const std::string &of_batch) const;
  std::string clamp_bias() const;
  // `step` counts from the block of threads' first one, over all of its tasks.
  Expr stage(const Expr &step) const { return step & (tiles.stages - 1); }
  Expr phase(const Expr &step) const {
    return Halide::cast<int>(Halide::cast<uint32_t>(step) / tiles.stages % 2);
  }
  Expr tile(const Ring &ring, const Expr &step) const {
    return ring.tiles + stage(step) * (chunks_ * ring.chunk_bytes);
  }
  // Queries of tasks that follow one another lie in different places where tiles are `ahead`.
  int query_places() const { return tiles.ahead ? 2 : 1; }
  Expr query_place(const Expr &round) const { return round & (query_places() - 1); }
  Expr queries_of(const Expr &round, const Expr &group) const {
    return q_.tiles + query_place(round) * (chunks_ * q_.chunk_bytes) + group * (64 * 128);
  }
  Expr query_phase(const Expr &round) const {
    return Halide::cast<int>(Halide::cast<uint32_t>(round) / query_places() % 2);
  }

  Expr initialize_barriers(const Expr &token);
  Expr wait(const Expr &barrier, const Expr &parity, const Expr &token);
  Expr release(const Expr &barrier, const Expr &token);
  Expr copy_queries(const TensorTask &task, const Expr &token);
  Expr copy_block(const TensorTask &task, const TensorSource &source, const Ring &ring, const Expr &step,
                  const Expr &token);
  std::string copy_tile(const std::string &map, int chunk_bytes, const std::string &to,
                        const std::string &barrier, const std::string &token, const std::string &head,
                        const std::string &batch, const std::string &guard) const;
  Expr start_copy_warpgroup(const TensorTask &task, const Expr &token);
  Expr multiply_keys(const Expr &queries, const Expr &keys, const Expr &token);
  Expr multiply_values(const Expr &step, const Expr &token);
  Expr take_turn(const Expr &token);
  Expr pass_turn(const Expr &token);
  Expr wait_products(int pending, const Expr &token);

  int chunks_;
  Ring q_, k_, v_, bias_;
  int tasks_, posted_;  // places of posted tasks, and the barriers that say that they are there
  int end_;
};

}  // namespace posattn
