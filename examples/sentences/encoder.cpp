#include "examples/sentences/encoder.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "runtime/error.h"

namespace sentences {

using posattn::DType;
using posattn::Tensor;
using posattn::TensorView;

namespace {

// Sentences that run together. Larger batches keep no core busier and hold more memory.
constexpr size_t kBatch = 32;

// The mean of the rows of `tokens` (tokens, width), scaled to unit length.
void pool(const TensorView &tokens, float *out) {
  const int64_t count = tokens.size(0), width = tokens.size(1);
  double squares = 0;
  for (int64_t i = 0; i < width; ++i) {
    double sum = 0;
    for (int64_t t = 0; t < count; ++t) sum += tokens.as<float>()[t * width + i];
    out[i] = static_cast<float>(sum / static_cast<double>(count));
    squares += static_cast<double>(out[i]) * out[i];
  }
  const double factor = 1 / std::max(std::sqrt(squares), 1e-12);
  for (int64_t i = 0; i < width; ++i) out[i] = static_cast<float>(out[i] * factor);
}

}  // namespace

Tensor Encoder::embed(const std::vector<std::string> &sentences, Timings *timings,
                      std::vector<bool> *truncated) const {
  Timings local;
  Timings &times = timings ? *timings : local;
  std::vector<Ids> ids;
  {
    Stopwatch watch(&times.tokenise);
    if (truncated) truncated->clear();
    for (const std::string &sentence : sentences) {
      bool cut = false;
      ids.push_back(tokenizer_.encode(sentence, static_cast<size_t>(max_tokens_), &cut));
      if (truncated) truncated->push_back(cut);
    }
  }

  // In order of length, so that sentences of one batch need little padding.
  std::vector<size_t> order(sentences.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return ids[a].size() < ids[b].size(); });

  Tensor embeddings(DType::f32, {static_cast<int64_t>(sentences.size()), width_});
  for (size_t begin = 0; begin < order.size(); begin += kBatch) {
    const size_t end = std::min(begin + kBatch, order.size());
    std::vector<const Ids *> batch;
    for (size_t i = begin; i < end; ++i) batch.push_back(&ids[order[i]]);
    const Tensor states = encode(batch, times);

    Stopwatch watch(&times.pooling);
    for (size_t i = begin; i < end; ++i) {
      const auto length = static_cast<int64_t>(ids[order[i]].size());
      pool(states.view().select(0, static_cast<int64_t>(i - begin)).slice(0, 0, length),
           embeddings.as<float>() + static_cast<int64_t>(order[i]) * width_);
    }
  }
  return embeddings;
}

Tensor Encoder::look_up(const std::vector<const Ids *> &batch, int64_t tokens) const {
  Tensor x(DType::f32, {static_cast<int64_t>(batch.size()), tokens, width_});
  float *out = x.as<float>();
  for (const Ids *ids : batch) {
    for (int64_t t = 0; t < tokens; ++t, out += width_) {
      if (t >= static_cast<int64_t>(ids->size())) continue;  // padding: zeros, which nothing reads
      const float *word = words_.as<float>() + (*ids)[static_cast<size_t>(t)] * width_;
      const float *position = positions_.as<float>() + t * width_;
      const float *token_type = token_types_.as<float>();  // type 0: these are single sentences, not pairs
      for (int64_t i = 0; i < width_; ++i) out[i] = word[i] + position[i] + token_type[i];
    }
  }
  add_and_normalise(x, {}, embedding_norm_);
  return x;
}

Tensor Encoder::encode(const std::vector<const Ids *> &batch, Timings &timings) const {
  const auto size = static_cast<int64_t>(batch.size());
  Tensor lengths(DType::i64, {size});
  int64_t tokens = 0;
  for (int64_t b = 0; b < size; ++b) {
    lengths.as<int64_t>()[b] = static_cast<int64_t>(batch[static_cast<size_t>(b)]->size());
    tokens = std::max(tokens, lengths.as<int64_t>()[b]);
  }

  Tensor x;
  {
    Stopwatch watch(&timings.embed);
    x = look_up(batch, tokens);
  }
  Tensor inner(DType::f32, {size, tokens, inner_width_}), result(DType::f32, {size, tokens, width_});
  for (const Layer &layer : layers_) {
    {
      Stopwatch watch(&timings.attention);
      posattn::ForwardArgs args;
      args.query = args.key = args.value = x.view();
      args.key_lengths = lengths.view();
      add_and_normalise(x, layer.attention.forward(args).out, layer.attention_norm);
    }
    Stopwatch watch(&timings.feed_forward);
    layer.intermediate.forward(x.view(), inner);
    gelu(inner);
    layer.output.forward(inner.view(), result);
    add_and_normalise(x, result.view(), layer.output_norm);
  }
  return x;
}

Tensor cosines(const TensorView &embeddings) {
  const int64_t count = embeddings.size(0), width = embeddings.size(1);
  Tensor table(DType::f32, {count, count});
  for (int64_t a = 0; a < count; ++a) {
    for (int64_t b = 0; b < count; ++b) {
      const float *x = embeddings.as<float>() + a * width, *y = embeddings.as<float>() + b * width;
      table.as<float>()[a * count + b] = static_cast<float>(std::inner_product(x, x + width, y, 0.0));
    }
  }
  return table;
}

}  // namespace sentences
