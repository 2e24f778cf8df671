#include "examples/sentences/tokenizer.h"

#include <algorithm>
#include <fstream>

#include "examples/sentences/text.h"
#include "runtime/error.h"

namespace sentences {
namespace {

constexpr size_t kLongestWord = 100;  // code points; what is longer is unknown as a whole

}  // namespace

Tokenizer::Tokenizer(const std::string &vocab_path) {
  std::ifstream file(vocab_path);
  if (!file) posattn::fail(vocab_path, ": cannot be read");
  std::string line;
  while (std::getline(file, line)) {
    if (!line.empty() && line.back() == '\r') line.pop_back();
    ids_.emplace(decode_utf8(line), static_cast<int32_t>(size_++));
  }
  unknown_ = special("[UNK]", vocab_path);
  begin_ = special("[CLS]", vocab_path);
  end_ = special("[SEP]", vocab_path);
  for (const char *name : {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}) {
    const auto found = ids_.find(decode_utf8(name));
    if (found != ids_.end()) specials_.emplace_back(name, found->second);
  }
}

int32_t Tokenizer::special(const char *name, const std::string &path) const {
  const auto found = ids_.find(decode_utf8(name));
  if (found == ids_.end()) posattn::fail(path, ": expected a vocabulary with ", name, ", got none");
  return found->second;
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, size_t max_tokens, bool *truncated) const {
  std::vector<int32_t> ids = {begin_};
  while (!text.empty()) {
    size_t first = std::string_view::npos;
    const std::pair<std::string, int32_t> *next = nullptr;
    for (const auto &token : specials_) {
      const size_t at = text.find(token.first);
      if (at < first) {
        first = at;
        next = &token;
      }
    }
    encode_words(text.substr(0, first), ids);
    if (!next) break;
    ids.push_back(next->second);
    text.remove_prefix(first + next->first.size());
  }
  const bool cut = ids.size() + 1 > max_tokens;
  if (cut) ids.resize(max_tokens - 1);
  if (truncated) *truncated = cut;
  ids.push_back(end_);
  return ids;
}

void Tokenizer::encode_words(std::string_view text, std::vector<int32_t> &ids) const {
  for (const std::u32string &word : split_words(text)) encode_word(word, ids);
}

// Greedy: the longest piece that the rest of the word starts with, and so on. A word with a part that no
// piece matches is unknown as a whole.
void Tokenizer::encode_word(std::u32string_view word, std::vector<int32_t> &ids) const {
  const size_t pieces_before = ids.size();
  bool known = word.size() <= kLongestWord;
  for (size_t begin = 0; known && begin < word.size();) {
    size_t end = word.size();
    for (; end > begin; --end) {
      std::u32string piece(begin ? U"##" : U"");
      piece += word.substr(begin, end - begin);
      const auto found = ids_.find(piece);
      if (found == ids_.end()) continue;
      ids.push_back(found->second);
      break;
    }
    known = end > begin;
    begin = end;
  }
  if (known) return;
  ids.resize(pieces_before);
  ids.push_back(unknown_);
}

}  // namespace sentences
