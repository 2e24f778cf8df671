#include "runtime/layers/position_encoder.h"

#include <cmath>

#include "runtime/error.h"

namespace posattn {

void PositionEncoder::check(double, const char *) const {}

TensorView PositionEncoder::rows(int64_t, int64_t) const { return {}; }

TableEncoder::TableEncoder(const TensorView &table, const TensorView &projector) {
  if (table.empty() || table.rank() != 2) {
    fail("pos_emb: expected (max_len, E), got ", table.empty() ? "nothing" : table.shape_text());
  }
  table_ = copy_of(table, DType::f32);
  if (projector.empty()) return;
  const int64_t rows = table_.size(0), dim = table_.size(1);
  if (projector.rank() != 2 || projector.size(0) != dim || projector.size(1) != dim) {
    fail("invariant_projector: expected (", dim, ", ", dim, "), got ", projector.shape_text());
  }
  const Tensor matrix = copy_of(projector, DType::f64);
  std::vector<double> row(static_cast<size_t>(dim));
  for (int64_t r = 0; r < rows; r++) {
    float *out = table_.as<float>() + r * dim;
    row.assign(out, out + dim);
    for (int64_t i = 0; i < dim; i++) {
      double sum = 0;
      for (int64_t j = 0; j < dim; j++) sum += matrix.as<double>()[i * dim + j] * row[static_cast<size_t>(j)];
      out[i] = static_cast<float>(sum);
    }
  }
}

void TableEncoder::check(double position, const char *what) const {
  const double index = std::trunc(position);
  if (!(index >= 0 && index < static_cast<double>(table_.size(0)))) {
    fail(what, ": position ", position, " is outside the table of ", table_.size(0), " positions");
  }
}

void TableEncoder::encode(const double *positions, int64_t count, float *out) const {
  const int64_t dim = table_.size(1);
  for (int64_t i = 0; i < count; i++) {
    const float *row = table_.as<float>() + static_cast<int64_t>(positions[i]) * dim;
    std::copy(row, row + dim, out + i * dim);
  }
}

TensorView TableEncoder::rows(int64_t first, int64_t count) const {
  return table_.view().slice(0, first, first + count);
}

EncoderForm TableEncoder::form() const {
  EncoderForm form;
  form.table = table_.view();
  return form;
}

SinusoidalEncoder::SinusoidalEncoder(int64_t dim, Layout layout, double base) : layout_(layout) {
  if (dim <= 0 || dim % 2) fail("sinusoidal positions: expected an even number of channels, got ", dim);
  if (!(base > 0) || !std::isfinite(base)) fail("sinusoidal positions: expected a positive base, got ", base);
  const int64_t pairs = dim / 2;
  const double last = layout == Layout::interleaved ? static_cast<double>(pairs)
                                                    : static_cast<double>(pairs > 1 ? pairs - 1 : 1);
  for (int64_t i = 0; i < pairs; i++) {
    frequencies_.push_back(std::exp(-std::log(base) * static_cast<double>(i) / last));
  }
}

void SinusoidalEncoder::encode(const double *positions, int64_t count, float *out) const {
  const size_t pairs = frequencies_.size();
  const bool interleaved = layout_ == Layout::interleaved;
  for (int64_t p = 0; p < count; p++, out += 2 * pairs) {
    for (size_t i = 0; i < pairs; i++) {
      const double angle = positions[p] * frequencies_[i];
      out[interleaved ? 2 * i : i] = static_cast<float>(std::sin(angle));
      out[interleaved ? 2 * i + 1 : pairs + i] = static_cast<float>(std::cos(angle));
    }
  }
}

EncoderForm SinusoidalEncoder::form() const {
  const size_t pairs = frequencies_.size();
  EncoderForm form;
  form.frequencies.resize(2 * pairs);
  form.waves.resize(2 * pairs);
  const bool interleaved = layout_ == Layout::interleaved;
  for (size_t i = 0; i < pairs; i++) {
    const size_t sine = interleaved ? 2 * i : i, cosine = interleaved ? 2 * i + 1 : pairs + i;
    form.frequencies[sine] = form.frequencies[cosine] = frequencies_[i];
    form.waves[cosine] = 1;
  }
  return form;
}

FourierEncoder::FourierEncoder(const TensorView &frequencies, SmallMlp mlp) : mlp_(std::move(mlp)) {
  const bool vector = !frequencies.empty() &&
                      (frequencies.rank() == 1 || (frequencies.rank() == 2 && frequencies.size(1) == 1));
  if (!vector || frequencies.size(0) == 0) {
    fail("pos_fourier.weight: expected (F) or (F, 1), got ",
         frequencies.empty() ? "nothing" : frequencies.shape_text());
  }
  const Tensor copied = copy_of(frequencies, DType::f64);
  frequencies_.assign(copied.as<double>(), copied.as<double>() + frequencies.size(0));
  const int64_t features = 2 * frequencies.size(0);
  if (!mlp_.empty() && mlp_.in_features() != features) {
    fail("pos_mlp.0.weight: expected ", features, " inputs (the Fourier features), got ", mlp_.in_features());
  }
}

int64_t FourierEncoder::dim() const {
  return mlp_.empty() ? 2 * static_cast<int64_t>(frequencies_.size()) : mlp_.out_features();
}

void FourierEncoder::encode(const double *positions, int64_t count, float *out) const {
  const size_t number = frequencies_.size();
  const double scale = 1 / std::sqrt(2 * static_cast<double>(number));
  std::vector<float> features(2 * number);
  for (int64_t p = 0; p < count; p++, out += dim()) {
    for (size_t i = 0; i < number; i++) {
      const double angle = positions[p] * frequencies_[i];
      features[i] = static_cast<float>(std::cos(angle) * scale);
      features[number + i] = static_cast<float>(std::sin(angle) * scale);
    }
    if (mlp_.empty()) {
      std::copy(features.begin(), features.end(), out);
    } else {
      mlp_.forward(features.data(), out);
    }
  }
}

EncoderForm FourierEncoder::form() const {
  const size_t number = frequencies_.size();
  EncoderForm form;
  form.frequencies = frequencies_;
  form.frequencies.insert(form.frequencies.end(), frequencies_.begin(), frequencies_.end());
  form.waves.assign(2 * number, 0);
  std::fill_n(form.waves.begin(), number, uint8_t{1});
  form.scale = static_cast<float>(1 / std::sqrt(2 * static_cast<double>(number)));
  if (!mlp_.empty()) form.network = &mlp_;
  return form;
}

MlpEncoder::MlpEncoder(SmallMlp mlp) : mlp_(std::move(mlp)) {
  if (mlp_.empty() || mlp_.in_features() != 1) {
    fail("pos_mlp.0.weight: expected 1 input (the position), got ", mlp_.empty() ? 0 : mlp_.in_features());
  }
}

void MlpEncoder::encode(const double *positions, int64_t count, float *out) const {
  for (int64_t p = 0; p < count; p++, out += dim()) {
    const float x = static_cast<float>(positions[p]);
    mlp_.forward(&x, out);
  }
}

EncoderForm MlpEncoder::form() const {
  EncoderForm form;
  form.frequencies = {1};
  form.waves = {2};
  form.network = &mlp_;
  return form;
}

}  // namespace posattn
