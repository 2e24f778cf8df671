// Layers of many tokens in float32, which a GPU multiplies on tensor cores: as accurate as plain float32.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "runtime/layers/layers.h"
#include "tests/check.h"
#include "tests/device.h"
#include "tests/random_layer.h"

namespace posattn::oracle {
namespace {

struct Shape {
  int64_t batch, tokens, channels, heads, kv_heads;
  double mean;      // of the inputs, whose standard deviation is 1
  int64_t padding;  // between tokens
  friend std::ostream &operator<<(std::ostream &out, const Shape &s) {
    return out << "B " << s.batch << " T " << s.tokens << " E " << s.channels << " H " << s.heads << "/"
               << s.kv_heads << " mean " << s.mean << " padding " << s.padding;
  }
};

// What the layer means, in numbers of type T: sums in turn.
template <typename T>
struct Formula {
  const Shape &s;
  const LayerWeights &weights;

  // (batch * tokens, out)
  template <typename Row>
  std::vector<T> map(const Row &row, const TensorView &weight, const TensorView &bias) const {
    const int64_t out = weight.size(0), in = weight.size(1);
    std::vector<T> y(static_cast<size_t>(s.batch * s.tokens * out));
    for (int64_t r = 0; r < s.batch * s.tokens; r++) {
      const auto *const x = row(r);
      for (int64_t o = 0; o < out; o++) {
        T sum = 0;
        for (int64_t i = 0; i < in; i++) sum += static_cast<T>(x[i]) * weight.as<float>()[o * in + i];
        y[static_cast<size_t>(r * out + o)] = sum + bias.as<float>()[o];
      }
    }
    return y;
  }
  std::vector<T> operator()(const TensorView &x) const {
    const auto of_x = [&](int64_t r) {
      return x.as<float>() + r / s.tokens * x.stride(0) + r % s.tokens * x.stride(1);
    };
    const std::vector<T> q = map(of_x, weights.query, weights.query_bias),
                         k = map(of_x, weights.key, weights.key_bias),
                         v = map(of_x, weights.value, weights.value_bias);
    const int64_t d = s.channels / s.heads, kv = s.kv_heads * d;
    const T scale = 1 / std::sqrt(static_cast<T>(d));
    std::vector<T> mixed(q.size()), p(static_cast<size_t>(s.tokens));
    for (int64_t task = 0; task < s.batch * s.heads * s.tokens; task++) {
      const int64_t i = task % s.tokens, h = task / s.tokens % s.heads, b = task / s.tokens / s.heads;
      const T *const query = q.data() + (b * s.tokens + i) * s.channels + h * d;
      const int64_t first = b * s.tokens * kv + h / (s.heads / s.kv_heads) * d;
      T most = -std::numeric_limits<T>::infinity(), total = 0;
      for (int64_t j = 0; j < s.tokens; j++) {
        T score = 0;
        for (int64_t c = 0; c < d; c++) score += query[c] * k[static_cast<size_t>(first + j * kv + c)];
        p[static_cast<size_t>(j)] = score * scale;
        most = std::max(most, score * scale);
      }
      for (T &score : p) total += score = std::exp(score - most);
      T *const out = mixed.data() + (b * s.tokens + i) * s.channels + h * d;
      for (int64_t j = 0; j < s.tokens; j++) {
        const T share = p[static_cast<size_t>(j)] / total;
        for (int64_t c = 0; c < d; c++) out[c] += share * v[static_cast<size_t>(first + j * kv + c)];
      }
    }
    return map([&](int64_t r) { return mixed.data() + r * s.channels; }, weights.out, weights.out_bias);
  }
};

class Float32Layers : public testing::TestWithParam<Shape> {};

TEST_P(Float32Layers, AreAsAccurateAsTheFormula) {
  const Shape s = GetParam();
  const RandomLayer layer(7, s.channels, s.channels / s.heads * s.kv_heads);
  Random random(8);
  Tensor memory = random_tensor(random, DType::f32, {s.batch, s.tokens, s.channels + s.padding});
  for (int64_t i = 0; i < memory.view().num_elements(); i++)
    memory.as<float>()[i] += static_cast<float>(s.mean);
  const TensorView x = memory.view().slice(2, 0, s.channels);
  const std::vector<double> exact = Formula<double>{s, layer.weights}(x);
  const std::vector<float> plain = Formula<float>{s, layer.weights}(x);

  LayerOptions options;
  options.num_heads = s.heads;
  options.num_kv_heads = s.kv_heads;
  options.device = layer_device();
  ForwardArgs args;
  args.query = args.key = args.value = x;
  on_every_target([&] {
    const Tensor out = PlainAttention(layer.weights, options).forward(args).out.clone();
    double error = 0, plain_error = 0;
    for (size_t i = 0; i < exact.size(); i++) {
      // A NaN is no small error.
      const double here = std::abs(static_cast<double>(out.as<float>()[i]) - exact[i]);
      if (!(here <= error)) error = here;
      plain_error = std::max(plain_error, std::abs(plain[i] - exact[i]));
    }
    EXPECT_LE(error, 2 * plain_error + 1e-6);
    RecordProperty("error", std::to_string(error));
    RecordProperty("plain_error", std::to_string(plain_error));
  });
}

INSTANTIATE_TEST_SUITE_P(Shapes, Float32Layers,
                         testing::Values(Shape{2, 150, 387, 3, 3, 0, 0}, Shape{2, 150, 387, 3, 3, 0, 4},
                                         Shape{5, 64, 512, 8, 8, 0, 0}, Shape{20, 15, 768, 6, 6, 0, 0},
                                         Shape{1, 300, 512, 8, 2, 0, 1}, Shape{2, 150, 768, 12, 12, 3, 0}));

}  // namespace
}  // namespace posattn::oracle
