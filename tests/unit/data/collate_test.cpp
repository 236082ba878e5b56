#include "lapidary/data/collate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "lapidary/data/packing.h"
#include "tests/unit/data/tokenizer_fixture.h"

namespace lapidary {
namespace {

using ::testing::ElementsAre;
using testing::error_of;
using ::testing::HasSubstr;

const Sample kLong{{5, 6, 7}, {5, -100, 7}, {}, {}};
const Sample kShort{{8, 9}, {-100, 9}, {3, 4}, {}};

Batch batch_of(std::vector<const Sample*> samples, const CollateOptions& options = {}) {
  return collate(samples, options);
}

TEST(CollateTest, PadsRight) {
  const Batch batch = batch_of({&kLong, &kShort}, {.pad_id = 1});
  EXPECT_EQ(batch.rows, 2);
  EXPECT_EQ(batch.cols, 3);
  EXPECT_THAT(batch.input_ids, ElementsAre(5, 6, 7, 8, 9, 1));
  EXPECT_THAT(batch.labels, ElementsAre(-100, -100, 7, -100, 9, -100));
  EXPECT_THAT(batch.position_ids, ElementsAre(0, 1, 2, 3, 4, 0));
  EXPECT_THAT(batch.attention_mask, ElementsAre(1, 1, 1, 1, 1, 0));
  EXPECT_TRUE(batch.packed_seq_ids.empty());
  EXPECT_TRUE(batch.mm_token_type_ids.empty());
  EXPECT_EQ(batch.num_label_tokens, 2);
  EXPECT_EQ(batch.num_tokens, 5);
}

TEST(CollateTest, PadsLeft) {
  const Batch batch = batch_of({&kLong, &kShort}, {.side = PadSide::kLeft});
  EXPECT_THAT(batch.input_ids, ElementsAre(5, 6, 7, 0, 8, 9));
  EXPECT_THAT(batch.labels, ElementsAre(-100, -100, 7, -100, -100, 9));
  EXPECT_THAT(batch.position_ids, ElementsAre(0, 1, 2, 0, 3, 4));
  EXPECT_THAT(batch.attention_mask, ElementsAre(1, 1, 1, 0, 1, 1));
  EXPECT_EQ(batch.num_label_tokens, 2);
}

TEST(CollateTest, Lengths) {
  EXPECT_EQ(batch_of({&kLong}, {.multiple_of = 8}).cols, 8);
  EXPECT_EQ(batch_of({&kLong}, {.multiple_of = 3}).cols, 3);
  EXPECT_EQ(batch_of({&kShort}, {.fixed_length = 5}).cols, 5);
  EXPECT_THAT(error_of([] { batch_of({&kLong}, {.fixed_length = 2}); }),
              HasSubstr("a sample of 3 tokens is longer than the fixed length 2"));
}

TEST(CollateTest, PackedRows) {
  const std::vector<Sample> documents = {kLong, kShort};
  const Packed packed = pack_samples(documents, {.length = 6, .shuffle = false});
  const Batch batch = batch_of({&packed.rows[0], &kShort}, {.fixed_length = 7});
  EXPECT_THAT(batch.packed_seq_ids, ElementsAre(1, 1, 1, 2, 2, 0, 0, 1, 1, 0, 0, 0, 0, 0));
  EXPECT_THAT(batch.attention_mask, ElementsAre(1, 1, 1, 1, 1, 0, 0, 1, 1, 0, 0, 0, 0, 0));
  EXPECT_EQ(batch.num_tokens, 7);
  EXPECT_EQ(batch.num_label_tokens, 3);
}

TEST(CollateTest, WithoutTargets) {
  const Batch batch = without_targets(batch_of({&kLong}));
  EXPECT_THAT(batch.labels, ElementsAre(-100, -100, -100));
  EXPECT_THAT(batch.input_ids, ElementsAre(5, 6, 7));
  EXPECT_THAT(batch.attention_mask, ElementsAre(0, 0, 0));
  EXPECT_EQ(batch.num_label_tokens, 0);
  EXPECT_EQ(batch.num_tokens, 0);
  Sample packed = kLong;
  packed.packed_seq_ids = {1, 2, 2};
  EXPECT_THAT(without_targets(batch_of({&packed})).packed_seq_ids, ElementsAre(0, 0, 0));
}

TEST(CollateTest, Mistakes) {
  EXPECT_THAT(error_of([] { batch_of({}); }), HasSubstr("there are no samples"));
  const Sample uneven{{1, 2}, {1}, {}, {}};
  EXPECT_THAT(error_of([&] {
                batch_of({&kLong, &uneven});
              }),
              HasSubstr("sample 1 of a batch: its lists"));
}

}  // namespace
}  // namespace lapidary
