// torch's add_bias_kv and add_zero_attn on a GPU, as runtime/layers/extra_keys.cpp has them on a CPU: keys
// that every query sees are merged into finished attention, as one more block of the online softmax.
#include "generators/elements.h"
#include "generators/fast_math.h"
#include "generators/storage.h"

namespace posattn {

using namespace Halide;

// What the tokens', bias_k's and the zero key's share of each row become, and its logarithm of the sum.
class ExtraFactors : public Generator<ExtraFactors> {
 public:
  GeneratorParam<Type> type{"type", Float(32)};
  Input<float> scale{"scale"}, softcap{"softcap"};
  Input<int> group{"group"};  // query heads a key head
  Input<bool> has_bias{"has_bias"}, has_zero{"has_zero"};
  Input<Buffer<void, 4>> query{"query"};           // (d, query, head, batch)
  Input<Buffer<float, 2>> key{"key"};              // (d, kv_head)
  Input<Buffer<float, 3>> token_lse{"token_lse"};  // (query, head, batch), -infinity if it saw no token
  Output<Buffer<float, 4>> factors{"factors"};     // (query, head, batch, tokens or bias or zero)
  Output<Buffer<float, 3>> lse{"lse"};

  void configure() { query.set_type(type); }
  void generate() {
    // Once for each output, within a thread of its own.
    for (const bool is_lse : {false, true}) {
      Func &product = products[is_lse ? 1 : 0];
      RDom d(0, select(has_bias, query.dim(0).extent(), 0), is_lse ? "e" : "d");
      product(i, head, batch) = 0.f;
      product(i, head, batch) += load_float(query(d, i, head, batch), get_target()) * key(d, head / group);
      Expr score = product(i, head, batch) * scale;
      score = select(softcap > 0, softcap * tanh(score / max(softcap, 1e-30f)), score);

      const Expr unseen = is_minus_infinity(token_lse(i, head, batch));
      const Expr tokens = select(unseen, kHidden, token_lse(i, head, batch));
      const Expr bias = select(has_bias, score, kHidden), zero = select(has_zero, 0.f, kHidden);
      const Expr top = max(tokens, max(bias, zero));
      const auto share = [&](const Expr &given, const Expr &value) {
        return select(given, exp(value - top), 0.f);
      };
      const Expr of_tokens = share(!unseen, tokens), of_bias = share(has_bias, bias);
      const Expr of_zero = share(has_zero, zero), total = of_tokens + of_bias + of_zero;
      if (is_lse) {
        lse(i, head, batch) = top + log(total);
      } else {
        factors(i, head, batch, which) = select(which == 0, of_tokens, which == 1, of_bias, of_zero) / total;
      }
    }
    from_zero(query), from_zero(key), from_zero(token_lse), from_zero(factors), from_zero(lse);
  }
  void schedule() {
    schedule_rows(factors, {which}, products[0]);
    schedule_rows(lse, {}, products[1]);
  }

 private:
  Var i{"i"}, head{"head"}, batch{"batch"}, which{"which"};
  // A thread has a row. Loops are not fused: what a sum in one of them needs would not be known exactly.
  void schedule_rows(Func f, const std::vector<VarOrRVar> &inner, Func &product) {
    Var block("block"), thread("thread");
    f.split(i, block, thread, 128, TailStrategy::GuardWithIf);
    std::vector<VarOrRVar> order = inner;
    for (const Var &var : {thread, block, head, batch}) order.emplace_back(var);
    f.reorder(order).gpu_blocks(block, head, batch).gpu_threads(thread);
    product.compute_at(f, thread).store_in(MemoryType::Register);
  }
  Func products[2] = {Func("product"), Func("product_for_lse")};
};

class ExtraOut : public Generator<ExtraOut> {
 public:
  GeneratorParam<Type> type{"type", Float(32)};
  Input<int> group{"group"};
  Input<bool> has_bias{"has_bias"};
  Input<Buffer<float, 4>> factors{"factors"};
  Input<Buffer<float, 2>> value{"value"};  // (d, kv_head)
  Input<Buffer<void, 4>> in{"in"};         // (d, query, head, batch)
  Output<Buffer<void, 4>> out{"out"};      // may be `in`

  void configure() { in.set_type(type), out.set_type(type); }
  void generate() {
    Var d("d"), i("i"), head("head"), batch("batch");
    const Expr tokens = load_float(in(d, i, head, batch), get_target()) * factors(i, head, batch, 0);
    const Expr own = value(select(has_bias, d, 0), select(has_bias, head / group, 0));
    const Expr sum = tokens + select(has_bias, own * factors(i, head, batch, 1), 0.f);
    out(d, i, head, batch) = store_float(type, sum, get_target());
    from_zero(factors), from_zero(value), from_zero(in), from_zero(out);
  }
  void schedule() { schedule_elements(out); }
};

class ExtraWeights : public Generator<ExtraWeights> {
 public:
  GeneratorParam<Type> type{"type", Float(32)};
  Input<bool> has_bias{"has_bias"};
  Input<int> keys{"keys"};  // columns of tokens, before those of extra keys
  Input<Buffer<float, 4>> factors{"factors"};
  Input<Buffer<void, 4>> in{"in"};     // (key, query, head, batch)
  Output<Buffer<void, 4>> out{"out"};  // may be `in`

  void configure() { in.set_type(type), out.set_type(type); }
  void generate() {
    Var key("key"), i("i"), head("head"), batch("batch");
    const auto factor = [&](int which) { return factors(i, head, batch, which); };
    const Expr token = load_float(in(key, i, head, batch), get_target()) * factor(0);
    const Expr extra = select(has_bias && key == keys, factor(1), factor(2));
    out(key, i, head, batch) = store_float(type, select(key < keys, token, extra), get_target());
    in.dim(0).set_stride(Expr()), out.dim(0).set_stride(Expr());
    from_zero(factors), from_zero(in), from_zero(out);
  }
  void schedule() { schedule_elements(out); }
};

class MeanWeights : public Generator<MeanWeights> {
 public:
  GeneratorParam<Type> type{"type", Float(32)};
  Input<Buffer<void, 4>> in{"in"};     // (key, query, head, batch)
  Output<Buffer<void, 3>> out{"out"};  // (key, query, batch)

  void configure() { in.set_type(type), out.set_type(type); }
  void generate() {
    RDom head(0, in.dim(2).extent(), "head");
    sum(key, i, batch) = 0.f;
    sum(key, i, batch) += load_float(in(key, i, head, batch), get_target());
    out(key, i, batch) =
        store_float(type, sum(key, i, batch) / cast<float>(in.dim(2).extent()), get_target());
    out.dim(0).set_stride(Expr());
    from_zero(in), from_zero(out);
  }
  void schedule() {
    Var block("block"), thread("thread");
    out.split(key, block, thread, 128, TailStrategy::GuardWithIf)
        .reorder(thread, i, block, batch)
        .gpu_blocks(i, block, batch)
        .gpu_threads(thread);
    sum.compute_at(out, thread).store_in(MemoryType::Register);
  }

 private:
  Var key{"key"}, i{"i"}, batch{"batch"};
  Func sum{"sum"};
};

}  // namespace posattn

HALIDE_REGISTER_GENERATOR(posattn::ExtraFactors, extra_factors)
HALIDE_REGISTER_GENERATOR(posattn::ExtraOut, extra_out)
HALIDE_REGISTER_GENERATOR(posattn::ExtraWeights, extra_weights)
HALIDE_REGISTER_GENERATOR(posattn::MeanWeights, mean_weights)
