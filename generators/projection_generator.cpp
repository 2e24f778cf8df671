// y = (x + addend) W^T + bias: the linear layers around attention. Weights come in panels of a register
// tile's width, packed once by runtime/linear.
#include "generators/packing.h"
#include "generators/storage.h"
#include "schedules/machine.h"
#include "schedules/projection_simd.h"

namespace posattn {

using namespace Halide;

class Projection : public Generator<Projection>, public schedules::Tunable {
 public:
  GeneratorParam<Type> type{"type", Float(32)};
  // The register tile: rows by panel, a panel being that many output features. 0: the target's.
  GeneratorParam<int> tile_rows{"tile_rows", 0};
  GeneratorParam<int> panel{"panel", 0};
  GeneratorParam<int> block_rows{"block_rows", schedules::kProjectionBlockRows};
  GeneratorParam<int> span_panels{"span_panels", schedules::kProjectionSpanPanels};
  // Length of the sums that are summed, in chunks of kProjectionDepth.
  GeneratorParam<int> sum_chunks{"sum_chunks", 8};

  Input<Buffer<void, 3>> x{"x"};  // (k, token, batch)
  Input<bool> has_addend{"has_addend"};
  Input<Buffer<float, 3>> addend{
      "addend"};  // (k, token, batch), strides of 0 allowed; only read with has_addend
  // (lane, k, panel): zeros from the last k to a multiple of kProjectionDepth, and beyond the last feature.
  // Where AMX multiplies them, (lane, k / 2, panel) of 32-bit words that hold k and k + 1.
  Input<Buffer<void, 3>> weights{"weights"};
  Input<Buffer<float, 1>> bias{"bias"};  // (feature), padded to whole panels
  Output<Buffer<void, 2>> out{"out"};    // (feature, row): row = batch * tokens + token

  void configure() {
    x.set_type(type);
    weights.set_type(on_tiles() ? Int(32) : Type(type));
    out.set_type(type);
  }

  void generate() {
    const schedules::ProjectionTile tile = schedules::projection_tile(get_target());
    width = on_tiles() ? schedules::kProjectionAmx.features : panel > 0 ? int(panel) : tile.features;
    depth_unit = on_tiles() ? schedules::kProjectionAmxDepth : schedules::kProjectionDepth;
    // Few rows take the time of reading the weights: the fewer they are, the more panels are read at once, as
    // more streams than one are needed to use the memory's bandwidth.
    const int streams = std::max(1, tile.accumulators / (width / tile.lanes));
    two.tile = {2, width * std::max(1, streams / 2)};
    few.tile = {4, width * std::max(1, streams / 4)};
    many.tile = {tile_rows > 0 ? int(tile_rows) : tile.rows, width};
    const Expr rows = out.dim(1).extent();
    if (on_tiles()) {
      // A tile reads the weights faster than memory gives them, even for a single row, and every row must
      // come out the same among few and among many.
      few.tile = schedules::kProjectionAmxFew;
      many.tile = schedules::kProjectionAmx;
      for (schedules::ProjectionFuncs *f : {&few, &many}) f->on_tiles = true, f->sum_chunks = sum_chunks;
    }

    // The algorithm.
    if (on_tiles()) {
      out(n, row) = select(rows <= few.tile.rows, product(few), product(many));
    } else {
      out(n, row) = select(rows <= 2, product(two), rows <= 8, product(few), product(many));
    }

    weights.dim(0).set_bounds(0, width).set_estimate(0, width);
    weights.dim(1).set_min(0).set_stride(width).set_estimate(0, depth_unit / numbers());  // its unit
    weights.dim(2).set_min(0).set_stride(width * weights.dim(1).extent());
    for (int d = 0; d < 3; d++) x.dim(d).set_min(0), addend.dim(d).set_min(0);
    bias.dim(0).set_min(0);
    for (int d = 0; d < 2; d++) out.dim(d).set_min(0);
  }

  schedules::TuningSpace tuning_space() const override {
    return schedules::projection_tuning_space(get_target(), on_tiles());
  }

