// Attention over splits of the keys becomes attention over all of them: each split brings its output, already
// divided by its own sum, and the logarithm of that sum (lse). Split s weighs exp(lse_s - lse).
#include "generators/fast_math.h"
#include "generators/storage.h"
#include "lowering/ptx_kernel.h"
#include "lowering/ptx_ops.h"
#include "schedules/machine.h"
#include "schedules/merge_cuda.h"
#include "schedules/merge_simd.h"

namespace posattn {

using namespace Halide;

class Merge : public Generator<Merge>, public PtxKernel {
 public:
  GeneratorParam<Type> type{"type", Float(32)};
  GeneratorParam<int> head_dim{"head_dim", 64};  // at least the extent of d, and a multiple of 16
  // sm90a: in machine code for that card, which starts while the attention before it still runs.
  GeneratorParam<std::string> card{"card", ""};

  // A split's row is (query, one of row_heads neighbouring heads), as in the attention kernel. A split with
  // an lse of -infinity saw nothing; its output may be anything finite. A GPU reads four channels at a time,
  // of which there are multiples, and up to head_dim of them behind the last row.
  Input<int> row_heads{"row_heads"};
  Input<Buffer<float, 5>> partial_out{"partial_out"};  // (d, row, split, head / row_heads, batch)
  Input<Buffer<float, 4>> partial_lse{"partial_lse"};  // (row, split, head / row_heads, batch)
  Output<Buffer<void, 4>> out{"out"};                  // (d, query, head, batch); zero where nothing is seen
  Output<Buffer<float, 3>> lse{"lse"};                 // (query, head, batch); -infinity there

  void configure() {
    out.set_type(type);
    // Says so to whoever launches it.
    if (has_card()) add_input<int>("starts_early");
  }

  void generate() {
    count_ = partial_lse.dim(1).extent();
    if (has_card()) {
      // All of them at once, with all of the registers: or the assembler would put loads off.
      const int threads = head_dim / schedules::kMergeChannels * schedules::kMergeParts;
      ptx_head = {"8.4", "sm_90a", "\t.maxntid " + std::to_string(threads) + ", 1, 1\n\t.minnctapersm 1\n",
                  true};
      assemble_for = ptx_head.target;
      stores_outputs = true;
    }
    on_gpu() ? merge_in_parts() : merge_in_turn();
    for (int i = 0; i < 5; i++) partial_out.dim(i).set_min(0);
    for (int i = 1; i < 5 && on_gpu(); i++) {
      partial_out.dim(i).set_stride(partial_out.dim(i).stride() / 4 * 4);
    }
    for (int i = 0; i < 4; i++) partial_lse.dim(i).set_min(0), out.dim(i).set_min(0);
    for (int i = 0; i < 3; i++) lse.dim(i).set_min(0);
  }

  void schedule() {
    if (on_gpu()) {
      schedules::schedule_merge_cuda(parts_, head_dim);
    } else {
      schedules::schedule_merge(f, schedules::machine(get_target()), head_dim);
    }
  }

 private:
  bool has_card() const { return !std::string(card).empty(); }
  bool on_gpu() const { return get_target().has_gpu_feature(); }

  // Infinities are looked for among bits: fast math takes them for impossible.
  static Expr visible(const Expr &split_lse, const Expr &value, float otherwise) {
    return select(is_minus_infinity(split_lse), otherwise, value);
  }
  Expr exp_nonpositive_of(const Expr &x) const {
    return has_card() ? ops_.exp2(x * kLog2E) : exp_nonpositive(x);
  }
  Expr larger(const Expr &a, const Expr &b) const { return has_card() ? ops_.max(a, b) : max(a, b); }
  Expr weight_of(const Expr &split_lse, const Expr &reference) const {
    return visible(split_lse, exp_nonpositive_of(split_lse - reference), 0.f);
  }
  Expr lse_of(const Expr &maximum, const Expr &sum) const {
    const Expr merged = reinterpret<uint32_t>(maximum + log_positive(sum));
    return reinterpret<float>(select(is_zero(sum), Expr(kMinusInfinityBits), merged));
  }
  Expr stored_out(const Expr &sum, const Expr &weights) const {
    return store_float(type, select(is_zero(weights), 0.f, sum / weights), get_target());
  }

  // One split after the other, on a CPU.
  void merge_in_turn() {
    const RDom splits(0, count_, "splits");
    const Expr every = Expr(splits.x);
    const Expr row = query * row_heads + head % row_heads, row_group = head / row_heads;

    f.split_lse(split, query, head, batch) = partial_lse(row, split, row_group, batch);
    const auto split_lse = [&](const Expr &s) { return f.split_lse(s, query, head, batch); };
    f.maximum(query, head, batch) = kHidden;
    f.maximum(query, head, batch) =
        max(f.maximum(query, head, batch), visible(split_lse(every), split_lse(every), kHidden));
    f.sum(query, head, batch) = 0.f;
    f.sum(query, head, batch) += weight_of(split_lse(every), f.maximum(query, head, batch));
    f.row_lse(query, head, batch) = lse_of(f.maximum(query, head, batch), f.sum(query, head, batch));
    lse(query, head, batch) = f.row_lse(query, head, batch);

    // Weights add up to 1 as closely as lse is rounded, which for large scores is not close enough: they are
    // summed beside what they weigh.
    f.weight(split, query, head, batch) = weight_of(split_lse(split), lse(query, head, batch));
    const Expr last_d = partial_out.dim(0).extent() - 1;
    f.value(d, split, query, head, batch) = partial_out(min(likely(d), last_d), row, split, row_group, batch);
    const Expr value = f.value(d, every, query, head, batch);
    const Expr w = f.weight(every, query, head, batch);
    f.weighted(d, query, head, batch) = Tuple(0.f, 0.f);
    const FuncRef weighted = f.weighted(d, query, head, batch);
    f.weighted(d, query, head, batch) = Tuple(weighted[0] + w * value, weighted[1] + w);
    out(d, query, head, batch) = stored_out(weighted[0], weighted[1]);

    f.out = out;
    f.lse = lse;
    f.vars = {d, split, query, head, batch};
    f.splits = splits;
    f.whole_rows = partial_out.dim(0).extent() == head_dim && out.dim(0).extent() == head_dim;
  }

