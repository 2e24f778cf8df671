// Rows of float32 as tensor cores of bfloat16 multiply them: see runtime/cuda/split_float.h.
#include "generators/elements.h"
#include "generators/split_bfloat16.h"
#include "schedules/split_cuda.h"

namespace posattn {

using namespace Halide;

class SplitRows : public Generator<SplitRows> {
 public:
  Input<Buffer<float, 3>> x{"x"};  // (feature, token, batch)
  // (pair of features, product, group, token, batch): of each feature the part that is multiplied in that
  // product, two to a word. Zero beyond the features of `x`.
  Output<Buffer<uint32_t, 5>> out{"out"};

  void generate() {
    Var pair("pair"), product("product"), group("group"), token("token"), batch("batch");
    const Expr features = x.dim(0).extent();
    const auto split = [&](int i) {
      const Expr at = 2 * (group * out.dim(0).extent() + pair) + i;
      const Expr bits = reinterpret<uint32_t>(x(min(at, features - 1), token, batch));
      return SplitFloat(select(at < features, bits, Internal::make_const(UInt(32), 0)));
    };
    const SplitFloat first = split(0), second = split(1);
    const auto both = [&](int i) { return (first.parts[i] >> 16) | second.parts[i]; };
    std::vector<Expr> products;
    for (const int i : kSplitInputParts) products.push_back(both(i));
    out(pair, product, group, token, batch) = mux(product, products);
    from_zero(x), from_zero(out);
    out.dim(1).set_extent(kSplitProducts);
    f.out = out;
    f.vars = {pair, product, group, token, batch};
  }
  void schedule() {
    if (get_target().has_gpu_feature()) schedules::schedule_split_cuda(f);
  }

 private:
  schedules::SplitFuncs f;
};

}  // namespace posattn

HALIDE_REGISTER_GENERATOR(posattn::SplitRows, split_rows)
