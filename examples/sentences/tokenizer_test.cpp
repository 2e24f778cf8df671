#include "examples/sentences/tokenizer.h"

#include "examples/sentences/fixture.h"
#include "examples/sentences/model_dir.h"
#include "examples/sentences/text.h"
#include "gtest/gtest.h"
#include "runtime/error.h"

namespace sentences {
namespace {

using Words = std::vector<std::u32string>;

const Tokenizer &tokenizer() {
  static const Tokenizer instance(bundled_model_dir() + "/vocab.txt");
  return instance;
}

TEST(Tokenizer, GivesTheIdsOfTheOriginal) {
  const Fixture fixture;
  ASSERT_GT(fixture.texts.size(), 10u);
  for (size_t i = 0; i < fixture.texts.size(); ++i)
    EXPECT_EQ(tokenizer().encode(fixture.texts[i], 256), fixture.ids[i]) << fixture.texts[i];
}

TEST(Tokenizer, CutsWhatIsTooLong) {
  const std::string text = "one two three four five six";  // six pieces
  bool truncated = true;
  const auto whole = tokenizer().encode(text, 8, &truncated);
  EXPECT_EQ(whole.size(), 8u);
  EXPECT_FALSE(truncated);
  const auto cut = tokenizer().encode(text, 7, &truncated);
  EXPECT_TRUE(truncated);
  ASSERT_EQ(cut.size(), 7u);
  EXPECT_TRUE(std::equal(cut.begin(), cut.end() - 1, whole.begin()));
  EXPECT_EQ(cut.back(), whole.back());
}

TEST(Tokenizer, RejectsFilesThatAreNoVocabulary) {
  EXPECT_THROW(Tokenizer("no/such/file"), posattn::Error);
  EXPECT_THROW(Tokenizer("examples/sentences/testdata/sentences.json"), posattn::Error);
}

TEST(Text, SplitsAtSpaceAndPunctuation) {
  EXPECT_EQ(split_words("It's\t5$.\n"), (Words{U"it", U"'", U"s", U"5", U"$", U"."}));
  EXPECT_EQ(split_words(" \r\n\u00a0\u3000"), Words{});
  EXPECT_EQ(split_words("a\u2014b\u037ec"), (Words{U"a", U"\u2014", U"b", U";", U"c"}));
  EXPECT_EQ(split_words("ab\u4e2d\u6587c"), (Words{U"ab", U"\u4e2d", U"\u6587", U"c"}));
}

TEST(Text, FoldsCaseAndAccents) {
  EXPECT_EQ(split_words("\u00c9COLE e\u0301cole \u1ed6 \u0130"), (Words{U"ecole", U"ecole", U"o", U"i"}));
  EXPECT_EQ(split_words("\u03a3\u038a \u0419"), (Words{U"\u03c3\u03b9", U"\u0438"}));
  EXPECT_EQ(split_words("\ud55c \uac00"), (Words{U"\u1112\u1161\u11ab", U"\u1100\u1161"}));
  EXPECT_EQ(split_words("\u0301"), Words{});
}

TEST(Text, DropsControlCharactersAndBrokenUtf8) {
  EXPECT_EQ(split_words(std::string_view("a\0b\x07\xc2\xad\xe2\x80\x8b"
                                         "c",
                                         10)),
            Words{U"abc"});
  // A lone continuation byte, a form longer than needed, a surrogate, a cut-off form, a byte of no form.
  EXPECT_EQ(split_words("a\x80\xc0\xaf\xed\xa0\x80\xff"
                        "b\xe2\x82"),
            Words{U"ab"});
}

TEST(Text, Utf8RoundTrip) {
  const std::u32string text = {0x24, 0x7f, 0x80, 0x7ff, 0x800, 0xd7ff, 0xe000, 0xffff, 0x10000, 0x10ffff};
  EXPECT_EQ(decode_utf8(encode_utf8(text)), text);
}

}  // namespace
}  // namespace sentences
