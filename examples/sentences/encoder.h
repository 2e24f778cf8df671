// Sentence embeddings with a BERT encoder, mean pooling and L2 normalisation, as sentence-transformers
// computes them. Attention is posattn's MultiHeadAttention, the other matrix products are posattn's Linear.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "examples/sentences/elementwise.h"
#include "examples/sentences/timings.h"
#include "examples/sentences/tokenizer.h"
#include "runtime/layers/multi_head_attention.h"
#include "runtime/linear.h"
#include "runtime/safetensors.h"

namespace sentences {

class Encoder {
 public:
  // model_dir holds model.safetensors, config.json, vocab.txt and, perhaps, sentence_bert_config.json. Throws
  // posattn::Error if one is missing, unreadable or of another kind of model.
  explicit Encoder(const std::string &model_dir);

  // One row of unit length for each sentence: (sentences, width) f32. Sentences longer than max_tokens() lose
  // their end; truncated, if given, says which. Times are added to `timings`.
  posattn::Tensor embed(const std::vector<std::string> &sentences, Timings *timings = nullptr,
                        std::vector<bool> *truncated = nullptr) const;

  const Tokenizer &tokenizer() const { return tokenizer_; }
  int64_t width() const { return width_; }
  int64_t max_tokens() const { return max_tokens_; }

 private:
  struct Layer {
    posattn::MultiHeadAttention attention;
    LayerNorm attention_norm;
    posattn::Linear intermediate, output;
    LayerNorm output_norm;
  };

  void load_layers(int64_t num_layers, int64_t num_heads);
  posattn::TensorView weight(const std::string &name, std::initializer_list<int64_t> shape) const;
  LayerNorm load_norm(const std::string &prefix) const;
  posattn::Linear load_linear(const std::string &prefix, int64_t out, int64_t in) const;

  using Ids = std::vector<int32_t>;
  // Runs one batch, its sentences padded to the longest of them; -> (batch, tokens, width).
  posattn::Tensor encode(const std::vector<const Ids *> &batch, Timings &timings) const;
  posattn::Tensor look_up(const std::vector<const Ids *> &batch, int64_t tokens) const;

  posattn::SafeTensors weights_;
  Tokenizer tokenizer_;
  int64_t width_ = 0, inner_width_ = 0, max_tokens_ = 0;
  float epsilon_ = 0;
  posattn::TensorView words_, positions_, token_types_;  // views into weights_
  LayerNorm embedding_norm_;
  std::vector<Layer> layers_;
};

// The cosines of all pairs of rows of unit length: (N, E) -> (N, N), f32.
posattn::Tensor cosines(const posattn::TensorView &embeddings);

}  // namespace sentences
