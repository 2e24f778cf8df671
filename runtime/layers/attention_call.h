// One call of a layer, step by step.
#pragma once

#include "runtime/layers/layer_steps.h"
#include "runtime/layers/projections.h"

namespace posattn {

class AttentionCall {
 public:
  // Checks the arguments, as far as the layer knows them: masks are attend's. Throws Error.
  AttentionCall(const LayerFacts &layer, const ForwardArgs &args, const ForwardOutputs &outputs,
                const LayerSteps &steps);
  // Computes. An Error leaves outputs and cache as they were.
  void run(LayerSteps &steps);

 private:
  void check_streams();
  void check_cache(const LayerSteps &steps) const;
  void check_positions_and_bias(const LayerSteps &steps) const;
  void check_outputs() const;
  void check_memory(const LayerSteps &steps) const;

  Projected project(LayerSteps &steps) const;
  void set_query(const Projected &projected, LayerSteps &steps);
  void set_keys(const Projected &projected, LayerSteps &steps);
  void set_outputs(const MutableTensorView &mixed, LayerSteps &steps);
  void set_options();
  void merge_extra_keys(LayerSteps &steps) const;

  // Attention rotates as it reads; merging extra keys needs a rotated query of its own.
  bool rotates_first(const LayerSteps &steps) const {
    return layer_.rope && (layer_.extra_keys > 0 || (args_.cache && !steps.rotates_before_cache()));
  }
  bool uses_positions() const { return layer_.rope || !layer_.branches.empty(); }

  const LayerFacts &layer_;
  const ForwardArgs &args_;
  const ForwardOutputs &outputs_;
  int64_t batch_ = 0, queries_ = 0;
  int64_t cached_ = 0;  // keys that the cache held before
  int64_t fresh_ = 0;   // keys that this call brings
  AttendArgs attention_;
  MutableTensorView all_weights_;  // with columns for extra keys, a matrix for each head
};

}  // namespace posattn
