// WordPiece (Schuster and Nakajima 2012) as BERT's uncased models use it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace sentences {

class Tokenizer {
 public:
  // vocab_path: one piece a line, the line's number is its id; "##" marks a piece that continues a word.
  // Throws posattn::Error if the file can't be read or lacks [UNK], [CLS] or [SEP].
  explicit Tokenizer(const std::string &vocab_path);

  // The ids of [CLS], the pieces of `text` and [SEP]; pieces beyond max_tokens in all are dropped. The names
  // of special tokens in the text, "[MASK]" say, stand for these tokens.
  std::vector<int32_t> encode(std::string_view text, size_t max_tokens, bool *truncated = nullptr) const;

  int64_t vocabulary_size() const { return size_; }

 private:
  void encode_words(std::string_view text, std::vector<int32_t> &ids) const;
  void encode_word(std::u32string_view word, std::vector<int32_t> &ids) const;
  int32_t special(const char *name, const std::string &path) const;

  std::unordered_map<std::u32string, int32_t> ids_;
  std::vector<std::pair<std::string, int32_t>> specials_;
  int64_t size_ = 0;
  int32_t unknown_, begin_, end_;
};

}  // namespace sentences
