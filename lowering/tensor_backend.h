// What differs between generations of tensor cores in an attention kernel: how tiles of queries, keys and
// values get to a block of threads, how they are multiplied, and what is waited for.
//
// Both generations hold an accumulator the same way. A warp has row_tiles x 16 rows. Of a tile of 16 rows,
// lane t has rows t / 4 and t / 4 + 8, and of every eight columns the two from t % 4 * 2 on: element i of a
// thread's elements of one row tile is row t / 4 + 8 * (i / 2 % 2), column i / 4 * 8 + t % 4 * 2 + i % 2.
// Scores are in the named registers %S, outputs in %O, a row tile after the other.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "Halide.h"
#include "lowering/ptx_ops.h"

namespace posattn {

struct TensorTiles {
  int head_dim;         // a multiple of 16
  int keys;             // in a block of keys; a multiple of 16
  int warpgroups;       // of four warps, that multiply
  int row_tiles;        // of 16 rows, of a warp
  int stages;           // blocks of keys and values on their way; a power of two
  bool copy_warpgroup;  // one more warpgroup does nothing but copy
  bool overlap;  // the weights of a block are computed while the values of the block before are multiplied
  bool early_value_wait;  // see Hopper::accumulate
  bool shared_queries;  // mma.sync: queries stay in shared memory, and leave their registers to larger tiles
  int blocks_per_sm;    // that registers shall leave room for
  int group_warps = 4;  // of a warpgroup; one, where a block of threads is a single warp
  bool ahead = false;  // a tile's first scores are multiplied while the outputs of the tile before are stored
  // For blocks of a dense bias of 16 bits, one on its way into each; a power of two or 0.
  int bias_places = 0;
  // Warpgroups start products one after the other, so that one multiplies while others do not.
  bool in_turns = false;
  bool streams = false;  // mma.sync: that single warp goes over a part of the keys, for rows from anywhere
  bool starts_early = false;  // before the kernel before it has ended (InlinePtx::Head)

  int rows() const { return warpgroups * group_warps * row_tiles * 16; }
  int group_threads() const { return group_warps * 32; }
  int groups() const { return warpgroups + (copy_warpgroup ? 1 : 0); }
  int scores() const { return row_tiles * keys / 2; }       // of a thread
  int outputs() const { return row_tiles * head_dim / 2; }  // of a thread
  int thread_rows() const { return row_tiles * 2; }
  // Which of its rows a thread's score or output belongs to.
  int row_of_score(int i) const { return i / (keys / 2) * 2 + i / 2 % 2; }
  int row_of_output(int i) const { return i / (head_dim / 2) * 2 + i / 2 % 2; }
};

// A matrix of tokens in device memory: its address, and steps in elements. What lies beyond `tokens` reads as
// zero.
struct TensorSource {
  Halide::Expr address, token_stride, head_stride, batch_stride;
  Halide::Expr tokens, channels;
  Halide::Expr map;  // a number that stands for a CUtensorMap over (channel, token, head, batch)
};

// One tile of queries that a block of threads works on.
struct TensorTask {
  TensorSource q, k, v;
  // A dense bias of 16 bits, (key, query, head, batch), where there is one: its map alone; and 1, or 0 where
  // all heads, or batches, share it.
  Halide::Expr bias_map, bias_of_head, bias_of_batch;
  Halide::Expr first_row, head, kv_head, batch;
  // Of a stream: where the rows of queries that a thread copies start, computed once the token is there.
  std::function<std::vector<Halide::Expr>(const Halide::Expr &token)> row_addresses;
  // Step s of `steps` is about one block of keys: the last ones from last_block down, `right` of them; then
  // from first_block up, until `masked` steps are done; then from last_block - right down.
  Halide::Expr steps, last_block, first_block, right, masked;
  // Tasks, and steps of them, that this block of threads has worked on before.
  Halide::Expr round, steps_before;

  // The block of keys of any step, and the same where the step is known to be masked, or not to be.
  // In a stream every step is masked, and blocks follow each other.
  bool is_stream = false;
  Halide::Expr block(const Halide::Expr &s) const {
    if (is_stream) return last_block - s;
    return Halide::select(s < masked, masked_block(s), inner_block(s));
  }
  Halide::Expr masked_block(const Halide::Expr &s) const {
    return Halide::select(s < right, last_block - s, first_block + s - right);
  }
  Halide::Expr inner_block(const Halide::Expr &s) const { return last_block - s + masked - right; }
};

class TensorBackend {
 public:
  using Expr = Halide::Expr;
  // A step and the block of keys that it is about.
  struct Step {
    Expr index, block;
    bool is_first;
  };

