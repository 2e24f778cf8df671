// One call of a layer, step by step.
#pragma once

#include "runtime/layers/extra_keys.h"
#include "runtime/layers/layer_dims.h"
#include "runtime/layers/projections.h"

namespace posattn {

// What a layer is made of.
struct LayerParts {
  LayerDims dims;
  PositionSet positions;
  Projections in;
  Linear out;
  ExtraKeys extra;
};

class AttentionCall {
 public:
  // Checks the arguments, as far as the layer knows them: masks are attend's. Throws Error.
  AttentionCall(const LayerParts &layer, const ForwardArgs &args, const ForwardOutputs &outputs);
  // Computes. An Error leaves outputs and cache as they were.
  void run(Scratch &scratch);

 private:
  void check_streams();
  void check_cache() const;
  void check_positions_and_bias() const;
  void check_outputs() const;

  Projected project(Scratch &scratch) const;
  void set_query(const Projected &projected, Scratch &scratch);
  void set_keys(const Projected &projected, Scratch &scratch);
  void set_outputs(const MutableTensorView &mixed, Scratch &scratch);
  void set_options();
  void merge_extra_keys() const;

  MutableTensorView rotated(const TensorView &x, int64_t heads, const TensorView &positions,
                            const TensorView &mask, Scratch &scratch) const;
  // Attention rotates as it reads; only merging extra keys needs a rotated query of its own.
  bool rotates_first() const { return layer_.positions.rope() && layer_.extra.count() > 0; }
  bool uses_positions() const {
    return layer_.positions.rope() || !layer_.positions.logit_branches().empty();
  }

  const LayerParts &layer_;
  const ForwardArgs &args_;
  const ForwardOutputs &outputs_;
  int64_t batch_ = 0, queries_ = 0;
  int64_t cached_ = 0;  // keys that the cache held before
  int64_t fresh_ = 0;   // keys that this call brings
  AttendArgs attention_;
  MutableTensorView all_weights_;  // with columns for extra keys, a matrix for each head
};

}  // namespace posattn
