// Kernels for GPUs that make one element a thread.
#pragma once

#include <string>
#include <vector>

#include "Halide.h"

namespace posattn {

// One thread an element, neighbours along the first dimension.
inline void schedule_elements(Halide::Func f) {
  using namespace Halide;
  const std::vector<Var> args = f.args();
  Var block("block"), thread("thread"), rest = args[1];
  for (size_t i = 2; i < args.size(); i++) {
    Var fused("fused_" + std::to_string(i));
    f.fuse(rest, args[i], fused);
    rest = fused;
  }
  Var all("all");
  f.split(args[0], block, thread, 128, TailStrategy::GuardWithIf)
      .fuse(block, rest, all)
      .gpu_blocks(all)
      .gpu_threads(thread);
}

template <typename B>
void from_zero(B &buffer) {
  for (int i = 0; i < buffer.dimensions(); i++) buffer.dim(i).set_min(0);
}

// Positions in any type.
template <typename T>
class PositionGenerator : public Halide::Generator<T> {
 public:
  using Expr = Halide::Expr;
  using Var = Halide::Var;
  template <typename U>
  using In = Halide::GeneratorInput<U>;
  In<int> form{"form"};  // 0: first, first + 1, ..; then f32, f64, i32, i64
  In<int> first{"first"};
  In<Halide::Buffer<float, 2>> p_f32{"p_f32"};  // (token, batch), any steps
  In<Halide::Buffer<double, 2>> p_f64{"p_f64"};
  In<Halide::Buffer<int32_t, 2>> p_i32{"p_i32"};
  In<Halide::Buffer<int64_t, 2>> p_i64{"p_i64"};
  In<bool> has_mask{"has_mask"};
  In<Halide::Buffer<uint8_t, 2>> mask{"mask"};

 protected:
  Var token{"token"}, batch{"batch"};

  Expr position() const {
    const auto at = [&](const auto &tensor, int own) {
      return Halide::cast<double>(
          tensor(Halide::select(form == own, token, 0), Halide::select(form == own, batch, 0)));
    };
    return Halide::select(form == 1, at(p_f32, 1), form == 2, at(p_f64, 2), form == 3, at(p_i32, 3),
                          form == 4, at(p_i64, 4), Halide::cast<double>(token + first));
  }
  Expr has_position() const {
    return !has_mask || mask(Halide::select(has_mask, token, 0), Halide::select(has_mask, batch, 0)) != 0;
  }
  void declare_steps() {
    const auto any = [](auto &tensor) { tensor.dim(0).set_stride(Expr()), from_zero(tensor); };
    any(p_f32), any(p_f64), any(p_i32), any(p_i64), any(mask);
  }
};

}  // namespace posattn
