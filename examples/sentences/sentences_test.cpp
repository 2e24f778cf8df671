// Embeddings against those of the original model.
#include <algorithm>
#include <cmath>
#include <sstream>

#include "examples/sentences/encoder.h"
#include "examples/sentences/fixture.h"
#include "examples/sentences/model_dir.h"
#include "examples/sentences/report.h"
#include "gtest/gtest.h"
#include "runtime/error.h"

namespace sentences {
namespace {

constexpr double kTolerance = 1e-5;  // components of a unit vector are about 0.05

double largest_difference(const posattn::TensorView &a, const posattn::TensorView &b) {
  EXPECT_EQ(a.shape_text(), b.shape_text());
  double largest = 0;
  for (int64_t i = 0; i < a.num_elements(); ++i) {
    const double difference = std::abs(double{a.as<float>()[i]} - double{b.as<float>()[i]});
    largest = difference <= largest ? largest : difference;  // keeps NaN
  }
  return largest;
}

const Encoder &encoder() {
  static const Encoder instance(bundled_model_dir());
  return instance;
}

TEST(Encoder, OneBatchOfMixedLengthsEqualsTheOriginal) {
  const Fixture fixture;
  std::vector<bool> truncated;
  const posattn::Tensor embeddings = encoder().embed(fixture.texts, nullptr, &truncated);
  EXPECT_LE(largest_difference(embeddings.view(), fixture.embeddings), kTolerance);
  EXPECT_EQ(std::count(truncated.begin(), truncated.end(), true), 1);  // the last one
  EXPECT_TRUE(truncated.back());
}

TEST(Encoder, SentenceBySentenceEqualsTheOriginal) {
  const Fixture fixture;
  for (size_t i = 0; i < fixture.texts.size(); ++i) {
    const auto row = static_cast<int64_t>(i);
    EXPECT_LE(largest_difference(encoder().embed({fixture.texts[i]}).view(),
                                 fixture.embeddings.slice(0, row, row + 1)),
              kTolerance)
        << fixture.texts[i];
  }
}

TEST(Encoder, SeveralBatchesKeepTheOrder) {
  const Fixture fixture;
  std::vector<std::string> many;
  for (size_t i = 0; i < 40; ++i) many.push_back(fixture.texts[i * 7 % (fixture.texts.size() - 1)]);
  const posattn::Tensor embeddings = encoder().embed(many);
  for (size_t i = 0; i < many.size(); ++i) {
    const auto row = static_cast<int64_t>(i),
               original = static_cast<int64_t>(i * 7 % (fixture.texts.size() - 1));
    EXPECT_LE(largest_difference(embeddings.view().slice(0, row, row + 1),
                                 fixture.embeddings.slice(0, original, original + 1)),
              kTolerance);
  }
}

TEST(Encoder, NoSentencesGiveNoRows) { EXPECT_EQ(encoder().embed({}).size(0), 0); }

TEST(Encoder, CosinesTellWhatIsAlike) {
  const posattn::Tensor embeddings =
      encoder().embed({"A cat sits on the mat.", "The kitten is resting on a rug.", "Revenue grew by 12%."});
  const posattn::Tensor table = cosines(embeddings.view());
  const auto *cosine = table.as<float>();
  for (int i = 0; i < 3; ++i) EXPECT_NEAR(cosine[i * 3 + i], 1, 1e-5);
  EXPECT_EQ(cosine[1], cosine[3]);
  EXPECT_GT(cosine[1], cosine[2] + 0.3);
}

TEST(Encoder, TimesEveryPart) {
  Timings timings;
  encoder().embed({"Where does the time go?"}, &timings);
  for (const double part :
       {timings.tokenise, timings.embed, timings.attention, timings.feed_forward, timings.pooling})
    EXPECT_GT(part, 0);
}

TEST(Encoder, RejectsADirectoryWithoutAModel) {
  EXPECT_THROW(Encoder("examples/sentences/testdata"), posattn::Error);
}

TEST(Elementwise, GeluIsExact) {
  constexpr int64_t kCount = 4001;
  posattn::Tensor x(posattn::DType::f32, {kCount});
  for (int64_t i = 0; i < kCount; ++i) x.as<float>()[i] = static_cast<float>(i - kCount / 2) * 0.005f;
  const posattn::Tensor before = x.clone();
  gelu(x);
  for (int64_t i = 0; i < kCount; ++i) {
    const double in = before.as<float>()[i], expected = in / 2 * (1 + std::erf(in / std::sqrt(2.0)));
    EXPECT_NEAR(x.as<float>()[i], expected, 1e-6 + 1e-6 * std::abs(in)) << in;
  }
}

TEST(Report, ShortensLabels) {
  std::ostringstream out;
  posattn::Tensor one(posattn::DType::f32, {1, 1});
  one.as<float>()[0] = 1;
  print_similarity(out, one.view(), {"two\nlines " + std::string(100, 'x')});
  EXPECT_EQ(out.str(), "           1\n   1   1.000   two lines " + std::string(35, 'x') + "...\n");
}

}  // namespace
}  // namespace sentences
