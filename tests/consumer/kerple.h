// The branch as callers of attend() see it.
#pragma once

#include "runtime/error.h"
#include "runtime/positions.h"

class Kerple : public posattn::LogitBranch {
 public:
  // Both (Hq), f32.
  Kerple(posattn::TensorView scale, posattn::TensorView width) : scale_(scale), width_(width) {}
  const char *name() const override { return "kerple"; }
  void check(const posattn::AttendShape &shape) const override {
    for (const posattn::TensorView &tensor : {scale_, width_}) {
      if (tensor.rank() != 1 || tensor.size(0) != shape.query_heads) {
        posattn::fail("kerple: expected shape (", shape.query_heads, "), got ", tensor.shape_text());
      }
    }
  }
  void bind(posattn::BranchInputs &inputs) const override {
    inputs.add("kerple_scale", scale_);
    inputs.add("kerple_width", width_);
  }

 private:
  posattn::TensorView scale_, width_;
};
