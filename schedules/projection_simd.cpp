#include "schedules/projection_simd.h"

#include "lowering/tile_matmul.h"

namespace posattn::schedules {

using namespace Halide;

namespace {

// `stage` is out's for this case.
void schedule_case(Stage stage, Func out, ProjectionFuncs &f, const Expr &has_addend,
                   const ProjectionVars &vars, int lanes) {
  const auto &[lane, k, i, chunk, t, p, n, row] = vars;
  const int height = f.tile.rows, width = f.tile.features;
  const auto var = [&](const char *name) { return Var(f.prefix + name); };
  const Var task = var("task"), group = var("group"), span = var("span"), panel = var("panel");
  const Var n_in = var("n_in"), block = var("block"), row_in = var("row_in");

  // Results stay in the cache until those of a span of panels are there, and go out in long runs: a tile
  // alone is a few cache lines in each of many pages, and every tile would wait for them.
  stage.split(n, panel, n_in, width, TailStrategy::GuardWithIf)
      .split(panel, group, panel, f.group_panels, TailStrategy::GuardWithIf)
      .split(panel, span, panel, f.span_panels, TailStrategy::GuardWithIf)
      .split(row, block, row_in, f.block_rows, TailStrategy::GuardWithIf)
      .reorder(n_in, panel, row_in, span, block, group)
      .vectorize(n_in, lanes)
      .unroll(n_in)
      .fuse(block, group, task)
      .parallel(task);
  f.staged.compute_at(out, task)
      .reorder(k, chunk, i, t)
      .bound_extent(k, f.on_tiles ? kProjectionAmxDepth : kProjectionDepth)
      .bound_extent(i, height)
      .vectorize(k, lanes)
      .unroll(k);
  f.staged.specialize(has_addend);
  const auto by_vectors = [lanes, &lane = lane](auto &&g) { g.vectorize(lane, lanes).unroll(lane); };
  for (Func *g : {&f.tiles, &f.sum, &f.part}) g->bound_extent(lane, width).bound_extent(i, height);
  for (Func *g : {&f.sum, &f.part}) g->store_in(MemoryType::Stack).bound_extent(t, 1).bound_extent(p, 1);
  f.tiles.compute_at(out, span).hoist_storage(out, task).reorder(lane, i, t, p);
  by_vectors(f.tiles);
  f.sum.compute_at(f.tiles, t);
  by_vectors(f.sum);
  by_vectors(f.sum.update().reorder(lane, i, f.parts).unroll(i));
  f.part.compute_at(f.sum, f.parts);
  if (f.on_tiles) {
    f.part.update().reorder(f.r.x, lane, i, f.r.y);
    return;
  }
  // The register tile.
  f.part.unroll(i);
  by_vectors(f.part);
  by_vectors(f.part.update().reorder(lane, i, f.r.x, f.r.y).unroll(i).unroll(f.r.x, 4));
  if (f.convert_panel) {
    f.weight.compute_at(f.tiles, p).hoist_storage(out, task).bound_extent(p, 1).bound_extent(lane, width);
    by_vectors(f.weight);
  }
}

}  // namespace

TuningSpace projection_tuning_space(const Target &target, bool on_tiles) {
  const ProjectionTile hand = projection_tile(target);
  const Machine m = machine(target);
  TuningSpace space;
  if (!on_tiles) {
    space.parameters = {{"tile_rows", hand.rows, 2, registers(m) / 2},
                        {"panel", hand.features, m.lanes, 8 * m.lanes, m.lanes}};
  }
  space.parameters.push_back({"block_rows", kProjectionBlockRows, 16, 256, 8});
  space.parameters.push_back({"span_panels", kProjectionSpanPanels, 1, 16});
  // One class: weights are packed in panels before anybody knows how many rows there will be.
  space.shapes = {{"any",
                   0,
                   0,
                   {{{"rows", 512}, {"features", 768}},
                    {{"rows", 48}, {"features", 768}},
                    {{"rows", 1}, {"features", 1024}}}}};
  if (on_tiles) return space;
  space.infeasible = [=](const TuningPoint &point) {
    return too_many_registers("the tile", point.at("tile_rows"), point.at("panel") / m.lanes, registers(m));
  };
  return space;
}

void schedule_projection(Func out, const std::vector<ProjectionCase> &cases, const Expr &has_addend,
                         const ProjectionVars &vars, const Machine &machine, Pipeline pipeline) {
  std::vector<lowering::TileMatmul> matmuls;
  for (const ProjectionCase &one : cases) {
    const Stage stage = one.condition.defined() ? out.specialize(one.condition) : Stage(out);
    ProjectionFuncs &f = one.funcs;
    schedule_case(stage, out, f, has_addend, vars, machine.lanes);
    if (f.on_tiles) {
      matmuls.push_back(
          {f.part.name(), vars.lane.name(), vars.i.name(), f.r.x.name(), f.r.y.name(), f.sum_chunks});
    }
  }
  if (!matmuls.empty()) pipeline.add_custom_lowering_pass(new lowering::LowerTileMatmuls(matmuls));
}

}  // namespace posattn::schedules
