// attend() with this application's own branch, against the formula in double precision, on every instruction
// set that this machine has. Exits 0 if all is well.
#include "kerple.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "runtime/attend.h"
#include "runtime/kernel_registry.h"

namespace {

using posattn::DType;
using posattn::Tensor;

constexpr int kBatch = 2, kHeads = 4, kKvHeads = 2, kKeys = 83, kDim = 32;

Tensor random(std::initializer_list<int64_t> shape, unsigned seed) {
  Tensor tensor(DType::f32, shape);
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal;
  std::generate_n(tensor.as<float>(), tensor.view().num_elements(), [&] { return normal(engine); });
  return tensor;
}

// The largest difference from the formula; NaN counts as infinite.
double largest_error(int queries) {
  const Tensor q = random({kBatch, kHeads, queries, kDim}, 1);
  const Tensor k = random({kBatch, kKvHeads, kKeys, kDim}, 2);
  const Tensor v = random({kBatch, kKvHeads, kKeys, kDim}, 3);
  Tensor scale(DType::f32, {kHeads}), width(DType::f32, {kHeads}), positions(DType::f32, {queries});
  for (int h = 0; h < kHeads; ++h) {
    scale.as<float>()[h] = 0.5f + 0.4f * h;
    width.as<float>()[h] = 1.0f / (1 + h);
  }
  for (int i = 0; i < queries; ++i) positions.as<float>()[i] = kKeys - queries + i;
  const Kerple kerple(scale, width);

  Tensor out(DType::f32, {kBatch, kHeads, queries, kDim});
  posattn::AttendArgs args;
  args.query = q;
  args.key = k;
  args.value = v;
  args.out = out;
  args.causal = posattn::Causal::bottom_right;
  args.q_positions = positions;
  args.branches[0] = &kerple;
  posattn::attend(args);

  double worst = 0;
  for (int b = 0; b < kBatch; ++b) {
    for (int h = 0; h < kHeads; ++h) {
      const int kv = (b * kKvHeads + h / (kHeads / kKvHeads)) * kKeys;
      for (int i = 0; i < queries; ++i) {
        const int row = ((b * kHeads + h) * queries + i) * kDim, visible = kKeys - queries + i + 1;
        std::vector<double> weight(visible), expected(kDim);
        double sum = 0;
        for (int j = 0; j < visible; ++j) {
          double dot = 0;
          for (int d = 0; d < kDim; ++d)
            dot += double(q.as<float>()[row + d]) * k.as<float>()[(kv + j) * kDim + d];
          const double distance = std::abs(visible - 1 - j);
          weight[j] = std::exp(dot / std::sqrt(kDim) -
                               scale.as<float>()[h] * std::log1p(width.as<float>()[h] * distance));
          sum += weight[j];
          for (int d = 0; d < kDim; ++d) expected[d] += weight[j] * v.as<float>()[(kv + j) * kDim + d];
        }
        for (int d = 0; d < kDim; ++d) {
          const double error = std::abs(out.as<float>()[row + d] - expected[d] / sum);
          worst = error <= worst ? worst : std::isnan(error) ? INFINITY : error;
        }
      }
    }
  }
  return worst;
}

}  // namespace

int main() {
  int tested = 0, failures = 0;
  for (const posattn::TargetInfo &target : posattn::targets()) {
    if (!target.cpu_has_it || !target.linked) continue;
    posattn::set_target(target.name);
    for (const int queries : {1, 64}) {  // a decode step, and a prefill
      const double error = largest_error(queries);
      const bool good = error < 1e-5;
      std::printf("%s: %d queries, error %.1e%s\n", target.name, queries, error, good ? "" : ": too large");
      failures += !good;
      ++tested;
    }
  }
  return tested == 0 || failures > 0;
}
