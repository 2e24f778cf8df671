// How attention runs on a CPU's SIMD units.
#pragma once

#include <vector>

#include "Halide.h"
#include "schedules/machine.h"
#include "schedules/tuning_space.h"

namespace posattn::schedules {

// The stages of generators/attention_generator.cpp, by the names that they have there.
struct AttentionFuncs {
  Halide::Func query{"query"}, range{"range"}, edge_tiles{"edge_tiles"}, key{"key"}, loaded_key{"loaded_key"},
      product{"product"}, score{"score"}, ordered{"ordered"}, maximum{"maximum"}, weight{"weight"},
      sum{"sum"}, value{"weighted_by"}, loaded_value{"loaded_value"}, weighted{"weighted"},
      block_output{"block_output"}, state{"state"}, total{"total"}, inverse{"inverse"}, row_lse{"row_lse"},
      result{"result"};
  std::vector<Halide::Func> maximum_tree;
  Halide::Func out, lse;
  struct {
    Halide::Var x, lane, tile, row, block, split, row_block, head, batch, d;
  } vars;
  Halide::RDom tiles, unscaled_tiles, products, rd, rk, rs, ry, rv, rb, rx, block_rows;
  std::vector<Halide::RDom> passes;
  bool on_tiles = false;       // products of bfloat16 on AMX tiles, weights in words of two
  bool on_dots = false;        // products of pairs of bfloat16: queries and weights in words of two
  Halide::Expr has_visible;    // some keys are hidden by a mask; of kernels of plain keys alone
  Halide::Expr single_row;     // the kernel is called with one row
  Halide::Expr has_offsets;    // a tabulated bias is added to the products
  Halide::Expr full_head_dim;  // no padding of the head dimension is needed
};

// Sizes that the schedule may choose.
struct AttentionTiles {
  int head_dim;
  int query_block;          // rows of a task: they share a pass over the keys and values
  int row_chunk;            // rows whose scores against one block of keys are in cache at a time
  int key_block;            // keys of a block
  int rows, channels;       // register tile of the weighted values; rows is that of the scores, too
  int single_row_channels;  // the same where there is but one row; 0: no code of its own for that
};
AttentionTiles attention_tiles(const Machine &machine, int head_dim, bool decode);
TuningSpace attention_tuning_space(const Machine &machine, int head_dim, bool decode);

// A task is one block of rows of one head; neighbouring tasks share their keys and values.
struct TaskLevels {
  Halide::LoopLevel task, row;  // once a task; once a row of its output
};
TaskLevels schedule_tasks(AttentionFuncs &f, int query_block, int lanes);
// A task, or a block of threads, has one of all of g's dimensions but rows, tiles and channels, which Halide
// cannot see through fused or parallel loops.
void bound_to_task(const AttentionFuncs &f, Halide::Func g);

void schedule_attention(AttentionFuncs &f, const Machine &machine, const AttentionTiles &tiles);

}  // namespace posattn::schedules
