#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "lapidary/core/error.h"
#include "lapidary/nn/attention.h"
#include "tests/support/tensors.h"

namespace lapidary::nn {
namespace {

using ::testing::ElementsAre;

// Two rows of tokens with one head of one channel: token i of row b is 100 b + i.
class Cache : public ::testing::Test {
 protected:
  KeyValues append(KeyValueCache& cache, int64_t first, int64_t count) {
    const OwnedTensor k = test::zeros(Dtype::f32, {2, count, 1, 1});
    const OwnedTensor v = test::zeros(Dtype::f32, {2, count, 1, 1});
    for (int64_t b = 0; b < 2; ++b) {
      for (int64_t s = 0; s < count; ++s) {
        const auto value = static_cast<double>(100 * b + first + s);
        test::set(k.get(), b * count + s, value);
        test::set(v.get(), b * count + s, -value);
      }
    }
    Context ctx;
    cache.make_room(ctx, count);
    return cache.append(ctx, {k.get(), v.get()});
  }
  static std::vector<double> row(const Tensor& t, int64_t b) {
    return test::values(t.slice(0, b, 1));
  }
};

TEST_F(Cache, ReturnsOldAndNewTokensOfEveryRow) {
  KeyValueCache cache(Backend::cpu, Dtype::f32, {2, 6, 1, 1}, 6);
  append(cache, 0, 3);
  const KeyValues kv = append(cache, 3, 2);
  EXPECT_THAT(row(kv.k, 0), ElementsAre(0, 1, 2, 3, 4));
  EXPECT_THAT(row(kv.k, 1), ElementsAre(100, 101, 102, 103, 104));
  EXPECT_THAT(row(kv.v, 1), ElementsAre(-100, -101, -102, -103, -104));
  EXPECT_EQ(cache.first(), 0);
}

TEST_F(Cache, ForgetsOnlyWhenRoomIsShortAndNeverWhatMustBeKept) {
  KeyValueCache cache(Backend::cpu, Dtype::f32, {2, 6, 1, 1}, 3);
  append(cache, 0, 5);
  EXPECT_EQ(cache.first(), 0);
  EXPECT_THAT(row(append(cache, 5, 1).k, 0), ElementsAre(0, 1, 2, 3, 4, 5));
  const KeyValues kv = append(cache, 6, 1);
  EXPECT_EQ(cache.first(), 3);
  EXPECT_THAT(row(kv.k, 0), ElementsAre(3, 4, 5, 6));
  EXPECT_THAT(row(kv.v, 1), ElementsAre(-103, -104, -105, -106));
}

TEST_F(Cache, AStepLongerThanTheWindowFits) {
  KeyValueCache cache(Backend::cpu, Dtype::f32, {2, 8, 1, 1}, 2);
  append(cache, 0, 8);
  const KeyValues kv = append(cache, 8, 6);
  EXPECT_EQ(cache.first(), 6);
  EXPECT_THAT(row(kv.k, 1), ElementsAre(106, 107, 108, 109, 110, 111, 112, 113));
}

TEST_F(Cache, NothingIsKeptWithAWindowOfOne) {
  KeyValueCache cache(Backend::cpu, Dtype::f32, {2, 2, 1, 1}, 0);
  append(cache, 0, 2);
  const KeyValues kv = append(cache, 2, 1);
  EXPECT_EQ(cache.first(), 2);
  EXPECT_THAT(row(kv.k, 0), ElementsAre(2));
}

TEST_F(Cache, TooManyTokensAreAnError) {
  KeyValueCache cache(Backend::cpu, Dtype::f32, {2, 6, 1, 1}, 6);
  append(cache, 0, 5);
  EXPECT_THROW(append(cache, 5, 2), Error);
  append(cache, 5, 1);
}

}  // namespace
}  // namespace lapidary::nn
