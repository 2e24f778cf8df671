#include <cmath>
#include <fstream>

#include "examples/sentences/encoder.h"
#include "nlohmann/json.hpp"
#include "runtime/error.h"

namespace sentences {

using posattn::DType;
using posattn::Linear;
using posattn::TensorView;

namespace {

nlohmann::json read_json(const std::string &path) {
  std::ifstream file(path);
  if (!file) posattn::fail(path, ": cannot be read");
  try {
    return nlohmann::json::parse(file);
  } catch (const nlohmann::json::exception &error) {
    posattn::fail(path, ": ", error.what());
  }
}

int64_t positive(const nlohmann::json &config, const char *name, const std::string &path) {
  const auto found = config.find(name);
  if (found == config.end() || !found->is_number_integer() || *found < 1 || *found > 1 << 24)
    posattn::fail(path, ": expected a number of 1 or more for ", name, ", got ",
                  found == config.end() ? "nothing" : found->dump());
  return *found;
}

void expect(const nlohmann::json &config, const char *name, const char *value, const std::string &path) {
  const auto found = config.find(name);
  if (found != config.end() && *found != value)
    posattn::fail(path, ": expected ", value, " for ", name, ", got ", found->dump());
}

}  // namespace

Encoder::Encoder(const std::string &model_dir)
    : weights_(posattn::SafeTensors::open(model_dir + "/model.safetensors")),
      tokenizer_(model_dir + "/vocab.txt") {
  const std::string path = model_dir + "/config.json";
  const nlohmann::json config = read_json(path);
  expect(config, "model_type", "bert", path);
  expect(config, "hidden_act", "gelu", path);
  expect(config, "position_embedding_type", "absolute", path);
  width_ = positive(config, "hidden_size", path);
  inner_width_ = positive(config, "intermediate_size", path);
  const auto epsilon = config.find("layer_norm_eps");
  epsilon_ = epsilon != config.end() && epsilon->is_number() ? epsilon->get<float>() : 1e-12f;
  const int64_t positions = positive(config, "max_position_embeddings", path);
  const int64_t vocabulary = positive(config, "vocab_size", path);
  if (tokenizer_.vocabulary_size() > vocabulary)
    posattn::fail(model_dir, "/vocab.txt: expected at most ", vocabulary, " pieces, got ",
                  tokenizer_.vocabulary_size());

  max_tokens_ = positions;
  const std::string sentence_path = model_dir + "/sentence_bert_config.json";
  if (std::ifstream(sentence_path))
    max_tokens_ = std::min(max_tokens_, positive(read_json(sentence_path), "max_seq_length", sentence_path));
  if (max_tokens_ < 2)
    posattn::fail(model_dir, ": expected a maximum length of 2 or more, got ", max_tokens_);

  words_ = weight("embeddings.word_embeddings.weight", {vocabulary, width_});
  positions_ = weight("embeddings.position_embeddings.weight", {positions, width_});
  token_types_ =
      weight("embeddings.token_type_embeddings.weight", {positive(config, "type_vocab_size", path), width_});
  embedding_norm_ = load_norm("embeddings.LayerNorm.");
  load_layers(positive(config, "num_hidden_layers", path), positive(config, "num_attention_heads", path));
}

void Encoder::load_layers(int64_t num_layers, int64_t num_heads) {
  posattn::LayerOptions options;
  options.num_heads = num_heads;
  for (int64_t i = 0; i < num_layers; ++i) {
    const std::string prefix = "encoder.layer." + std::to_string(i) + ".";
    layers_.push_back({posattn::MultiHeadAttention::load(weights_, prefix + "attention.", options),
                       load_norm(prefix + "attention.output.LayerNorm."),
                       load_linear(prefix + "intermediate.dense.", inner_width_, width_),
                       load_linear(prefix + "output.dense.", width_, inner_width_),
                       load_norm(prefix + "output.LayerNorm.")});
  }
}

TensorView Encoder::weight(const std::string &name, std::initializer_list<int64_t> shape) const {
  const TensorView found = weights_.get(name);
  const TensorView expected(nullptr, DType::f32, shape);
  if (found.dtype() != DType::f32 || found.shape_text() != expected.shape_text())
    posattn::fail(name, ": expected f32 ", expected.shape_text(), ", got ", posattn::name_of(found.dtype()),
                  " ", found.shape_text());
  return found;
}

LayerNorm Encoder::load_norm(const std::string &prefix) const {
  return {posattn::copy_of(weight(prefix + "weight", {width_}), DType::f32),
          posattn::copy_of(weight(prefix + "bias", {width_}), DType::f32), epsilon_};
}

Linear Encoder::load_linear(const std::string &prefix, int64_t out, int64_t in) const {
  return Linear(weight(prefix + "weight", {out, in}), weight(prefix + "bias", {out}), DType::f32);
}

}  // namespace sentences
