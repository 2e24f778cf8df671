#include <cmath>

#include "runtime/error.h"
#include "runtime/layers/position_encoder.h"

namespace posattn {
namespace {

float activate(float x, Activation activation) {
  switch (activation) {
    case Activation::gelu:  // the exact one, as torch.nn.GELU
      return 0.5f * x * (1 + std::erf(x * 0.70710678f));
    case Activation::relu:
      return x > 0 ? x : 0;
    case Activation::silu:
      return x / (1 + std::exp(-x));
    case Activation::tanh:
      return std::tanh(x);
  }
  fail("activation: ", static_cast<int>(activation), " is none");
}

}  // namespace

SmallMlp::SmallMlp(std::vector<Layer> layers, Activation activation)
    : layers_(std::move(layers)), activation_(activation) {
  for (size_t i = 0; i < layers_.size(); i++) {
    const Layer &layer = layers_[i];
    if (layer.weight.rank() != 2 || layer.weight.dtype() != DType::f32) {
      fail("pos_mlp: layer ", i, " expects an f32 weight of shape (out, in)");
    }
    if (!layer.bias.empty() && (layer.bias.rank() != 1 || layer.bias.size(0) != layer.weight.size(0) ||
                                layer.bias.dtype() != DType::f32)) {
      fail("pos_mlp: layer ", i, " expects an f32 bias of shape (", layer.weight.size(0), "), got ",
           layer.bias.view().shape_text());
    }
    if (i > 0 && layer.weight.size(1) != layers_[i - 1].weight.size(0)) {
      fail("pos_mlp: layer ", i, " has ", layer.weight.size(1), " inputs, the layer before has ",
           layers_[i - 1].weight.size(0), " outputs");
    }
  }
}

void SmallMlp::forward(const float *x, float *y) const {
  std::vector<float> in(x, x + in_features()), out;
  for (size_t l = 0; l < layers_.size(); l++) {
    const Layer &layer = layers_[l];
    const int64_t outputs = layer.weight.size(0), inputs = layer.weight.size(1);
    out.resize(static_cast<size_t>(outputs));
    for (int64_t o = 0; o < outputs; o++) {
      const float *row = layer.weight.as<float>() + o * inputs;
      float sum = layer.bias.empty() ? 0.0f : layer.bias.as<float>()[o];
      for (int64_t i = 0; i < inputs; i++) sum += row[i] * in[static_cast<size_t>(i)];
      out[static_cast<size_t>(o)] = l + 1 < layers_.size() ? activate(sum, activation_) : sum;
    }
    in.swap(out);
  }
  std::copy(in.begin(), in.end(), y);
}

}  // namespace posattn
