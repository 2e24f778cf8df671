// What layers on a GPU do to streams of tokens beside products and attention: additive positions, and rows of
// caches. runtime/layers/position_encoder.cpp and runtime/kv_cache.cpp are a CPU's.
#include "generators/elements.h"
#include "generators/fast_math.h"
#include "generators/storage.h"

namespace posattn {

using namespace Halide;

// out(.., b) = in(.., source(b)): rows of a cache as they come (has_source is false), or moved by a search.
class CopyRows : public Generator<CopyRows> {
 public:
  GeneratorParam<Type> type{"type", Float(32)};
  Input<bool> has_source{"has_source"};
  Input<Buffer<int, 1>> source{"source"};  // (batch), any step; clamped to batches of `in`
  Input<Buffer<void, 4>> in{"in"};         // (d, token, head, batch)
  Output<Buffer<void, 4>> out{"out"};

  void configure() {
    const Type words = UInt(static_cast<Type>(type).bits());  // bits of NaNs are kept
    in.set_type(words), out.set_type(words);
  }
  void generate() {
    Var d("d"), token("token"), head("head"), batch("batch");
    const Expr from = select(has_source, source(select(has_source, batch, 0)), batch);
    out(d, token, head, batch) = in(d, token, head, clamp(from, 0, in.dim(3).extent() - 1));
    source.dim(0).set_stride(Expr());
    from_zero(source), from_zero(in), from_zero(out);
  }
  void schedule() { schedule_elements(out); }
};

// out = x + rows.
class AddRows : public Generator<AddRows> {
 public:
  GeneratorParam<Type> type{"type", Float(32)};
  Input<Buffer<void, 3>> x{"x"};         // (channel, token, batch)
  Input<Buffer<float, 3>> rows{"rows"};  // the same, steps of 0 allowed
  Output<Buffer<void, 3>> out{"out"};

  void configure() { x.set_type(type), out.set_type(type); }
  void generate() {
    Var c("c"), token("token"), batch("batch");
    const Expr sum = load_float(x(c, token, batch), get_target()) + rows(c, token, batch);
    out(c, token, batch) = store_float(type, sum, get_target());
    from_zero(x), from_zero(rows), from_zero(out);
  }
  void schedule() { schedule_elements(out); }
};

// The table's row for each position, truncated toward zero: NaN outside of the table, which only the host
// could report, and zero where a token has no position.
class TableRows : public PositionGenerator<TableRows> {
 public:
  GeneratorInput<Buffer<float, 2>> table{"table"};  // (channel, position)
  GeneratorOutput<Buffer<float, 3>> out{"out"};     // (channel, token, batch)

  void generate() {
    Var c("c");
    const Expr length = table.dim(1).extent(), at = trunc(position());
    const Expr inside = at >= cast<double>(0) && at < cast<double>(length);
    const Expr row = cast<int>(clamp(at, cast<double>(0), cast<double>(length - 1)));
    const Expr bits = select(inside, reinterpret<uint32_t>(table(c, row)), Expr(0x7fc00000u));
    out(c, token, batch) = reinterpret<float>(select(has_position(), bits, Expr(0u)));
    from_zero(table), from_zero(out);
    declare_steps();
  }
  void schedule() { schedule_elements(out); }
};

// Sines and cosines of positions times frequencies, or with no frequencies the position itself.
class Waves : public PositionGenerator<Waves> {
 public:
  GeneratorInput<float> scale{"scale"};                          // of sines and cosines
  GeneratorInput<Buffer<double, 1>> frequencies{"frequencies"};  // (channel)
  GeneratorInput<Buffer<uint8_t, 1>> wave{"wave"};               // (channel): 0 sine, 1 cosine, 2 position
  GeneratorOutput<Buffer<float, 3>> out{"out"};                  // (channel, token, batch)

  void generate() {
    Var c("c");
    const Expr angle = position() * frequencies(c);
    const Expr turned = select(wave(c) == 0, sin(angle), cos(angle)) * cast<double>(scale);
    const Expr value = cast<float>(select(wave(c) == 2, position(), turned));
    out(c, token, batch) = select(has_position(), value, 0.f);
    from_zero(frequencies), from_zero(wave), from_zero(out);
    declare_steps();
  }
  void schedule() { schedule_elements(out); }
};

// Between the linear maps of a small network, and behind them, where masked tokens become zero.
class Activation : public Generator<Activation> {
 public:
  Input<int> form{"form"};  // of runtime/layers/position_encoder.h: gelu, relu, silu, tanh; -1: none
  Input<bool> has_mask{"has_mask"};
  Input<Buffer<uint8_t, 2>> mask{"mask"};  // (token, batch), any steps
  Input<Buffer<float, 3>> in{"in"};        // (channel, token, batch)
  Output<Buffer<float, 3>> out{"out"};     // may be `in`

  void generate() {
    Var c("c"), token("token"), batch("batch");
    const Expr x = in(c, token, batch);
    const Expr gelu = 0.5f * x * (1 + erf(x * 0.70710678f)), silu = x / (1 + exp(-x));
    const Expr value =
        select(form == 0, gelu, form == 1, max(x, 0.f), form == 2, silu, form == 3, tanh(x), x);
    const Expr kept = !has_mask || mask(select(has_mask, token, 0), select(has_mask, batch, 0)) != 0;
    out(c, token, batch) = select(kept, value, 0.f);
    mask.dim(0).set_stride(Expr());
    from_zero(mask), from_zero(in), from_zero(out);
  }
  void schedule() { schedule_elements(out); }
};

}  // namespace posattn

HALIDE_REGISTER_GENERATOR(posattn::CopyRows, copy_rows)
HALIDE_REGISTER_GENERATOR(posattn::AddRows, add_rows)
HALIDE_REGISTER_GENERATOR(posattn::TableRows, table_rows)
HALIDE_REGISTER_GENERATOR(posattn::Waves, waves)
HALIDE_REGISTER_GENERATOR(posattn::Activation, activation)
