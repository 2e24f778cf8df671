// What attention on a GPU reads beside queries, keys and values, made from the caller's tensors where they
// are: a CPU fills the same tables in runtime/attend_masks.cpp and runtime/token_positions.cpp.
#include "Halide.h"
#include "generators/elements.h"
#include "generators/fast_math.h"
#include "generators/storage.h"

namespace posattn {

using namespace Halide;

namespace {

// A number that may be stored in several types: the tensors of the other types have one element.
struct FloatForm {
  enum { none, f32, bf16, f16 };
};

template <typename B32, typename B16>
Expr load_any(const Expr &form, const B32 &in_32, const B16 &in_16, const std::vector<Expr> &index,
              const Target &target) {
  const auto at = [&](const Expr &used) {
    std::vector<Expr> result;
    result.reserve(index.size());
    for (const Expr &i : index) result.push_back(select(used, i, 0));
    return result;
  };
  const Expr word = in_16(at(form >= int(FloatForm::bf16)));
  return select(form == int(FloatForm::f32), in_32(at(form == int(FloatForm::f32))),
                form == int(FloatForm::bf16), float_of_word(BFloat(16), word, target),
                form == int(FloatForm::f16), float_of_word(Float(16), word, target), 0.f);
}

}  // namespace

// A float mask or bias in float32.
class FloatMask : public Generator<FloatMask> {
 public:
  Input<int> form{"form"};
  Input<Buffer<float, 4>> in_32{"in_32"};  // (key, query, head, batch), any steps
  Input<Buffer<uint16_t, 4>> in_16{"in_16"};
  Output<Buffer<float, 4>> out{"out"};

  void generate() {
    out(key, query, head, batch) = load_any(form, in_32, in_16, {key, query, head, batch}, get_target());
    in_32.dim(0).set_stride(Expr());
    in_16.dim(0).set_stride(Expr());
    from_zero(in_32), from_zero(in_16), from_zero(out);
  }
  void schedule() { schedule_elements(out); }

 private:
  Var key{"key"}, query{"query"}, head{"head"}, batch{"batch"};
};

// Masks of bytes as one that is true where a key is seen.
class KeepMask : public Generator<KeepMask> {
 public:
  Input<bool> has_keep{"has_keep"}, has_block{"has_block"};
  Input<Buffer<uint8_t, 4>> keep{"keep"}, block{"block"};  // (key, query, head, batch), any steps
  Output<Buffer<uint8_t, 4>> out{"out"};

  void generate() {
    const auto at = [&](const Input<Buffer<uint8_t, 4>> &mask, const Expr &given) {
      return mask(select(given, key, 0), select(given, query, 0), select(given, head, 0),
                  select(given, batch, 0)) != 0;
    };
    const Expr kept = !has_keep || at(keep, has_keep), blocked = has_block && at(block, has_block);
    out(key, query, head, batch) = cast<uint8_t>(kept && !blocked);
    keep.dim(0).set_stride(Expr());
    block.dim(0).set_stride(Expr());
    from_zero(keep), from_zero(block), from_zero(out);
  }
  void schedule() { schedule_elements(out); }

 private:
  Var key{"key"}, query{"query"}, head{"head"}, batch{"batch"};
};

// Key masks as a bias on scores, -infinity for what they hide, and as visible keys.
class KeyMask : public Generator<KeyMask> {
 public:
  Input<bool> has_keep{"has_keep"}, has_block{"has_block"};
  Input<int> form{"form"};
  Input<Buffer<uint8_t, 2>> keep{"keep"}, block{"block"};  // (key, batch), any steps
  Input<Buffer<float, 2>> add_32{"add_32"};
  Input<Buffer<uint16_t, 2>> add_16{"add_16"};
  Input<int> keys{"keys"};  // beyond them the bias is 0
  Output<Buffer<float, 2>> bias{"bias"};
  Output<Buffer<uint8_t, 2>> visible{"visible"};

