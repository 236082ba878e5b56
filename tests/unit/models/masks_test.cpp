#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "lapidary/core/error.h"
#include "lapidary/models/gemma4/text_inputs.h"
#include "tests/support/tensors.h"

// Masks written out, against cases worked out by hand.
namespace lapidary::gemma4 {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;

std::vector<int32_t> blocks_of(const std::vector<int64_t>& types) {
  std::vector<int32_t> out(types.size());
  image_blocks(types.data(), static_cast<int64_t>(types.size()), out.data());
  return out;
}

TEST(ImageBlocks, NumbersRunsOfImageAndVideoTokens) {
  EXPECT_THAT(blocks_of({0, 1, 1, 0, 2, 2}), ElementsAre(-1, 0, 0, -1, 1, 1));
  EXPECT_THAT(blocks_of({1, 1, 0}), ElementsAre(0, 0, -1));
  EXPECT_THAT(blocks_of({0, 0, 0, 0}), Each(-1));
  EXPECT_THAT(blocks_of({3, 1, 3}), ElementsAre(-1, 0, -1));  // audio has no block
  EXPECT_THAT(blocks_of({1, 2, 1}), ElementsAre(0, 0, 0));    // what touches is one block
  EXPECT_TRUE(blocks_of({}).empty());
}

TEST(DenseMask, WindowOfTwoSeesItselfAndOneBefore) {
  const ops::MaskSpec mask{.sliding = true, .window = 2};
  EXPECT_THAT(dense_mask(mask, 1, 4, 4), ElementsAre(1, 0, 0, 0,  //
                                                     1, 1, 0, 0,  //
                                                     0, 1, 1, 0,  //
                                                     0, 0, 1, 1));
}

TEST(DenseMask, FullLayersAreCausal) {
  EXPECT_THAT(dense_mask({}, 1, 3, 3), ElementsAre(1, 0, 0,  //
                                                   1, 1, 0,  //
                                                   1, 1, 1));
}

// Queries 4 and 5 of a row whose keys 3, 4 and 5 are at hand.
TEST(DenseMask, OffsetsPlaceQueriesAndKeysInTheRow) {
  const ops::MaskSpec mask{.sliding = true, .window = 2, .query_offset = 4, .key_offset = 3};
  EXPECT_THAT(dense_mask(mask, 1, 2, 3), ElementsAre(1, 1, 0,  //
                                                     0, 1, 1));
}

// Three documents' worth of rules at once: two documents, two image blocks, one padding token.
class PackedRow : public ::testing::Test {
 protected:
  ops::MaskSpec mask(bool sliding) const {
    ops::MaskSpec out{.sliding = sliding, .window = 2};
    out.query_docs = out.key_docs = docs_.get();
    out.query_blocks = out.key_blocks = blocks_.get();
    return out;
  }
  bool visible(bool sliding, int64_t query, int64_t key) const {
    return dense_mask(mask(sliding), 1, 8, 8)[static_cast<size_t>(query * 8 + key)] != 0;
  }
  const OwnedTensor docs_ = test::from_values(Dtype::i32, {1, 8}, {1, 1, 1, 1, 2, 2, 2, 0});
  const OwnedTensor blocks_ = test::from_values(Dtype::i32, {1, 8}, {-1, 0, 0, -1, -1, 1, 1, -1});
};

TEST_F(PackedRow, HandCases) {
  EXPECT_FALSE(visible(false, 1, 2));  // full layers stay causal on images
  EXPECT_TRUE(visible(true, 1, 2));    // sliding layers look ahead within one
  EXPECT_FALSE(visible(true, 3, 0));   // outside the window
  EXPECT_TRUE(visible(false, 3, 0));
  EXPECT_FALSE(visible(true, 5, 1));  // another document, another image
  EXPECT_FALSE(visible(false, 4, 3));
  EXPECT_TRUE(visible(true, 5, 6));
  EXPECT_FALSE(visible(true, 7, 7));  // padding sees not even itself
  EXPECT_FALSE(visible(false, 7, 7));
}

TEST_F(PackedRow, AdditiveSaysTheSame) {
  const std::vector<uint8_t> dense = dense_mask(mask(true), 1, 8, 8);
  const std::vector<float> additive = additive_mask(mask(true), 1, 8, 8);
  ASSERT_EQ(additive.size(), dense.size());
  for (size_t i = 0; i < dense.size(); ++i) {
    EXPECT_EQ(additive[i], dense[i] != 0 ? 0.0F : std::numeric_limits<float>::lowest());
  }
}

TEST(DenseMask, ShapesAreChecked) {
  const OwnedTensor docs = test::zeros(Dtype::i32, {1, 7});
  ops::MaskSpec mask;
  mask.query_docs = mask.key_docs = docs.get();
  EXPECT_THROW(dense_mask(mask, 1, 8, 8), Error);
}

TEST(PaddingMask, FromOneTwoAndFourDimensions) {
  const OwnedTensor row = test::from_values(Dtype::i64, {3}, {0, 1, 1});
  EXPECT_THAT(derive_padding_mask(row.get(), 2), ElementsAre(1, 0, 0, 1, 0, 0));
  const OwnedTensor rows = test::from_values(Dtype::u8, {2, 3}, {0, 1, 1, 1, 1, 0});
  EXPECT_THAT(derive_padding_mask(rows.get(), 2), ElementsAre(1, 0, 0, 0, 0, 1));
  // The diagonal decides: a token that sees itself is real.
  const std::vector<double> square = {0, 0, 0, 0, 1, 0, 0, 1, 1, 1, 0, 0, 1, 1, 0, 0, 0, 0};
  const OwnedTensor dense = test::from_values(Dtype::u8, {2, 1, 3, 3}, square);
  EXPECT_THAT(derive_padding_mask(dense.get(), 2), ElementsAre(1, 0, 0, 0, 0, 1));
  std::vector<double> additive;
  for (const double v : square) additive.push_back(v != 0 ? 0.0 : -3e38);
  const OwnedTensor floats = test::from_values(Dtype::f32, {2, 1, 3, 3}, additive);
  EXPECT_THAT(derive_padding_mask(floats.get(), 2), ElementsAre(1, 0, 0, 0, 0, 1));
}

TEST(PaddingMask, OtherShapesAreErrors) {
  const OwnedTensor cube = test::zeros(Dtype::i64, {1, 3, 3});
  const OwnedTensor rows = test::zeros(Dtype::i64, {2, 3});
  const OwnedTensor wide = test::zeros(Dtype::u8, {1, 1, 3, 4});
  EXPECT_THROW(derive_padding_mask(cube.get(), 1), Error);
  EXPECT_THROW(derive_padding_mask(rows.get(), 3), Error);  // fewer rows than asked for
  EXPECT_THROW(derive_padding_mask(wide.get(), 1), Error);  // not square
  EXPECT_THROW(derive_padding_mask({}, 1), Error);
}

}  // namespace
}  // namespace lapidary::gemma4
