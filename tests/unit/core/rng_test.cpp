#include "lapidary/core/rng.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>
#include <vector>

namespace lapidary {
namespace {

// Published known answers of Philox4x32-10: its first and second output words.
TEST(Rng, KnownAnswers) {
  EXPECT_EQ(Rng(0, 0).bits(), 0x6627e8d5e169c58dU);
  // Key and the upper half of the counter of the third published vector (digits of pi).
  Rng pi(0x299f31d0a4093822U, 0x0370734413198a2eU);
  EXPECT_EQ(pi.bits(), 0xb60a410e61bd7780U);
  EXPECT_EQ(pi.bits(), 0x314ddb4b0ab83527U);
  EXPECT_EQ(pi.bits(), 0x84c5a1a302e1503dU);
  EXPECT_EQ(pi.counter(), 3U);
}

TEST(Rng, SameSeedAndStreamSameNumbers) {
  Rng a(7, 3), b(7, 3);
  for (int i = 0; i < 100; ++i) EXPECT_EQ(a.bits(), b.bits());
}

// A stream's numbers depend on nothing that other streams do.
TEST(Rng, StreamsAreIndependentOfOrder) {
  std::vector<uint64_t> alone;
  Rng first(11, 1), second(11, 2);
  for (int i = 0; i < 50; ++i) alone.push_back(second.bits());
  Rng again(11, 2);
  for (int i = 0; i < 50; ++i) {
    first.bits();
    EXPECT_EQ(again.bits(), alone[static_cast<size_t>(i)]);
    first.bits();
  }
}

TEST(Rng, SeedsStreamsAndCountersAllMatter) {
  std::set<uint64_t> seen;
  for (uint64_t seed = 0; seed < 8; ++seed) {
    for (uint64_t stream = 0; stream < 8; ++stream) {
      Rng rng(seed << 32 | seed, stream << 32);
      for (int i = 0; i < 8; ++i) seen.insert(rng.bits());
    }
  }
  EXPECT_EQ(seen.size(), 512U);
}

// Mean and variance within five standard errors of the theory.
TEST(Rng, UniformMoments) {
  Rng rng(1);
  const int n = 200000;
  double sum = 0.0, square = 0.0;
  for (int i = 0; i < n; ++i) {
    const double u = rng.uniform();
    ASSERT_GE(u, 0.0);
    ASSERT_LT(u, 1.0);
    sum += u;
    square += u * u;
  }
  EXPECT_NEAR(sum / n, 0.5, 5 * std::sqrt(1.0 / 12 / n));
  EXPECT_NEAR(square / n, 1.0 / 3, 5 * std::sqrt(4.0 / 45 / n));
}

TEST(Rng, NormalMoments) {
  Rng rng(2);
  const int n = 200000;
  double m[5] = {};
  for (int i = 0; i < n; ++i) {
    const double x = rng.normal();
    ASSERT_TRUE(std::isfinite(x));
    for (int k = 1; k < 5; ++k) m[k] += std::pow(x, k) / n;
  }
  // Variances of x, x^2, x^3, x^4 are 1, 2, 15, 96.
  EXPECT_NEAR(m[1], 0.0, 5 * std::sqrt(1.0 / n));
  EXPECT_NEAR(m[2], 1.0, 5 * std::sqrt(2.0 / n));
  EXPECT_NEAR(m[3], 0.0, 5 * std::sqrt(15.0 / n));
  EXPECT_NEAR(m[4], 3.0, 5 * std::sqrt(96.0 / n));
}

TEST(Rng, BelowIsUniform) {
  for (const int64_t n : {1, 2, 3, 7, 10}) {
    Rng rng(3, static_cast<uint64_t>(n));
    const int draws = 20000;
    std::vector<int> count(static_cast<size_t>(n));
    for (int i = 0; i < draws; ++i) {
      const int64_t k = rng.below(n);
      ASSERT_GE(k, 0);
      ASSERT_LT(k, n);
      ++count[static_cast<size_t>(k)];
    }
    const double p = 1.0 / static_cast<double>(n);
    for (const int c : count) {
      EXPECT_NEAR(c, draws * p, 5 * std::sqrt(draws * p * (1 - p)) + 1e-9);
    }
  }
}

// A range that fits 2.67 times into 64 bits: a plain remainder would favour its lower two thirds.
TEST(Rng, BelowIsUniformOverHugeRanges) {
  const int64_t n = int64_t{3} << 61;
  Rng rng(4);
  const int draws = 20000;
  int low = 0;
  for (int i = 0; i < draws; ++i) {
    const int64_t k = rng.below(n);
    ASSERT_GE(k, 0);
    ASSERT_LT(k, n);
    if (k < n / 3 * 2) ++low;
  }
  EXPECT_NEAR(low, draws * 2.0 / 3, 5 * std::sqrt(draws * 2.0 / 9));
}

// Published values of 64-bit FNV-1a.
TEST(Rng, StreamsOfNames) {
  EXPECT_EQ(stream_of(""), 0xcbf29ce484222325U);
  EXPECT_EQ(stream_of("a"), 0xaf63dc4c8601ec8cU);
  EXPECT_EQ(stream_of("foobar"), 0x85944171f73967e8U);
}

}  // namespace
}  // namespace lapidary
