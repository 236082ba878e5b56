#include "lapidary/ops/mask.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "lapidary/core/error.h"
#include "lapidary/core/rng.h"
#include "tests/support/tensors.h"

namespace lapidary::test {
namespace {

using ops::ImageRule;
using ops::MaskSpec;
using Ints = std::vector<int32_t>;

// A row of tokens as the data side knows it. Empty vectors: not given.
struct Row {
  Ints docs;   // 1-based document, 0 = padding
  Ints types;  // 0 text, 1 image, 2 video, 3 audio
  Ints valid;  // attention mask
};

// The number of the run of image or video tokens that a token lies in, -1 outside.
Ints blocks_of(const Ints& types) {
  Ints blocks;
  int32_t runs = 0;
  bool inside = false;
  for (const int32_t type : types) {
    const bool vision = type == 1 || type == 2;
    if (vision && !inside) ++runs;
    inside = vision;
    blocks.push_back(vision ? runs - 1 : -1);
  }
  return blocks;
}

// What the rules say about positions i (query) and j (key) of a whole row, one line for each rule
// and layer type. Two tokens lie in the same image when every token between them is one of it.
bool expected(const Row& row, ImageRule rule, std::optional<int64_t> window, int64_t i, int64_t j) {
  const auto n = [](const Ints& v, int64_t k) { return v[static_cast<size_t>(k)]; };
  const bool valid = row.valid.empty() || n(row.valid, j) != 0;
  const bool same_doc =
      row.docs.empty() || (n(row.docs, i) > 0 && n(row.docs, i) == n(row.docs, j));
  bool image = !row.types.empty();
  for (int64_t k = std::min(i, j); image && k <= std::max(i, j); ++k) {
    image = n(row.types, k) == 1 || n(row.types, k) == 2;
  }
  const bool causal = i >= j;
  bool base = causal;
  if (!window.has_value()) {
    if (rule == ImageRule::transformers_5_8) base = causal || image;
  } else {
    const bool near = i - j < *window;
    base = rule == ImageRule::google ? near && (causal || image) : (near && causal) || image;
  }
  return base && same_doc && valid;
}

// A MaskSpec over rows, queries [q0, q1) and keys [k0, k1) of them, with the tensors it views.
struct Masked {
  OwnedTensor valid, query_docs, key_docs, query_blocks, key_blocks;
  MaskSpec spec;