  TensorBackend(InlinePtx &ptx, const TensorTiles &tiles, bool is_bfloat)
      : ops(ptx), tiles(tiles), is_bfloat(is_bfloat) {
    ptx.declare_register(".f32 %S<" + number(tiles.scores()) + ">");
    ptx.declare_register(".f32 %O<" + number(tiles.outputs()) + ">");
  }
  virtual ~TensorBackend() = default;

  virtual int shared_bytes() const = 0;
  // Every method takes a token and returns one.
  // Once; the tasks that a copy warpgroup begins with.
  virtual Expr setup(const std::vector<TensorTask> &tasks, const Expr &token) = 0;
  // Fetches a task's queries, and starts to fetch keys and values.
  virtual Expr begin(const TensorTask &task, const Expr &token) = 0;
  // Where a copy warpgroup gets its tasks ahead of time, so do those that multiply. Posts one, kTasksAhead
  // rounds early; one without steps is the end. Waits for a round's task, or leaves for good; and reads its
  // numbers.
  static constexpr int kTasksAhead = 2;
  virtual Expr post(const TensorTask &, const Expr &token) { return token; }
  virtual Expr enter(const Expr & /*round*/, const Expr &token) { return token; }
  // Starts the first product of queries and keys of a round's task, if there is one, where tiles are `ahead`.
  virtual Expr start_scores(const Expr & /*round*/, const Expr & /*steps_before*/, const Expr & /*group*/,
                            const Expr &token) {
    return token;
  }
  virtual void read_posted(TensorTask &, const Expr & /*token*/) {}
  // Products of queries and keys; %S holds them afterwards.
  virtual Expr scores(const TensorTask &task, const Step &step, const Expr &group, const Expr &token) = 0;
  // The biases of the products that scores() made; then that of any of a thread's scores.
  virtual Expr load_bias(const TensorTask &, const Step &, const Expr &token) { return token; }
  Expr bias(const Expr &constant_index, const Expr &token) const {
    const std::string half = "\t{ .reg .b32 x; shr.u32 x, %B$0, $1; ";
    // The upper half of a float is a bfloat16.
    const std::string text = is_bfloat ? half + "shl.b32 x, x, 16; mov.b32 $r, x; }"
                                       : half + "{ .reg .b16 h; cvt.u16.u32 h, x; cvt.f32.f16 $r, h; } }";
    return ops.ptx.read(Halide::Float(32), text, {constant_index / 2, constant_index % 2 * 16, token});
  }
  // Scales what is there by `decay`, a factor a row, and adds the weighted values.
  virtual Expr accumulate(const TensorTask &task, const Step &step, const std::vector<Expr> &decay,
                          const std::vector<Expr> &weights, const Expr &token) = 0;
  // After the last step; and until %O holds the sums.
  virtual Expr finish(const TensorTask &task, const Expr &token) = 0;
  virtual Expr wait_for_outputs(const TensorTask &task, const Expr &token) = 0;
  // After the last task.
  virtual Expr leave(const Expr &token) { return token; }

  PtxOps ops;
  const TensorTiles tiles;
  const bool is_bfloat;

 protected:
  Expr scale_outputs(const std::vector<Expr> &decay, const Expr &token) {
    std::string text;
    for (int i = 0; i < tiles.outputs(); i++) {
      const std::string name = "%O" + number(i);
      text += "\tmul.ftz.f32 " + name + ", " + name + ", $" + number(tiles.row_of_output(i)) + ";\n";
    }
    std::vector<Expr> arguments = decay;
    arguments.push_back(token);
    return ops.ptx.effect(text, arguments);
  }
  // Into %P, which backends declare: pairs of neighbours, as the product with the values reads them.
  Expr pack_weights(const std::vector<Expr> &weights, const Expr &token) {
    std::string text;
    for (int i = 0; i < tiles.scores() / 2; i++) {
      text += pack("%P" + number(i), "$" + number(2 * i), "$" + number(2 * i + 1));
    }
    std::vector<Expr> arguments = weights;
    arguments.push_back(token);
    return ops.ptx.effect(text, arguments);
  }
  std::string type_name() const { return is_bfloat ? "bf16" : "f16"; }
  // Packs two floats, the second into the upper half.
  std::string pack(const std::string &to, const std::string &low, const std::string &high) const {
    return "\tcvt.rn." + type_name() + "x2.f32 " + to + ", " + high + ", " + low + ";\n";
  }
};

}  // namespace posattn