  // A GPU takes as long as it waits for memory: parts of the threads merge some splits each, whose lse and
  // outputs they load at the same time, against the maximum of their own; then come the parts.
  void merge_in_parts() {
    const int parts = schedules::kMergeParts, steps = schedules::kMergeSteps;
    constexpr int kChannels = schedules::kMergeChannels;
    schedules::MergeCudaFuncs &g = parts_;
    const auto at = [this](std::vector<Expr> first) {
      first.insert(first.end(), {query, head, batch});
      return first;
    };
    // Unsigned numbers take fewer instructions to divide, but Halide bounds nothing that wraps.
    const auto within = [this](const Expr &x, int dim) {
      return unsafe_promise_clamped(x, 0, partial_lse.dim(dim).extent() - 1);
    };
    const Expr row_group = within(cast<int>(cast<uint32_t>(head) / cast<uint32_t>(row_heads)), 2);
    const Expr row = within(query * row_heads + head - row_group * row_heads, 0);
    const auto existing = [this](const Expr &s) { return min(s, count_ - 1); };

    // What is beyond the last split has seen nothing.
    const Expr loaded = partial_lse(row, existing(split), row_group, batch);
    g.split_lse(split, query, head, batch) =
        reinterpret<float>(select(split < count_, reinterpret<uint32_t>(loaded), Expr(kMinusInfinityBits)));
    g.value(d, split, query, head, batch) = partial_out(d, row, existing(split), row_group, batch);

    // Of some neighbouring channels: the maximum, the sum of weights, and weighted outputs.
    g.turns = RDom(0, (count_ + parts * steps - 1) / (parts * steps), "turns");
    g.part(at({piece, part})) = Tuple(Expr(kHidden), Expr(0.f), Expr(0.f), Expr(0.f), Expr(0.f), Expr(0.f));
    const FuncRef before = g.part(at({piece, part}));
    const Expr first = (g.turns * parts + part) * steps;
    std::vector<Expr> lses, after(2 + kChannels);
    for (int i = 0; i < steps; i++) lses.push_back(g.split_lse(at({first + i})));
    after[0] = before[0];
    for (const Expr &x : lses) after[0] = larger(after[0], visible(x, x, kHidden));
    const Expr decay = exp_nonpositive_of(before[0] - after[0]);
    for (int j = 1; j < 2 + kChannels; j++) after[j] = before[j] * decay;
    for (int i = 0; i < steps; i++) {
      const Expr w = weight_of(lses[i], after[0]);
      after[1] += w;
      for (int j = 0; j < kChannels; j++) {
        after[2 + j] += w * g.value(at({piece * kChannels + j, first + i}));
      }
    }
    g.part(at({piece, part})) = Tuple(after);

    const FuncRef own = g.part(at({d / kChannels, part}));
    std::vector<Expr> channels;
    channels.reserve(kChannels);
    for (int j = 0; j < kChannels; j++) channels.push_back(own[2 + j]);
    g.shared(at({d, part})) = Tuple(own[0], own[1], mux(d % kChannels, channels));

    g.parts = RDom(0, parts, "parts");
    const FuncRef each = g.shared(at({d, Expr(g.parts)}));
    g.maximum(at({d})) = kHidden;
    g.maximum(at({d})) = larger(g.maximum(at({d})), each[0]);
    const Expr w = exp_nonpositive_of(each[0] - g.maximum(at({d})));
    const FuncRef sum = g.sum(at({d}));
    g.sum(at({d})) = Tuple(0.f, 0.f);
    g.sum(at({d})) = Tuple(sum[0] + w * each[1], sum[1] + w * each[2]);
    // Weights add up to 1 as closely as lse is rounded, which for large scores is not close enough: their sum
    // divides.
    g.joined(at({d})) = Tuple(g.maximum(at({d})), sum[0], sum[1]);
    const FuncRef of_channel = g.joined(at({d})), of_row = g.joined(at({Expr(0)}));
    out(d, query, head, batch) = stored_out(of_channel[2], of_channel[1]);
    g.row_lse(query, head, batch) = lse_of(of_row[0], of_row[1]);
    lse(query, head, batch) = g.row_lse(query, head, batch);

    g.out = out;
    g.lse = lse;
    g.vars = {d, split, query, head, batch, part, piece};
  }

  Var d{"d"}, query{"query"}, head{"head"}, batch{"batch"}, split{"split"}, part{"part"}, piece{"piece"};
  Expr count_;
  PtxOps ops_{ptx};
  schedules::MergeFuncs f;
  schedules::MergeCudaFuncs parts_;
};

}  // namespace posattn

HALIDE_REGISTER_GENERATOR(posattn::Merge, merge)
