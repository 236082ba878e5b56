#include "lapidary/data/loader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <stdexcept>

#include "tests/unit/data/tokenizer_fixture.h"

namespace lapidary {
namespace {

using testing::error_of;
using ::testing::HasSubstr;

// Samples of two tokens, both of them the sample's number.
BatchMaker numbered(int64_t count) {
  auto samples = std::make_shared<std::vector<Sample>>();
  for (int64_t i = 0; i < count; ++i) samples->push_back({{i, i}, {i, i}, {}, {}});
  return collate_from(samples, {});
}

std::vector<int64_t> numbers_of(const Batch& batch) {
  std::vector<int64_t> numbers;
  for (int64_t row = 0; row < batch.rows; ++row) {
    numbers.push_back(batch.input_ids[static_cast<size_t>(row * batch.cols)]);
  }
  return numbers;
}

// The micro-batches of one epoch; those without targets are empty.
std::vector<std::vector<int64_t>> epoch(DataLoader& loader) {
  std::vector<std::vector<int64_t>> batches;
  while (std::optional<Batch> batch = loader.next()) {
    batches.push_back(batch->num_label_tokens > 0 ? numbers_of(*batch) : std::vector<int64_t>{});
  }
  return batches;
}

std::vector<int64_t> flat_sorted(const std::vector<std::vector<int64_t>>& batches) {
  std::vector<int64_t> all;
  for (const auto& batch : batches) all.insert(all.end(), batch.begin(), batch.end());
  std::sort(all.begin(), all.end());
  return all;
}

std::vector<int64_t> range(int64_t count) {
  std::vector<int64_t> all;
  for (int64_t i = 0; i < count; ++i) all.push_back(i);
  return all;
}

TEST(LoaderTest, EveryEpochIsAnotherOrderOfAllSamples) {
  DataLoader loader(10, numbered(10), {.batch_size = 3, .seed = 1});
  const auto first = epoch(loader);
  const auto second = epoch(loader);
  EXPECT_EQ(first.size(), 4U);
  EXPECT_EQ(first.back().size(), 1U);
  EXPECT_EQ(flat_sorted(first), range(10));
  EXPECT_EQ(flat_sorted(second), range(10));
  EXPECT_NE(first, second);
  DataLoader again(10, numbered(10), {.batch_size = 3, .seed = 1, .prefetch = 7});
  EXPECT_EQ(epoch(again), first);
  EXPECT_EQ(epoch(again), second);
  DataLoader other(10, numbered(10), {.batch_size = 3, .seed = 2});
  EXPECT_NE(epoch(other), first);
}

TEST(LoaderTest, InOrderWithoutShuffle) {
  DataLoader loader(5, numbered(5), {.batch_size = 2, .shuffle = false});
  const std::vector<std::vector<int64_t>> want = {{0, 1}, {2, 3}, {4}};
  EXPECT_EQ(epoch(loader), want);
  EXPECT_EQ(epoch(loader), want);
}

TEST(LoaderTest, DropLast) {
  DataLoader loader(11, numbered(11), {.batch_size = 2, .drop_last = true});
  EXPECT_EQ(loader.batches_in_epoch(), 5);
  EXPECT_EQ(loader.dropped_per_epoch(), 1);
  EXPECT_EQ(epoch(loader).size(), 5U);
  DataLoader ranks(11, numbered(11), {.batch_size = 2, .drop_last = true, .rank = 1, .world = 2});
  EXPECT_EQ(ranks.batches_in_epoch(), 5);
  EXPECT_EQ(ranks.dropped_per_epoch(), 1);
  EXPECT_EQ(epoch(ranks).size(), 3U);
}

TEST(LoaderTest, RanksShareOneOrder) {
  DataLoader alone(17, numbered(17), {.batch_size = 2, .seed = 4});
  const auto want = epoch(alone);
  ASSERT_EQ(want.size(), 9U);
  for (const int64_t world : {2, 3, 4}) {
    for (int64_t rank = 0; rank < world; ++rank) {
      DataLoader loader(17, numbered(17),
                        {.batch_size = 2, .seed = 4, .rank = rank, .world = world});
      const auto mine = epoch(loader);
      ASSERT_EQ(static_cast<int64_t>(mine.size()), loader.steps_in_epoch());
      for (size_t step = 0; step < mine.size(); ++step) {
        const size_t global = step * static_cast<size_t>(world) + static_cast<size_t>(rank);
        EXPECT_EQ(mine[step], global < want.size() ? want[global] : std::vector<int64_t>{});
      }
    }
  }
}

struct Steps {
  std::vector<std::vector<int64_t>> samples;  // of each optimiser step, in their order
  int64_t label_tokens = 0;
};

// One epoch of ranks that accumulate so many micro-batches each.
Steps steps_of(int64_t count, LoaderOptions options, int64_t accumulation) {
  std::vector<std::vector<Batch>> taken;  // by rank
  for (options.rank = 0; options.rank < options.world; ++options.rank) {
    DataLoader loader(count, numbered(count), options);
    std::vector<Batch>& mine = taken.emplace_back();
    while (std::optional<Batch> batch = loader.next()) mine.push_back(std::move(*batch));
    EXPECT_EQ(static_cast<int64_t>(mine.size()), loader.steps_in_epoch());
  }
  Steps out;
  const int64_t turns = static_cast<int64_t>(taken.front().size());
  for (int64_t turn = 0; turn < turns; ++turn) {
    if (turn % accumulation == 0) out.samples.emplace_back();
    for (const std::vector<Batch>& rank : taken) {
      const Batch& batch = rank.at(static_cast<size_t>(turn));
      if (batch.num_label_tokens == 0) continue;
      const std::vector<int64_t> numbers = numbers_of(batch);
      out.samples.back().insert(out.samples.back().end(), numbers.begin(), numbers.end());
      out.label_tokens += batch.num_label_tokens;
    }
  }
  return out;
}

// Whatever the ranks, a step of the same number of samples has the same samples.
TEST(LoaderTest, AnyRanksTakeTheSameSteps) {
  for (const int64_t count : {1, 5, 12, 17, 24}) {
    for (const int64_t batch_size : {1, 2, 3}) {
      for (const bool drop_last : {false, true}) {
        if (drop_last && count < batch_size) continue;
        for (const int64_t micro_batches : {1, 2, 4, 6, 12}) {
          LoaderOptions options{.batch_size = batch_size, .seed = 5, .drop_last = drop_last};
          const Steps alone = steps_of(count, options, micro_batches);
          for (const int64_t world : {2, 3, 4, 6}) {
            if (micro_batches % world != 0) continue;
            options.world = world;
            const Steps ranks = steps_of(count, options, micro_batches / world);
            EXPECT_EQ(ranks.samples, alone.samples)
                << count << " samples, " << batch_size << " in a micro-batch, " << world
                << " ranks, " << micro_batches << " micro-batches a step, drop_last " << drop_last;
            EXPECT_EQ(ranks.label_tokens, alone.label_tokens);
          }
        }
      }
    }
  }
}

TEST(LoaderTest, ResumesAnywhere) {
  DataLoader loader(10, numbered(10), {.batch_size = 2, .seed = 9});
  std::vector<LoaderState> states;
  std::vector<std::optional<std::vector<int64_t>>> results;
  for (int i = 0; i < 14; ++i) {
    states.push_back(loader.state());
    const std::optional<Batch> batch = loader.next();
    results.push_back(batch ? std::optional(numbers_of(*batch)) : std::nullopt);
  }
  for (size_t start = 0; start < states.size(); ++start) {
    loader.seek(states[start]);
    for (size_t i = start; i < states.size(); ++i) {
      const std::optional<Batch> batch = loader.next();
      EXPECT_EQ(batch ? std::optional(numbers_of(*batch)) : std::nullopt, results[i]);
    }
  }
}

TEST(LoaderTest, ResumesOnAnotherNumberOfRanks) {
  DataLoader alone(12, numbered(12), {.batch_size = 1, .seed = 9});
  const auto want = epoch(alone);
  for (int64_t rank = 0; rank < 3; ++rank) {
    DataLoader loader(12, numbered(12), {.batch_size = 1, .seed = 9, .rank = rank, .world = 3});
    loader.seek({0, 4});  // after two steps of two ranks
    const auto rest = epoch(loader);
    ASSERT_EQ(rest.size(), 3U);
    for (size_t step = 0; step < rest.size(); ++step) {
      const size_t global = 4 + step * 3 + static_cast<size_t>(rank);
      EXPECT_EQ(rest[step], global < want.size() ? want[global] : std::vector<int64_t>{});
    }
  }
}

TEST(LoaderTest, ExceptionsSurfaceWhenDue) {
  const auto maker = [](std::span<const int64_t> indices) -> Batch {
    if (indices[0] == 2) throw std::runtime_error("bad sample");
    Batch batch;
    batch.rows = indices[0];
    return batch;
  };
  DataLoader loader(5, maker, {.shuffle = false});
  EXPECT_EQ(loader.next()->rows, 0);
  EXPECT_EQ(loader.next()->rows, 1);
  EXPECT_THROW(loader.next(), std::runtime_error);
  EXPECT_THROW(loader.next(), std::runtime_error);
  EXPECT_EQ(loader.state().position, 2);
  loader.seek({0, 3});
  EXPECT_EQ(loader.next()->rows, 3);
}

TEST(LoaderTest, WorksAheadButNotFar) {
  std::atomic<int> made = 0;
  const auto maker = [&](std::span<const int64_t>) {
    ++made;
    return Batch{};
  };
  DataLoader loader(1000, maker, {.prefetch = 3});
  loader.next();
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  EXPECT_LE(made, 5);  // one taken, three in the queue, one in hand
}

TEST(LoaderTest, ShutsDownAtAnyMoment) {
  for (int i = 0; i < 200; ++i) {
    DataLoader loader(100, numbered(100), {.batch_size = 1, .prefetch = 1 + i % 3});
    for (int k = 0; k < i % 5; ++k) loader.next();
  }
}

TEST(LoaderTest, Mistakes) {
  const auto error = [](int64_t count, const LoaderOptions& options) {
    return error_of([&] { DataLoader loader(count, numbered(1), options); });
  };
  EXPECT_THAT(error(0, {}), HasSubstr("the number of samples can't be 0"));
  EXPECT_THAT(error(1, {.batch_size = 0}), HasSubstr("batch_size can't be 0"));
  EXPECT_THAT(error(1, {.rank = 1}), HasSubstr("rank can't be 1"));
  EXPECT_THAT(error(1, {.prefetch = 0}), HasSubstr("prefetch can't be 0"));
  EXPECT_THAT(error(3, {.batch_size = 4, .drop_last = true}), HasSubstr("fill no micro-batch"));
  DataLoader loader(3, numbered(3), {});
  EXPECT_THAT(error_of([&] { loader.seek({0, 4}); }), HasSubstr("is not in an epoch of 3"));
}

}  // namespace
}  // namespace lapidary