  void schedule() {
    const Expr rows = out.dim(1).extent(), panels = weights.dim(2).extent();
    // Tasks are blocks of rows by groups of panels: blocks of equal size, and groups, which repeat the
    // staging of x, only as many as it takes to keep some cores busy. By sizes alone.
    const Expr blocks = (rows + block_rows - 1) / block_rows;
    const Expr groups = clamp(16 / blocks, 1, max(panels / 8, 1));
    const int height = many.tile.rows;
    many.block_rows = (rows + blocks * height - 1) / (blocks * height) * height;
    many.group_panels = (panels + groups - 1) / groups;
    many.span_panels = span_panels;
    many.convert_panel = type.value().bits() < 32 && !on_tiles();
    for (schedules::ProjectionFuncs *f : {&two, &few}) {
      f->block_rows = on_tiles() ? few.tile.rows : 8;
      // At least 128 KB of weights.
      f->group_panels =
          max(131072 / (weights.dim(1).extent() * (f->tile.features * weights.type().bytes())), 1);
    }
    using Cases = std::vector<schedules::ProjectionCase>;
    const Cases cases = on_tiles() ? Cases{{rows <= few.tile.rows, few}, {Expr(), many}}
                                   : Cases{{rows <= 2, two}, {rows <= 8, few}, {Expr(), many}};
    schedules::schedule_projection(out, cases, has_addend, {lane, k, i, chunk, t, p, n, row},
                                   schedules::machine(get_target()), get_pipeline());
  }

 private:
  Var lane{"lane"}, k{"k"}, i{"i"}, chunk{"chunk"}, t{"t"}, p{"p"}, n{"n"}, row{"row"};
  int width = 0;       // of a panel
  int depth_unit = 0;  // inputs are staged in chunks of so many

  bool on_tiles() const { return schedules::machine(get_target()).amx && type.value().is_bfloat(); }
  int numbers() const { return on_tiles() ? 2 : 1; }  // in an element of the weights
  schedules::ProjectionFuncs two{"two_"}, few{"few_"}, many{"many_"};

  // out(n, row), by tiles of f.tile.
  Expr product(schedules::ProjectionFuncs &f) {
    const int height = f.tile.rows, features = f.tile.features;
    const int kDepth = depth_unit;

    // Rows in float32 with what is added to them, in tiles: (k in chunk, row in tile, chunk, tile). What a
    // register tile reads is contiguous, whatever the strides of x: no two rows fall into one set of a cache.
    // On AMX tiles they are bfloat16, and so is a sum with what is added.
    const Expr depth = x.dim(0).extent(), tokens = x.dim(1).extent(), rows = out.dim(1).extent();
    const Expr at = chunk * kDepth + k, k_in = min(likely(at), depth - 1);
    const Expr source = min(t * height + i, rows - 1), token = source % tokens, batch = source / tokens;
    const Expr value = load_float(x(k_in, token, batch), get_target());
    const Expr added = select(has_addend, value + addend(k_in, token, batch), value);
    if (on_tiles()) {
      const Expr bits =
          select(has_addend, word_of(store_float(type, added, get_target())), word_of(x(k_in, token, batch)));
      f.staged(k, i, chunk, t) = reinterpret(Type(type), select(likely(at < depth), bits, cast<uint16_t>(0)));
    } else {
      f.staged(k, i, chunk, t) = select(likely(at < depth), added, 0.f);
    }

    // A tile may be several panels wide, and the last one may go beyond the last panel.
    const int panels = features / width;
    const Expr panel_in = panels == 1 ? Expr(p) : min(p * panels + lane / width, weights.dim(2).extent() - 1);
    if (on_tiles()) {
      f.weight(lane, k, p) = Packing::half(weights(lane, k / 2, p), k % 2);
    } else {
      f.weight(lane, k, p) = load_float(weights(lane % width, k, panel_in), get_target());
    }

    // Sums of sum_chunks chunks, then their sum, always in the order of k: no result depends on tiles,
    // threads or other rows. One chain over all of k would round several times as much.
    const Expr chunks = weights.dim(1).extent() * numbers() / kDepth;
    Var s("s");
    f.r = RDom(0, kDepth, 0, int(sum_chunks), "r");
    const Expr chunk_in = s * sum_chunks + f.r.y;
    f.r.where(chunk_in < chunks);
    f.part(lane, i, t, p, s) = 0.f;
    f.part(lane, i, t, p, s) += load_float(f.staged(f.r.x, i, chunk_in, t), get_target()) *
                                f.weight(lane, chunk_in * kDepth + f.r.x, p);
    f.parts = RDom(0, (chunks + sum_chunks - 1) / sum_chunks, "parts");
    f.sum(lane, i, t, p) = bias(panel_in * width + lane % width);
    f.sum(lane, i, t, p) += f.part(lane, i, t, p, f.parts);
    f.tiles(lane, i, t, p) = store_float(type, f.sum(lane, i, t, p), get_target());
    return f.tiles(n % features, row % height, row / height, n / features);
  }
};

}  // namespace posattn

HALIDE_REGISTER_GENERATOR(posattn::Projection, projection)
