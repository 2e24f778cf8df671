// Attention over splits of the keys becomes attention over all of them: each split brings its output, already
// divided by its own sum, and the logarithm of that sum (lse). Split s weighs exp(lse_s - lse).
#include "generators/fast_math.h"
#include "generators/storage.h"
#include "schedules/machine.h"
#include "schedules/merge_cuda.h"
#include "schedules/merge_simd.h"

namespace posattn {

using namespace Halide;

class Merge : public Generator<Merge> {
 public:
  GeneratorParam<Type> type{"type", Float(32)};
  GeneratorParam<int> head_dim{"head_dim", 64};  // at least the extent of d, and a multiple of 16

  // A split's row is (query, one of row_heads neighbouring heads), as in the attention kernel. A split with
  // an lse of -infinity saw nothing; its output may be anything finite. A GPU reads four channels at a time,
  // of which there are multiples, and up to head_dim of them behind the last row.
  Input<int> row_heads{"row_heads"};
  Input<Buffer<float, 5>> partial_out{"partial_out"};  // (d, row, split, head / row_heads, batch)
  Input<Buffer<float, 4>> partial_lse{"partial_lse"};  // (row, split, head / row_heads, batch)
  Output<Buffer<void, 4>> out{"out"};                  // (d, query, head, batch); zero where nothing is seen
  Output<Buffer<float, 3>> lse{"lse"};                 // (query, head, batch); -infinity there

  void configure() { out.set_type(type); }

  void generate() {
    Var d("d"), query("query"), head("head"), batch("batch"), split("split"), part("part");
    // A GPU takes so many at a time that none is left over: what is beyond the last has seen nothing.
    const bool on_gpu = get_target().has_gpu_feature();
    const Expr count = partial_lse.dim(1).extent();
    const int parts = schedules::kMergeParts, steps = schedules::kMergeSteps;
    const RDom splits =
        on_gpu ? RDom(0, parts, 0, steps, 0, (count + parts * steps - 1) / (parts * steps), "splits")
               : RDom(0, count, "splits");
    const Expr every = on_gpu ? (splits.z * parts + splits.x) * steps + splits.y : Expr(splits.x);
    const Expr row = query * row_heads + head % row_heads, row_group = head / row_heads;

    // The algorithm. Infinities are looked for among bits: fast math takes them for impossible.
    const auto existing = [&](const Expr &s) { return on_gpu ? min(s, count - 1) : s; };
    const Expr lse_of_split = partial_lse(row, existing(split), row_group, batch);
    f.split_lse(split, query, head, batch) =
        on_gpu ? reinterpret<float>(
                     select(split < count, reinterpret<uint32_t>(lse_of_split), Expr(kMinusInfinityBits)))
               : lse_of_split;
    const auto split_lse = [&](const Expr &s) { return f.split_lse(s, query, head, batch); };
    const auto visible = [&](const Expr &s, const Expr &value, float otherwise) {
      return select(is_minus_infinity(split_lse(s)), otherwise, value);
    };
    const auto weight = [&](const Expr &s, const Expr &reference) {
      return visible(s, exp2_nonpositive((split_lse(s) - reference) * kLog2E), 0.f);
    };
    const auto is_zero = [](const Expr &sum) { return reinterpret<int>(sum) == 0; };

    // In two steps on a GPU, where each thread that needs the maximum takes the second one.
    f.part_steps = RDom(0, steps, 0, (count + parts * steps - 1) / (parts * steps), "part_steps");
    f.parts = RDom(0, parts, "parts");
    const Expr of_part = (f.part_steps.y * parts + part) * steps + f.part_steps.x;
    f.part_maximum(part, query, head, batch) = kHidden;
    f.part_maximum(part, query, head, batch) =
        max(f.part_maximum(part, query, head, batch), visible(of_part, split_lse(of_part), kHidden));
    const auto define_maximum = [&](Func maximum) {
      const Expr value = on_gpu ? Expr(f.part_maximum(f.parts, query, head, batch))
                                : visible(every, split_lse(every), kHidden);
      maximum(query, head, batch) = kHidden;
      maximum(query, head, batch) = max(maximum(query, head, batch), value);
    };
    define_maximum(f.maximum);
    if (on_gpu) define_maximum(f.maximum_for_lse);
    f.sum(query, head, batch) = 0.f;
    f.sum(query, head, batch) += weight(every, f.maximum(query, head, batch));
    const auto define_lse = [&](const Expr &sum) {
      const Expr merged =
          reinterpret<uint32_t>((on_gpu ? f.maximum_for_lse : f.maximum)(query, head, batch) + log(sum));
      f.row_lse(query, head, batch) =
          reinterpret<float>(select(is_zero(sum), Expr(kMinusInfinityBits), merged));
      lse(query, head, batch) = f.row_lse(query, head, batch);
    };
    if (!on_gpu) define_lse(f.sum(query, head, batch));

    // Weights add up to 1 as closely as lse is rounded, which for large scores is not close enough: they are
    // summed beside what they weigh. Against lse on a CPU, which has computed it for all rows by then; a
    // block of threads has the maximum earlier.
    const Expr reference = on_gpu ? Expr(f.maximum(query, head, batch)) : Expr(lse(query, head, batch));
    f.weight(split, query, head, batch) = weight(split, reference);
    const Expr last_d = partial_out.dim(0).extent() - 1;
    const Expr existing_d = on_gpu ? Expr(d) : Expr(min(likely(d), last_d));
    f.value(d, split, query, head, batch) = partial_out(existing_d, row, existing(split), row_group, batch);
    const Expr value = f.value(d, every, query, head, batch);
    const Expr w = f.weight(every, query, head, batch);
    f.weighted(d, query, head, batch) = Tuple(0.f, 0.f);
    const FuncRef weighted = f.weighted(d, query, head, batch);
    f.weighted(d, query, head, batch) = Tuple(weighted[0] + w * value, weighted[1] + w);
    out(d, query, head, batch) =
        store_float(type, select(is_zero(weighted[1]), 0.f, weighted[0] / weighted[1]), get_target());
    if (on_gpu) define_lse(f.weighted(0, query, head, batch)[1]);

    for (int i = 0; i < 5; i++) partial_out.dim(i).set_min(0);
    for (int i = 1; i < 5 && on_gpu; i++) {
      partial_out.dim(i).set_stride(partial_out.dim(i).stride() / 4 * 4);
    }
    for (int i = 0; i < 4; i++) partial_lse.dim(i).set_min(0), out.dim(i).set_min(0);
    for (int i = 0; i < 3; i++) lse.dim(i).set_min(0);

    f.out = out;
    f.lse = lse;
    f.vars = {d, split, query, head, batch, part};
    f.splits = splits;
    f.whole_rows = partial_out.dim(0).extent() == head_dim && out.dim(0).extent() == head_dim;
  }

  void schedule() {
    if (get_target().has_gpu_feature()) {
      schedules::schedule_merge_cuda(f, head_dim);
    } else {
      schedules::schedule_merge(f, schedules::machine(get_target()), head_dim);
    }
  }

 private:
  schedules::MergeFuncs f;
};

}  // namespace posattn

HALIDE_REGISTER_GENERATOR(posattn::Merge, merge)
