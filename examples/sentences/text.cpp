#include "examples/sentences/text.h"

#include <algorithm>
#include <cstdint>
#include <iterator>

namespace sentences {
namespace {

struct Range {
  char32_t first, last;
};
struct Fold {
  char32_t from;
  char32_t to[4];  // zero terminated where shorter
};

#include "examples/sentences/unicode_tables.inc"

template <size_t N>
bool contains(const Range (&ranges)[N], char32_t c) {
  const Range *after =
      std::upper_bound(std::begin(ranges), std::end(ranges), c,
                       [](char32_t value, const Range &range) { return value < range.first; });
  return after != std::begin(ranges) && c <= after[-1].last;
}

bool is_cjk_ideograph(char32_t c) {
  static constexpr Range blocks[] = {{0x3400, 0x4DBF},   {0x4E00, 0x9FFF},   {0xF900, 0xFAFF},
                                     {0x20000, 0x2A6DF}, {0x2A700, 0x2B73F}, {0x2B740, 0x2B81F},
                                     {0x2B920, 0x2CEAF}, {0x2F800, 0x2FA1F}};
  return contains(blocks, c);
}

// A Hangul syllable is 588 * lead + 28 * vowel + tail; Unicode standard, section 3.12.
void append_jamo(char32_t syllable, std::u32string &out) {
  const char32_t index = syllable - 0xAC00;
  out += 0x1100 + index / 588;
  out += 0x1161 + index % 588 / 28;
  if (index % 28) out += 0x11A7 + index % 28;
}

// Without accents and in lower case; nothing at all for a lone accent.
void append_folded(char32_t c, std::u32string &out) {
  if (c >= 0xAC00 && c <= 0xD7A3) return append_jamo(c, out);
  const Fold *fold = std::lower_bound(std::begin(kFolds), std::end(kFolds), c,
                                      [](const Fold &entry, char32_t value) { return entry.from < value; });
  if (fold == std::end(kFolds) || fold->from != c) {
    out += c;
    return;
  }
  for (const char32_t to : fold->to)
    if (to) out += to;
}

}  // namespace

std::u32string decode_utf8(std::string_view bytes) {
  constexpr char32_t kReplacement = 0xFFFD;
  std::u32string text;
  for (size_t i = 0; i < bytes.size();) {
    const auto lead = static_cast<unsigned char>(bytes[i++]);
    if (lead < 0x80) {
      text += lead;
      continue;
    }
    const int continuations = lead >= 0xF0 ? 3 : lead >= 0xE0 ? 2 : 1;
    char32_t c = lead & (0x3F >> continuations);
    int read = 0;
    while (read < continuations && i < bytes.size() && (bytes[i] & 0xC0) == 0x80) {
      c = c << 6 | (bytes[i++] & 0x3F);
      ++read;
    }
    // A form longer than needed would let one character be written in several ways.
    static constexpr char32_t smallest[] = {0, 0x80, 0x800, 0x10000};
    const bool valid = lead >= 0xC2 && lead <= 0xF4 && read == continuations &&
                       c >= smallest[continuations] && c <= 0x10FFFF && !(c >= 0xD800 && c <= 0xDFFF);
    text += valid ? c : kReplacement;
  }
  return text;
}

std::string encode_utf8(std::u32string_view text) {
  std::string bytes;
  for (const char32_t c : text) {
    const int continuations = c < 0x80 ? 0 : c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;
    static constexpr unsigned lead[] = {0, 0xC0, 0xE0, 0xF0};
    bytes += static_cast<char>(lead[continuations] | c >> 6 * continuations);
    for (int i = continuations - 1; i >= 0; --i) bytes += static_cast<char>(0x80 | (c >> 6 * i & 0x3F));
  }
  return bytes;
}

std::vector<std::u32string> split_words(std::string_view bytes) {
  std::vector<std::u32string> words;
  std::u32string word, folded;
  const auto finish = [&] {
    if (!word.empty()) words.push_back(std::move(word));
    word.clear();
  };
  for (const char32_t c : decode_utf8(bytes)) {
    if (c == 0xFFFD || contains(kIgnored, c)) continue;
    const bool ideograph = is_cjk_ideograph(c);
    if (ideograph || contains(kSpace, c)) finish();
    if (contains(kSpace, c)) continue;
    folded.clear();
    append_folded(c, folded);
    // Punctuation is looked for after folding: U+037E, the Greek question mark, folds to a semicolon.
    for (const char32_t part : folded) {
      const bool mark = contains(kPunctuation, part);
      if (mark) finish();
      word += part;
      if (mark) finish();
    }
    if (ideograph) finish();
  }
  finish();
  return words;
}

}  // namespace sentences