  Masked(const std::vector<Row>& rows, int64_t q0, int64_t q1, int64_t k0, int64_t k1) {
    spec.query_offset = q0;
    spec.key_offset = k0;
    const auto b = static_cast<int64_t>(rows.size());
    const auto gather = [&](Dtype dtype, int64_t from, int64_t to, auto&& get) {
      std::vector<double> all;
      for (const Row& row : rows) {
        const Ints v = get(row);
        all.insert(all.end(), v.begin() + from, v.begin() + to);
      }
      return from_values(dtype, {b, to - from}, all);
    };
    if (!rows[0].valid.empty()) {
      valid = gather(Dtype::u8, k0, k1, [](const Row& r) { return r.valid; });
      spec.key_valid = valid.get();
    }
    if (!rows[0].docs.empty()) {
      const auto docs = [](const Row& r) { return r.docs; };
      query_docs = gather(Dtype::i32, q0, q1, docs);
      key_docs = gather(Dtype::i32, k0, k1, docs);
      spec.query_docs = query_docs.get();
      spec.key_docs = key_docs.get();
    }
    if (!rows[0].types.empty()) {
      const auto blocks = [](const Row& r) { return blocks_of(r.types); };
      query_blocks = gather(Dtype::i32, q0, q1, blocks);
      key_blocks = gather(Dtype::i32, k0, k1, blocks);
      spec.query_blocks = query_blocks.get();
      spec.key_blocks = key_blocks.get();
    }
  }
  void set_window(std::optional<int64_t> window) {
    spec.sliding = window.has_value();
    spec.window = window.value_or(0);
  }
};

constexpr ImageRule kRules[] = {ImageRule::google, ImageRule::transformers_5_8,
                                ImageRule::transformers_5_5, ImageRule::automodel_packed};

// Runs of equal values: documents, images and text as they come in practice.
Ints runs(Rng& rng, int64_t length, int32_t kinds) {
  Ints out;
  while (static_cast<int64_t>(out.size()) < length) {
    out.insert(out.end(), static_cast<size_t>(1 + rng.below(5)),
               static_cast<int32_t>(rng.below(kinds)));
  }
  out.resize(static_cast<size_t>(length));
  return out;
}

Row random_row(Rng& rng, int64_t length, bool docs, bool types, bool valid) {
  Row row;
  if (docs) row.docs = runs(rng, length, 4);
  if (types) row.types = runs(rng, length, 4);
  if (valid) row.valid = runs(rng, length, 2);
  return row;
}

// visible() everywhere, and what key_range() and all_visible() promise about it.
void expect_rules(const MaskSpec& spec, int64_t b, int64_t queries, int64_t keys, Rng& rng) {
  for (int64_t s = 0; s < queries; ++s) {
    const MaskSpec::Range range = spec.key_range(b, s, keys);
    ASSERT_LE(0, range.first);
    ASSERT_LE(range.first, range.last);
    ASSERT_LE(range.last, keys);
    for (int64_t t = 0; t < keys; ++t) {
      if (t >= range.first && t < range.last) continue;
      ASSERT_FALSE(spec.visible(b, s, t)) << "query " << s << " sees key " << t << " outside ["
                                          << range.first << ", " << range.last << ")";
    }
  }
  for (int trial = 0; trial < 8; ++trial) {
    const int64_t s0 = rng.below(queries), s1 = s0 + 1 + rng.below(queries - s0);
    const int64_t t0 = rng.below(keys), t1 = t0 + 1 + rng.below(keys - t0);
    bool all = true;
    for (int64_t s = s0; s < s1; ++s) {
      for (int64_t t = t0; t < t1; ++t) all = all && spec.visible(b, s, t);
    }
    ASSERT_EQ(spec.all_visible(b, s0, s1, t0, t1), all)
        << "[" << s0 << ", " << s1 << ") x [" << t0 << ", " << t1 << ")";
  }
}

TEST(Mask, RandomConfigurations) {
  Rng rng(101);
  for (int trial = 0; trial < 1500; ++trial) {
    const int64_t length = 1 + rng.below(24);
    const auto flags = rng.below(8);
    std::vector<Row> rows;
    for (int64_t b = 0, n = 1 + rng.below(2); b < n; ++b) {
      rows.push_back(random_row(rng, length, (flags & 1) != 0, (flags & 2) != 0, (flags & 4) != 0));
    }
    const int64_t q0 = rng.below(length), q1 = q0 + 1 + rng.below(length - q0);
    const int64_t k0 = rng.below(length), k1 = k0 + 1 + rng.below(length - k0);
    Masked masked(rows, q0, q1, k0, k1);
    std::optional<int64_t> window;
    if (rng.below(3) > 0) window = 1 + rng.below(length + 2);
    masked.set_window(window);
    for (const ImageRule rule : kRules) {
      masked.spec.image_rule = rule;
      ops::check_mask(masked.spec, static_cast<int64_t>(rows.size()), q1 - q0, k1 - k0);
      for (size_t b = 0; b < rows.size(); ++b) {
        const auto row = static_cast<int64_t>(b);
        for (int64_t i = q0; i < q1; ++i) {
          for (int64_t j = k0; j < k1; ++j) {
            ASSERT_EQ(masked.spec.visible(row, i - q0, j - k0),
                      expected(rows[b], rule, window, i, j))
                << "trial " << trial << " rule " << static_cast<int>(rule) << " i " << i << " j "
                << j;
          }
        }
        ASSERT_NO_FATAL_FAILURE(expect_rules(masked.spec, row, q1 - q0, k1 - k0, rng));
      }
    }
  }
}

// The range is no wider than the window where the window alone decides: sliding layers must not
// walk over the whole row.
TEST(Mask, KeyRangeIsTight) {
  MaskSpec spec{.sliding = true, .window = 4, .query_offset = 10};
  const MaskSpec::Range middle = spec.key_range(0, 0, 20);
  EXPECT_EQ(middle.first, 7);
  EXPECT_EQ(middle.last, 11);
  spec.sliding = false;
  EXPECT_EQ(spec.key_range(0, 3, 20).first, 0);
  EXPECT_EQ(spec.key_range(0, 3, 20).last, 14);
  spec.key_offset = 14;  // keys that all lie in the future
  EXPECT_EQ(spec.key_range(0, 3, 6).last, 0);
}

TEST(Mask, WindowOfTwo) {
  MaskSpec spec{.sliding = true, .window = 2};
  for (int64_t s = 0; s < 4; ++s) {
    for (int64_t t = 0; t < 4; ++t) EXPECT_EQ(spec.visible(0, s, t), t == s || t == s - 1);
  }
  // The window counts from the query's place in the row: position 4, keys 3 .. 6 of the row.
  spec.query_offset = 4;
  spec.key_offset = 3;
  for (int64_t t = 0; t < 4; ++t) EXPECT_EQ(spec.visible(0, 0, t), t == 0 || t == 1) << t;
}

// Runs of image or video tokens look ahead in themselves and nowhere else; text and audio (-1) are
// no block, though equal.
TEST(Mask, BlocksAreNumberedRuns) {
  const std::vector<std::pair<Ints, Ints>> rows = {{{0, 1, 1, 0, 2, 2}, {-1, 0, 0, -1, 1, 1}},
                                                   {{1, 1, 0}, {0, 0, -1}},
                                                   {{0, 0, 3}, {-1, -1, -1}},
                                                   {{1, 2}, {0, 0}}};
  for (const auto& [types, blocks] : rows) {
    ASSERT_EQ(blocks_of(types), blocks);
    const auto length = static_cast<int64_t>(types.size());
    Masked masked({{.docs = {}, .types = types, .valid = {}}}, 0, length, 0, length);
    masked.spec.image_rule = ImageRule::transformers_5_8;
    for (int64_t s = 0; s < length; ++s) {
      for (int64_t t = s + 1; t < length; ++t) {
        const int32_t a = blocks[static_cast<size_t>(s)], b = blocks[static_cast<size_t>(t)];
        EXPECT_EQ(masked.spec.visible(0, s, t), a == b && a >= 0) << s << " " << t;
      }
    }
  }
}

// Packed row with two documents, an image in each, and padding.
TEST(Mask, PackedWithImages) {
  const Row row{.docs = {1, 1, 1, 1, 2, 2, 2, 0}, .types = {0, 1, 1, 0, 0, 1, 1, 0}, .valid = {}};
  Masked masked({row}, 0, 8, 0, 8);
  const auto sees = [&](ImageRule rule, std::optional<int64_t> window, int64_t i, int64_t j) {
    masked.set_window(window);
    masked.spec.image_rule = rule;
    return masked.spec.visible(0, i, j);
  };
  for (const ImageRule rule : kRules) {
    EXPECT_EQ(sees(rule, {}, 1, 2), rule == ImageRule::transformers_5_8);
    EXPECT_TRUE(sees(rule, 2, 1, 2)) << "an image looks ahead in itself";
    EXPECT_FALSE(sees(rule, 2, 3, 0)) << "outside the window";
    EXPECT_FALSE(sees(rule, 2, 5, 1)) << "another document's image";
    EXPECT_FALSE(sees(rule, 2, 4, 3)) << "another document's last token";
    EXPECT_TRUE(sees(rule, {}, 3, 0));
    EXPECT_FALSE(sees(rule, {}, 7, 7)) << "padding sees nothing";
    EXPECT_FALSE(sees(rule, 2, 7, 7));
    EXPECT_FALSE(sees(rule, {}, 7, 6));
  }
}

// An image longer than the window: only the Google rule cuts it on the left, none on the right.
TEST(Mask, ImageLongerThanTheWindow) {
  const Row row{.docs = {}, .types = {1, 1, 1, 1, 1, 1}, .valid = {}};
  Masked masked({row}, 0, 6, 0, 6);
  masked.set_window(2);
  for (const ImageRule rule : kRules) {
    masked.spec.image_rule = rule;
    EXPECT_TRUE(masked.spec.visible(0, 1, 5));
    EXPECT_EQ(masked.spec.visible(0, 5, 1), rule != ImageRule::google);
    EXPECT_TRUE(masked.spec.visible(0, 5, 4));
  }
}

TEST(Mask, DenseReplacesEverything) {
  Rng rng(103);
  const OwnedTensor dense = random_int(Dtype::u8, {2, 3, 4}, rng, 0, 2);
  Masked masked({{.docs = {1, 1, 2, 2}, .types = {1, 1, 0, 0}, .valid = {0, 1, 1, 1}},
                 {.docs = {1, 1, 2, 2}, .types = {1, 1, 0, 0}, .valid = {0, 1, 1, 1}}},
                0, 3, 0, 4);
  masked.set_window(1);
  masked.spec.dense = dense.get();
  ops::check_mask(masked.spec, 2, 3, 4);
  for (int64_t i = 0; i < 24; ++i) {
    EXPECT_EQ(masked.spec.visible(i / 12, i / 4 % 3, i % 4), at(dense.get(), i) != 0.0);
  }
  for (int64_t b = 0; b < 2; ++b) expect_rules(masked.spec, b, 3, 4, rng);
}

TEST(Mask, StridedViews) {
  Rng rng(107);
  const Row row = random_row(rng, 9, true, true, true);
  Masked masked({row, row}, 0, 9, 0, 9);
  MaskSpec wide = masked.spec;
  const Spread valid = spread(masked.spec.key_valid), docs = spread(masked.spec.key_docs);
  const Spread blocks = spread(masked.spec.key_blocks);
  wide.key_valid = valid.view;
  wide.query_docs = wide.key_docs = docs.view;
  wide.query_blocks = wide.key_blocks = blocks.view;
  for (int64_t i = 0; i < 2 * 81; ++i) {
    EXPECT_EQ(wide.visible(i / 81, i / 9 % 9, i % 9),
              masked.spec.visible(i / 81, i / 9 % 9, i % 9));
  }
}

TEST(Mask, ShapesAreChecked) {
  const OwnedTensor docs = zeros(Dtype::i32, {1, 4}), valid = zeros(Dtype::u8, {1, 4});
  const auto message = [](const MaskSpec& spec) -> std::string {
    try {
      ops::check_mask(spec, 1, 4, 5);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_EQ(message({}), "");
  EXPECT_THAT(message({.key_valid = valid.get()}), testing::HasSubstr("key_valid is [1, 4]"));
  EXPECT_THAT(message({.query_docs = docs.get()}), testing::HasSubstr("both sides"));
  EXPECT_THAT(message({.key_blocks = docs.get()}), testing::HasSubstr("both sides"));
  EXPECT_THAT(message({.query_docs = docs.get(), .key_docs = docs.get()}),
              testing::HasSubstr("key_docs"));
  EXPECT_THAT(message({.sliding = true}), testing::HasSubstr("window 0"));
  EXPECT_THAT(message({.dense = valid.get()}), testing::HasSubstr("dense"));
}

}  // namespace
}  // namespace lapidary::test
