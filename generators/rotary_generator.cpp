// Rotation of projected queries and keys by their positions (rope; Su et al. 2021, arXiv:2104.09864). Angles
// come as tables of cosines and sines, so that any scaling of positions or frequencies is the caller's.
#include "generators/fast_math.h"
#include "generators/storage.h"
#include "schedules/machine.h"
#include "schedules/rotary_cuda.h"
#include "schedules/rotary_simd.h"

namespace posattn {

using namespace Halide;

class Rotary : public Generator<Rotary>, public schedules::Tunable {
 public:
  GeneratorParam<Type> type{"type", Float(32)};
  GeneratorParam<int> task_rows{"task_rows", schedules::kRotaryTaskRows};

  Input<Buffer<void, 4>> x{"x"};  // (d, token, head, batch)
  // (pair, token, batch), strides of 0 allowed. Cosines of +infinity: the token is copied, bit for bit.
  Input<Buffer<float, 3>> cos{"cos"}, sin{"sin"};
  // Pairs are (x0, x1), (x2, x3), ...; else (x_i, x_{i + pairs}).
  Input<bool> interleaved{"interleaved"};
  Output<Buffer<void, 4>> y{"y"};  // what lies beyond the pairs is copied

  void configure() {
    x.set_type(type);
    y.set_type(type);
  }

  void generate() {
    Var d("d"), token("token"), head("head"), batch("batch");
    const Expr pairs = cos.dim(0).extent(), width = x.dim(0).extent();

    // The algorithm.
    // Of the token's first cosine, a scalar: the vectors at the end of a row are loaded under a predicate,
    // and fast math calls infinities in such loads impossible, even to those who look at the bits.
    const Expr keep = reinterpret<uint32_t>(cos(0, token, batch)) == Expr(kPlusInfinityBits);
    const auto rotated = [&](const Expr &pair, const Expr &at, const Expr &other, const Expr &other_sign) {
      const Expr value = x(at, token, head, batch);
      const Expr c = cos(pair, token, batch), s = sin(pair, token, batch);
      const Expr turned = load_float(value, get_target()) * c +
                          load_float(x(other, token, head, batch), get_target()) * (s * other_sign);
      const Expr word = select(keep, word_of(value), word_of(store_float(type, turned, get_target())));
      return reinterpret(Type(type), word);
    };

    y(d, token, head, batch) = undef(type);
    // Each layout's loops are empty where it is the other's turn.
    f.adjacent = RDom(0, 2, 0, select(interleaved, pairs, 0), "adjacent");
    f.apart = RDom(0, 2, 0, select(interleaved, 0, pairs), "apart");
    for (const RDom &r : {f.adjacent, f.apart}) {
      const bool is_adjacent = r.y.name() == f.adjacent.y.name();
      const auto at = [&](const Expr &element) {
        return is_adjacent ? 2 * r.y + element : r.y + element * pairs;
      };
      y(at(r.x), token, head, batch) = rotated(r.y, at(r.x), at(1 - r.x), cast<float>(2 * r.x - 1));
    }
    f.rest = RDom(2 * pairs, width - 2 * pairs, "rest");
    y(f.rest, token, head, batch) = reinterpret(Type(type), word_of(x(f.rest, token, head, batch)));

    for (int i = 0; i < 4; i++) x.dim(i).set_min(0), y.dim(i).set_min(0);
    for (int i = 0; i < 3; i++) cos.dim(i).set_min(0), sin.dim(i).set_min(0);

    f.y = y;
    f.vars = {d, token, head, batch};
  }

  schedules::TuningSpace tuning_space() const override {
    if (get_target().has_gpu_feature()) return {};
    return schedules::rotary_tuning_space(schedules::machine(get_target()));
  }

  void schedule() {
    if (get_target().has_gpu_feature()) {
      schedules::schedule_rotary_cuda(f);
    } else {
      schedules::schedule_rotary(f, schedules::machine(get_target()), task_rows);
    }
  }

 private:
  schedules::RotaryFuncs f;
};

}  // namespace posattn

HALIDE_REGISTER_GENERATOR(posattn::Rotary, rotary)
