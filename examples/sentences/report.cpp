#include "examples/sentences/report.h"

#include <iomanip>

#include "examples/sentences/text.h"

namespace sentences {
namespace {

constexpr size_t kLabel = 48;  // characters

std::string label(const std::string &sentence) {
  std::u32string text = decode_utf8(sentence);
  for (char32_t &c : text)
    if (c < U' ') c = U' ';
  if (text.size() > kLabel) text = text.substr(0, kLabel - 3) + U"...";
  return encode_utf8(text);
}

}  // namespace

void print_similarity(std::ostream &out, const posattn::TensorView &cosines,
                      const std::vector<std::string> &sentences) {
  out << std::fixed << std::setprecision(3) << "    ";
  for (size_t i = 1; i <= sentences.size(); ++i) out << std::setw(8) << i;
  out << '\n';
  const auto *cosine = cosines.as<float>();
  for (size_t i = 0; i < sentences.size(); ++i) {
    out << std::setw(4) << i + 1;
    for (size_t j = 0; j < sentences.size(); ++j) out << std::setw(8) << *cosine++;
    out << "   " << label(sentences[i]) << '\n';
  }
}

void print_timings(std::ostream &out, const Timings &timings) {
  const std::pair<const char *, double> parts[] = {{"tokenise", timings.tokenise},
                                                   {"embed", timings.embed},
                                                   {"attention", timings.attention},
                                                   {"feed-forward", timings.feed_forward},
                                                   {"pooling", timings.pooling}};
  double total = 0;
  for (const auto &part : parts) total += part.second;
  const auto line = [&](const char *name, double milliseconds) {
    out << std::left << std::setw(14) << name << std::right << std::setprecision(2) << std::setw(9)
        << milliseconds << " ms" << std::setprecision(1) << std::setw(7)
        << (total > 0 ? 100 * milliseconds / total : 0) << " %\n";
  };
  out << std::fixed;
  for (const auto &part : parts) line(part.first, part.second);
  line("total", total);
}

}  // namespace sentences
