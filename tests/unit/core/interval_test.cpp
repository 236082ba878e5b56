#include "lapidary/core/interval.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "lapidary/core/rng.h"

namespace lapidary {
namespace {

int64_t draw(Rng& rng, int64_t low, int64_t high) { return low + rng.below(high - low + 1); }

// The intervals follow each other from 0 to n without a gap.
void expect_partition(const std::vector<Interval>& parts, int64_t n) {
  int64_t at = 0;
  for (const Interval& part : parts) {
    ASSERT_EQ(part.begin, at);
    ASSERT_LE(part.begin, part.end);
    at = part.end;
  }
  ASSERT_EQ(at, n);
}

TEST(IntervalTest, DealtIsABalancedPartitionInOrder) {
  Rng rng(1);
  for (int round = 0; round < 2000; ++round) {
    const int64_t parts = draw(rng, 1, 40), n = draw(rng, 0, 300);
    std::vector<Interval> all;
    for (int64_t i = 0; i < parts; ++i) all.push_back(dealt(n, parts, i));
    expect_partition(all, n);
    for (size_t i = 0; i < all.size(); ++i) {
      // The first n % parts have one more than the others.
      EXPECT_EQ(all[i].size(), n / parts + (static_cast<int64_t>(i) < n % parts ? 1 : 0));
    }
  }
}

TEST(IntervalTest, ChunksAreAPartitionOfEqualAlignedPieces) {
  Rng rng(2);
  for (int round = 0; round < 2000; ++round) {
    const int64_t parts = draw(rng, 1, 17), n = draw(rng, 0, 5000);
    const int64_t align = draw(rng, 0, 1) == 0 ? 1 : draw(rng, 1, 512);
    const int64_t size = chunk_size(n, parts, align);
    EXPECT_EQ(size % align, 0);
    EXPECT_GE(size * parts, n);
    EXPECT_LT((size - align) * parts, std::max<int64_t>(n, 1));  // no larger than it has to be
    std::vector<Interval> all;
    for (int64_t i = 0; i < parts; ++i) all.push_back(chunk_of(n, parts, i, align));
    expect_partition(all, n);
    for (size_t i = 0; i < all.size(); ++i) {
      if (all[i].empty()) continue;
      EXPECT_EQ(all[i].begin, static_cast<int64_t>(i) * size);
      EXPECT_TRUE(all[i].size() == size || all[i].end == n);
    }
  }
}

TEST(IntervalTest, IntersectIsWhatBothContain) {
  Rng rng(3);
  for (int round = 0; round < 2000; ++round) {
    const auto any = [&] {
      const int64_t begin = draw(rng, -8, 8);
      return Interval{begin, begin + draw(rng, 0, 8)};
    };
    const Interval a = any(), b = any(), both = intersect(a, b);
    EXPECT_EQ(both.empty(), intersect(b, a).empty());
    EXPECT_GE(both.end, both.begin);
    for (int64_t x = -10; x < 18; ++x) {
      const bool in_a = a.begin <= x && x < a.end, in_b = b.begin <= x && x < b.end;
      EXPECT_EQ(both.begin <= x && x < both.end, in_a && in_b);
    }
    const int64_t by = draw(rng, -5, 5);
    EXPECT_EQ(shifted(a, by).size(), a.size());
    EXPECT_EQ(shifted(shifted(a, by), -by), a);
  }
}

// Experts dealt to the ranks of ep, the elements of each rank's experts sharded over the others:
// whatever the sizes, every element of the whole tensor has one owner.
TEST(IntervalTest, EveryElementOfAnExpertTensorIsInOneShard) {
  Rng rng(4);
  for (int round = 0; round < 500; ++round) {
    const int64_t ep = draw(rng, 1, 9), experts = draw(rng, ep, 20), width = draw(rng, 1, 60);
    const int64_t shards = draw(rng, 1, 6), align = draw(rng, 0, 2) == 0 ? draw(rng, 1, 64) : 1;
    std::vector<int> owners(static_cast<size_t>(experts * width), 0);
    for (int64_t e = 0; e < ep; ++e) {
      const Interval mine = dealt(experts, ep, e);
      ASSERT_FALSE(mine.empty());  // ep <= experts
      for (int64_t s = 0; s < shards; ++s) {
        const Interval shard =
            shifted(chunk_of(mine.size() * width, shards, s, align), mine.begin * width);
        for (int64_t i = shard.begin; i < shard.end; ++i) ++owners.at(static_cast<size_t>(i));
      }
    }
    for (const int count : owners) ASSERT_EQ(count, 1);
  }
}

}  // namespace
}  // namespace lapidary