  void generate() {
    const Expr j = min(key, keys - 1);
    const auto at = [&](const Input<Buffer<uint8_t, 2>> &mask, const Expr &given) {
      return mask(select(given, j, 0), select(given, batch, 0)) != 0;
    };
    const Expr hidden = (has_keep && !at(keep, has_keep)) || (has_block && at(block, has_block));
    // As bits: fast math takes infinities for impossible.
    const Expr added = reinterpret<uint32_t>(load_any(form, add_32, add_16, {j, batch}, get_target()));
    bits(key, batch) = select(key >= keys, Expr(0u), hidden, Expr(kMinusInfinityBits), added);
    bias(key, batch) = reinterpret<float>(bits(key, batch));
    visible(key, batch) = cast<uint8_t>(bits(key, batch) != Expr(kMinusInfinityBits));
    for (auto *mask : {&keep, &block}) mask->dim(0).set_stride(Expr()), from_zero(*mask);
    add_32.dim(0).set_stride(Expr()), add_16.dim(0).set_stride(Expr());
    from_zero(add_32), from_zero(add_16), from_zero(bias), from_zero(visible);
    for (int i = 0; i < 2; i++) visible.dim(i).set_extent(bias.dim(i).extent());
  }
  void schedule() {
    Var block_of("block_of"), thread("thread");
    for (Func f : {Func(bias), Func(visible)}) {
      f.split(key, block_of, thread, 128, TailStrategy::GuardWithIf)
          .gpu_blocks(block_of, batch)
          .gpu_threads(thread);
    }
    Func(visible).compute_with(Func(bias), block_of);
  }

 private:
  Var key{"key"}, batch{"batch"};
  Func bits{"bits"};
};

// As kernels read them: sums of two floats, the first +infinity where a token has no position.
class Positions : public PositionGenerator<Positions> {
 public:
  GeneratorOutput<Buffer<float, 3>> out{"out"};  // (token, batch, high or low)

  void generate() {
    Var part("part");
    const Expr p = position(), high = cast<float>(p), low = cast<float>(p - cast<double>(high));
    const Expr bits = select(part == 0, reinterpret<uint32_t>(high), reinterpret<uint32_t>(low));
    const Expr none = select(part == 0, Expr(kPlusInfinityBits), Expr(0u));
    out(token, batch, part) = reinterpret<float>(select(has_position(), bits, none));
    from_zero(out);
    declare_steps();
  }
  void schedule() { schedule_elements(out); }
};

// Cosines and sines of positions times frequencies, in double; a cosine of +infinity for a token without.
class Rotation : public PositionGenerator<Rotation> {
 public:
  GeneratorInput<Buffer<float, 1>> inv_freq{"inv_freq"};
  GeneratorOutput<Buffer<float, 4>> out{"out"};  // (pair, token, batch, cosine or sine)

  void generate() {
    Var pair("pair"), part("part");
    const Expr angle = position() * cast<double>(inv_freq(pair));
    const Expr value = select(part == 0, cast<float>(cos(angle)), cast<float>(sin(angle)));
    const Expr none = select(part == 0, Expr(kPlusInfinityBits), Expr(0u));
    out(pair, token, batch, part) =
        reinterpret<float>(select(has_position(), reinterpret<uint32_t>(value), none));
    from_zero(out), from_zero(inv_freq);
    inv_freq.dim(0).set_stride(Expr());
    declare_steps();
  }
  void schedule() { schedule_elements(out); }
};

// Values in 16 bits with zeros in place of the hidden ones, which may be NaN: tensor cores multiply them,
// too.
class ClearValues : public Generator<ClearValues> {
 public:
  Input<bool> has_lengths{"has_lengths"}, has_visible{"has_visible"};
  Input<Buffer<int, 1>> lengths{"lengths"};      // (batch)
  Input<Buffer<uint8_t, 2>> visible{"visible"};  // (key, batch); 0: hidden
  Input<Buffer<uint16_t, 4>> values{"values"};   // (d, key, kv_head, batch)
  Output<Buffer<uint16_t, 4>> out{"out"};

  void generate() {
    const Expr seen = (!has_lengths || key < lengths(select(has_lengths, batch, 0))) &&
                      (!has_visible || visible(select(has_visible, key, 0), batch) != 0);
    out(d, key, head, batch) = select(seen, values(d, key, head, batch), cast<uint16_t>(0));
    lengths.dim(0).set_stride(Expr());
    from_zero(lengths), from_zero(visible), from_zero(values), from_zero(out);
  }
  void schedule() { schedule_elements(out); }

 private:
  Var d{"d"}, key{"key"}, head{"head"}, batch{"batch"};
};

}  // namespace posattn

HALIDE_REGISTER_GENERATOR(posattn::ClearValues, clear_values)
HALIDE_REGISTER_GENERATOR(posattn::FloatMask, float_mask)
HALIDE_REGISTER_GENERATOR(posattn::KeepMask, keep_mask)
HALIDE_REGISTER_GENERATOR(posattn::KeyMask, key_mask)
HALIDE_REGISTER_GENERATOR(posattn::Positions, positions)
HALIDE_REGISTER_GENERATOR(posattn::Rotation, rotation)
