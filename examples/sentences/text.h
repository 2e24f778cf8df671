// What BERT's uncased models do to text before it meets the vocabulary.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace sentences {

// UTF-8 to code points; bytes that are no UTF-8 become U+FFFD.
std::u32string decode_utf8(std::string_view bytes);
std::string encode_utf8(std::u32string_view text);

// The words of `bytes`: control characters dropped, split at white space, each punctuation mark and each CJK
// ideograph a word of its own, accents stripped (NFD without non-spacing marks), lower case.
std::vector<std::u32string> split_words(std::string_view bytes);

}  // namespace sentences
