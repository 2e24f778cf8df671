// Keys and values in the layouts that attention reads: whole blocks, zero where there is no key. Bits are
// copied, never converted. Hidden keys become zeros, so that whatever they held has no influence at all.
#include "generators/packing.h"
#include "generators/storage.h"
#include "schedules/machine.h"
#include "schedules/pack_simd.h"

namespace posattn {

using namespace Halide;

template <typename T>
class PackGenerator : public Generator<T> {
 public:
  template <typename U>
  using Input = GeneratorInput<U>;
  template <typename U>
  using Output = GeneratorOutput<U>;

  GeneratorParam<Type> type{"type", Float(32)};
  // The packed head dimension, a multiple of 16; the unpacked one may be smaller.
  GeneratorParam<int> head_dim{"head_dim", 64};
  // Whether to read `visible`.
  Input<bool> has_visible{"has_visible"};
  Input<Buffer<uint8_t, 2>> visible{"visible"};  // (key, batch); 0: hidden

 protected:
  Var lane{"lane"}, d{"d"}, key{"key"}, block{"block"}, head{"head"}, batch{"batch"};

  Packing packing() const { return {this->get_target(), type}; }

  // Bits of channel c of row k, zero outside of the tensor.
  Expr word(const GeneratorInput<Buffer<void, 4>> &from, const Expr &c, const Expr &k) const {
    const Expr last_d = from.dim(0).extent() - 1, last_key = from.dim(1).extent() - 1;
    const Expr inside = likely(c <= last_d) && likely(k <= last_key);
    const Expr shown = !has_visible || visible(min(likely(k), last_key), batch) != 0;
    const Expr value = from(min(likely(c), last_d), min(likely(k), last_key), head, batch);
    return select(inside && shown, word_of(value), cast(UInt(value.type().bits()), 0));
  }
};

// out(lane, d, block, ...) = k(d, block * lanes + lane, ...): a score tile reads the keys of one d side by
// side.
class PackKeys : public PackGenerator<PackKeys> {
 public:
  Input<Buffer<void, 4>> k{"k"};                  // (d, key, kv_head, batch)
  GeneratorOutput<Buffer<void, 5>> keys{"keys"};  // (lane, d, block, kv_head, batch)

  void configure() {
    k.set_type(type);
    keys.set_type(packing().element());
  }

  void generate() {
    const schedules::Machine machine = schedules::machine(get_target());
    const int elements = head_dim / packing().numbers();

    // The algorithm.
    if (packing().pairs()) {
      f.rows(d, key, head, batch) = Packing::word(word(k, 2 * d, key), word(k, 2 * d + 1, key));
    } else {
      f.rows(d, key, head, batch) = word(k, d, key);
    }
    keys(lane, d, block, head, batch) =
        reinterpret(packing().element(), f.rows(d, block * machine.key_lanes + lane, head, batch));

    keys.dim(0).set_bounds(0, machine.key_lanes);
    keys.dim(1).set_bounds(0, elements).set_stride(machine.key_lanes);
    keys.dim(2).set_stride(machine.key_lanes * elements);
    keys.dim(0).set_estimate(0, machine.key_lanes);  // for the caller, who finds it in the metadata
    keys.dim(1).set_estimate(0, elements);
    for (int i = 2; i < 5; i++) keys.dim(i).set_min(0);

    f.packed = keys;
    f.vars = {lane, d, key, block, head, batch};
    f.whole_rows = k.dim(0).extent() == head_dim;
    f.has_visible = has_visible;
  }

  void schedule() { schedules::schedule_pack_keys(f, schedules::machine(get_target()), shape()); }

 private:
  schedules::PackShape shape() const { return {head_dim / packing().numbers(), packing().element()}; }
  schedules::PackFuncs f;
};

// Rows side by side, padded with zeros to the packed head dimension and to a whole block of keys.
class PackValues : public PackGenerator<PackValues> {
 public:
  Input<Buffer<void, 4>> v{"v"};                      // (d, key, kv_head, batch)
  GeneratorOutput<Buffer<void, 4>> values{"values"};  // (d, key, kv_head, batch)

  void configure() {
    v.set_type(type);
    values.set_type(packing().element());
  }

  void generate() {
    // The algorithm.
    const int words = schedules::machine(get_target()).key_lanes / 2;
    const Expr low = key / words * (2 * words) + key % words;
    values(d, key, head, batch) = reinterpret(
        packing().element(),
        packing().pairs() ? Packing::word(word(v, d, low), word(v, d, low + words)) : word(v, d, key));

    values.dim(0).set_bounds(0, head_dim);
    values.dim(1).set_min(0).set_stride(head_dim);
    values.dim(0).set_estimate(0, head_dim);
    for (int i = 2; i < 4; i++) values.dim(i).set_min(0);

    f.packed = values;
    f.vars = {lane, d, key, block, head, batch};
    f.whole_rows = v.dim(0).extent() == head_dim;
    f.has_visible = has_visible;
  }

  void schedule() {
    schedules::schedule_pack_values(f, schedules::machine(get_target()), {head_dim, packing().element()});
  }

 private:
  schedules::PackFuncs f;
};

}  // namespace posattn

HALIDE_REGISTER_GENERATOR(posattn::PackKeys, pack_keys)
HALIDE_REGISTER_GENERATOR(posattn::PackValues, pack_values)
