#include "lapidary/data/packing.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "lapidary/core/rng.h"
#include "tests/unit/data/tokenizer_fixture.h"

namespace lapidary {
namespace {

using ::testing::ElementsAre;
using testing::error_of;
using ::testing::HasSubstr;

// A document of `length` tokens: base, base + 1, ...; every token is a label.
Sample document(int64_t base, int64_t length) {
  Sample sample;
  for (int64_t i = 0; i < length; ++i) sample.input_ids.push_back(base + i);
  sample.labels = sample.input_ids;
  return sample;
}

TEST(PackingTest, OneRowByHand) {
  const std::vector<Sample> documents = {document(10, 3), document(20, 4)};
  const Packed packed = pack_samples(documents, {.length = 9, .shuffle = false, .pad_id = 99});
  ASSERT_EQ(packed.rows.size(), 1U);
  const Sample& row = packed.rows[0];  // the longer document comes first
  EXPECT_THAT(row.input_ids, ElementsAre(20, 21, 22, 23, 10, 11, 12, 99, 99));
  EXPECT_THAT(row.labels, ElementsAre(-100, 21, 22, 23, -100, 11, 12, -100, -100));
  EXPECT_THAT(row.position_ids, ElementsAre(0, 1, 2, 3, 0, 1, 2, 0, 0));
  EXPECT_THAT(row.packed_seq_ids, ElementsAre(1, 1, 1, 1, 2, 2, 2, 0, 0));
  EXPECT_EQ(packed.report.padding, 2);
  EXPECT_EQ(packed.report.tokens, 7);
}

TEST(PackingTest, BestFit) {
  // 6 and 5 open rows of 10; 4 fits both and belongs to the fuller one; 5 fills the other.
  const std::vector<Sample> documents = {document(0, 6), document(100, 5), document(200, 5),
                                         document(300, 4)};
  const Packed packed = pack_samples(documents, {.length = 10, .shuffle = false});
  EXPECT_EQ(packed.report.rows, 2);
  EXPECT_EQ(packed.report.padding, 0);
}

TEST(PackingTest, EveryDocumentExactlyOnce) {
  Rng rng(3);
  std::vector<Sample> documents;
  std::map<int64_t, int64_t> lengths;
  int64_t total = 0;
  for (int64_t i = 0; i < 1000; ++i) {
    const int64_t length = 1 + rng.below(64);
    documents.push_back(document(i * 1000, length));
    lengths[i * 1000] = length;
    total += length;
  }
  const Packed packed = pack_samples(documents, {.length = 64, .window = 128, .seed = 5});
  for (const Sample& row : packed.rows) {
    ASSERT_EQ(row.input_ids.size(), 64U);
    for (size_t i = 0; i < row.input_ids.size(); ++i) {
      const bool starts = row.packed_seq_ids[i] != 0 &&
                          (i == 0 || row.packed_seq_ids[i] != row.packed_seq_ids[i - 1]);
      if (!starts) continue;
      EXPECT_EQ(row.packed_seq_ids[i], i == 0 ? 1 : row.packed_seq_ids[i - 1] + 1);
      EXPECT_EQ(row.labels[i], kIgnoreLabel);
      const int64_t base = row.input_ids[i];
      ASSERT_TRUE(lengths.contains(base)) << base;
      for (size_t k = 0; k < static_cast<size_t>(lengths[base]); ++k) {
        ASSERT_EQ(row.input_ids[i + k], base + static_cast<int64_t>(k));
        ASSERT_EQ(row.position_ids[i + k], static_cast<int64_t>(k));
        ASSERT_EQ(row.packed_seq_ids[i + k], row.packed_seq_ids[i]);
      }
      lengths.erase(base);
    }
  }
  EXPECT_TRUE(lengths.empty());
  EXPECT_EQ(packed.report.documents, 1000);
  EXPECT_EQ(packed.report.tokens, total);
  EXPECT_EQ(packed.report.rows * 64, packed.report.tokens + packed.report.padding);
  // Eight windows with a last, partly filled row each, and little loss elsewhere.
  EXPECT_LT(packed.report.padding, packed.report.tokens / 25);
}

TEST(PackingTest, SeedDecides) {
  std::vector<Sample> documents;
  for (int64_t i = 0; i < 50; ++i) documents.push_back(document(i * 100, 1 + i % 7));
  const auto ids = [&](uint64_t seed) {
    std::vector<int64_t> all;
    for (const Sample& row :
         pack_samples(documents, {.length = 16, .window = 8, .seed = seed}).rows) {
      all.insert(all.end(), row.input_ids.begin(), row.input_ids.end());
    }
    return all;
  };
  EXPECT_EQ(ids(1), ids(1));
  EXPECT_NE(ids(1), ids(2));
}

TEST(PackingTest, LongDocuments) {
  const std::vector<Sample> documents = {document(0, 5), document(100, 2)};
  PackOptions options{.length = 4, .shuffle = false};
  EXPECT_THAT(error_of([&] { pack_samples(documents, options); }),
              HasSubstr("document 0: 5 tokens don't fit a row of 4"));
  options.overlong = Overlong::kTruncate;
  Packed packed = pack_samples(documents, options);
  EXPECT_EQ(packed.report.truncated, 1);
  EXPECT_THAT(packed.rows[0].input_ids, ElementsAre(0, 1, 2, 3));
  options.overlong = Overlong::kDrop;
  packed = pack_samples(documents, options);
  EXPECT_EQ(packed.report.dropped, 1);
  EXPECT_EQ(packed.report.documents, 2);
  EXPECT_EQ(packed.report.tokens, 2);
}

TEST(PackingTest, OwnPositionsAreKept) {
  Sample sample = document(0, 2);
  sample.position_ids = {7, 8};
  const Packed packed = pack_samples(std::vector<Sample>{sample}, {.length = 3});
  EXPECT_THAT(packed.rows[0].position_ids, ElementsAre(7, 8, 0));
}

TEST(PackingTest, Mistakes) {
  const std::vector<Sample> empty = {Sample{}};
  EXPECT_THAT(error_of([&] { pack_samples(empty, {.length = 4}); }),
              HasSubstr("document 0: has no tokens"));
  const std::vector<Sample> fine = {document(0, 2)};
  EXPECT_THAT(error_of([&] { pack_samples(fine, {.length = 0}); }), HasSubstr("row length 0"));
  const Packed packed = pack_samples(fine, {.length = 4});
  EXPECT_THAT(error_of([&] { pack_samples(packed.rows, {.length = 4}); }),
              HasSubstr("is packed already"));
  EXPECT_TRUE(pack_samples({}, {.length = 4}).rows.empty());
}

}  // namespace
}  // namespace lapidary
