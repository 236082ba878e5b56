// Ranks, as threads, that write their parts of the same tensors.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <mutex>
#include <numeric>

#include "lapidary/checkpoint/agreement.h"
#include "lapidary/checkpoint/hf.h"
#include "lapidary/core/error.h"
#include "lapidary/core/rng.h"
#include "tests/support/tensors.h"
#include "tests/support/thread_group.h"
#include "tests/unit/checkpoint/temporary_directory.h"

namespace lapidary {
namespace {

using lapidary::testing::read_bytes;
using lapidary::testing::TemporaryDirectory;
using ::testing::AllOf;
using ::testing::Each;
using ::testing::HasSubstr;
using ::testing::StartsWith;

// n elements cut into `parts` intervals at random places, some of them empty, in random order.
std::vector<Interval> random_cuts(Rng& rng, int64_t n, int64_t parts) {
  std::vector<int64_t> cuts = {0, n};
  while (static_cast<int64_t>(cuts.size()) < parts + 1) cuts.push_back(rng.below(n + 1));
  std::sort(cuts.begin(), cuts.end());
  std::vector<Interval> out;
  for (size_t i = 0; i + 1 < cuts.size(); ++i) out.push_back({cuts[i], cuts[i + 1]});
  for (size_t i = out.size(); i > 1; --i)
    std::swap(out[i - 1], out[static_cast<size_t>(rng.below(static_cast<int64_t>(i)))]);
  return out;
}

struct Whole {
  std::string name;
  OwnedTensor value;
  Dtype target = Dtype::f32;
  std::vector<Interval> parts;  // of each rank
};

std::vector<Whole> random_tensors(Rng& rng, int64_t ranks) {
  const Dtype floats[] = {Dtype::f64, Dtype::f32, Dtype::bf16, Dtype::f16};
  std::vector<Whole> out;
  for (int i = 0; i < 7; ++i) {
    Whole w;
    w.name = "t" + std::to_string(i);
    w.target = floats[rng.below(4)];
    const Shape shape = {1 + rng.below(9), rng.below(8), 1 + rng.below(30)};  // some are empty
    w.value = test::random(floats[rng.below(2)], shape, rng);
    w.parts = random_cuts(rng, shape.numel(), ranks);
    out.push_back(std::move(w));
  }
  return out;
}

// Every second tensor through `fill`, the others through `data`.
std::vector<TensorSource> sources(const std::vector<Whole>& tensors, size_t rank) {
  std::vector<TensorSource> out;
  for (const Whole& w : tensors) {
    const Dtype dtype = w.value->dtype();
    const char* data = static_cast<const char*>(w.value->data());
    const Interval part = w.parts[rank];
    TensorSource s{.name = w.name, .shape = w.value->shape(), .dtype = dtype, .target = w.target};
    s.part = part;
    if (out.size() % 2 == 0) {
      s.data = data + part.begin * size_of(dtype);
    } else {
      s.fill = [=](int64_t first, int64_t count, void* to) {
        EXPECT_GE(first, part.begin);
        EXPECT_LE(first + count, part.end);
        std::memcpy(to, data + first * size_of(dtype), static_cast<size_t>(count * size_of(dtype)));
      };
    }
    out.push_back(std::move(s));
  }
  return out;
}

// The same files as one rank writes, byte for byte, whatever the cuts; then read on M ranks.
TEST(Parts, RanksWriteTheFilesOfOne) {
  Rng rng(5);
  for (int64_t ranks = 1; ranks <= 8; ++ranks) {
    const TemporaryDirectory dir;
    const std::vector<Whole> tensors = random_tensors(rng, ranks);
    std::vector<TensorSource> whole;
    for (const Whole& w : tensors)
      whole.push_back({.name = w.name,
                       .shape = w.value->shape(),
                       .dtype = w.value->dtype(),
                       .target = w.target,
                       .data = w.value->data()});
    const HfWriteOptions options{.max_shard_bytes = 1 + rng.below(4000),
                                 .files = {{"config.json", "{}"}}};
    write_hf_model(dir / "one", whole, options);
    EXPECT_THAT(test::errors_of_ranks(ranks,
                                      [&](int64_t rank, ProcessGroup& group) {
                                        write_hf_model(dir / "many",
                                                       sources(tensors, static_cast<size_t>(rank)),
                                                       options, group);
                                      }),
                Each(""));
    int files = 0;
    for (const auto& entry : std::filesystem::directory_iterator(dir / "one")) {
      ++files;
      const std::string name = entry.path().filename().string();
      EXPECT_EQ(read_bytes(dir / "many/" + name), read_bytes(entry.path().string())) << name;
    }
    EXPECT_EQ(std::distance(std::filesystem::directory_iterator(dir / "many"), {}), files);
    EXPECT_EQ(dir.count(), 2U);

    const int64_t readers = 1 + rng.below(8);
    const HfReader reader(dir / "many");
    for (const Whole& w : tensors) {
      const OwnedTensor expected = test::cast(w.value.get(), w.target);
      const OwnedTensor got(Backend::cpu, w.target, w.value->shape());
      const int64_t n = got->numel();
      for (const Interval& part : random_cuts(rng, n, readers))
        convert_range(reader.at(w.name), part.begin,
                      got->view({n}).slice(0, part.begin, part.size()));
      EXPECT_TRUE(test::same_bits(got.get(), expected.get())) << w.name;
    }
  }
}

std::vector<TensorSource> two_tensors(const Interval& first, const Interval& second) {
  static const std::vector<float> values(100, 1.0F);
  return {{.name = "a", .shape = {10, 5}, .data = values.data(), .part = first},
          {.name = "b", .shape = {30}, .data = values.data(), .part = second}};
}

TEST(Parts, GapsAndOverlapsAreFoundBeforeAnythingIsWritten) {
  const TemporaryDirectory dir;
  const auto write = [&](const std::vector<Interval>& a, const std::vector<Interval>& b) {
    return test::errors_of_ranks(3, [&](int64_t rank, ProcessGroup& group) {
      const auto r = static_cast<size_t>(rank);
      write_hf_model(dir / "out", two_tensors(a[r], b[r]), {}, group);
    });
  };
  const std::vector<Interval> good_a = {{20, 50}, {0, 0}, {0, 20}}, good_b = {{0, 30}, {}, {7, 7}};
  EXPECT_THAT(write({{0, 20}, {21, 30}, {30, 50}}, good_b),
              Each(HasSubstr("\"a\": its elements 20 to 21 are written by no rank")));
  EXPECT_THAT(write(good_a, {{0, 10}, {10, 20}, {20, 29}}),
              Each(HasSubstr("\"b\": its elements 29 to 30 are written by no rank")));
  EXPECT_THAT(write({{0, 20}, {10, 15}, {20, 50}}, {{}, {}, {}}),
              Each(AllOf(HasSubstr("\"a\": its elements 10 to 15 are written by rank 0 and by rank "
                                   "1"),
                         HasSubstr("\"b\": its elements 0 to 30 are written by no rank"))));
  const auto outside = write({{0, 20}, {20, 51}, {}}, good_b);
  EXPECT_THAT(outside[1], HasSubstr("\"a\": has no elements 20 to 51"));
  EXPECT_THAT(outside[0], HasSubstr("rank 1: "));
  EXPECT_EQ(dir.count(), 0U);
  EXPECT_THAT(write(good_a, good_b), Each(""));
  EXPECT_EQ(dir.count(), 1U);
}

TEST(Parts, RanksMustGiveTheSameTensors) {
  const TemporaryDirectory dir;
  const auto write = [&](const std::function<void(std::vector<TensorSource>&)>& change) {
    return test::errors_of_ranks(2, [&](int64_t rank, ProcessGroup& group) {
      const Interval none = {};
      auto tensors = rank == 0 ? two_tensors({0, 50}, {0, 30}) : two_tensors(none, none);
      if (rank == 1) change(tensors);
      write_hf_model(dir / "out", tensors, {}, group);
    });
  };
  using Sources = std::vector<TensorSource>;
  for (const std::function<void(Sources&)>& change : std::vector<std::function<void(Sources&)>>{
           [](Sources& t) { t[0].name = "c"; },
           [](Sources& t) {
             t[0].shape = {5, 10};
           },
           [](Sources& t) { t[1].target = Dtype::bf16; }, [](Sources& t) { t.pop_back(); },
           [](Sources& t) { std::swap(t[0], t[1]); }})
    EXPECT_THAT(write(change), Each(HasSubstr("rank 1 gives other tensors")));
  EXPECT_EQ(dir.count(), 0U);
}

TEST(Parts, NothingIsPublishedWhenARankFails) {
  const TemporaryDirectory dir;
  write_hf_model(dir / "out", {two_tensors({0, 50}, {})[0]});
  const std::string before = read_bytes(dir / "out/model.safetensors");
  for (int64_t failing = 0; failing < 4; ++failing) {
    const auto said = test::errors_of_ranks(4, [&](int64_t rank, ProcessGroup& group) {
      TensorSource source{
          .name = "x", .shape = {400}, .part = Interval{100 * rank, 100 * rank + 100}};
      source.fill = [&](int64_t, int64_t count, void* out) {
        if (rank == failing) throw Error("here", "no more");
        std::memset(out, 0, static_cast<size_t>(count) * 4);
      };
      write_hf_model(dir / "out", {source}, {.overwrite = true}, group);
    });
    for (int64_t rank = 0; rank < 4; ++rank) {
      const std::string& words = said[static_cast<size_t>(rank)];
      const std::string other = ": rank " + std::to_string(failing) + ": here: no more";
      EXPECT_THAT(words, rank == failing ? ::testing::Matcher<std::string>(StartsWith("here: no"))
                                         : HasSubstr(other));
    }
    EXPECT_EQ(read_bytes(dir / "out/model.safetensors"), before);
    EXPECT_EQ(dir.count(), 1U);
  }
}

TEST(Parts, WhatTheFirstRankCannotMakeEndsAll) {
  const TemporaryDirectory dir;
  const auto write = [&](const std::string& path, const HfWriteOptions& options) {
    return test::errors_of_ranks(3, [&](int64_t rank, ProcessGroup& group) {
      const Interval a = part_of_first_rank(50, group), b = chunk_of(30, 3, rank);
      write_hf_model(path, two_tensors(a, b), options, group);
    });
  };
  EXPECT_THAT(write(dir / "out", {}), Each(""));
  EXPECT_THAT(write(dir / "out", {}), Each(HasSubstr("exists already")));
  EXPECT_THAT(write(dir / "other", {.tokenizer_source = dir / "none"}),
              Each(HasSubstr("is not a directory")));
  EXPECT_EQ(dir.count(), 1U);
}

// A rank asks for its own part alone, in pieces of bounded size.
TEST(Parts, ARankHoldsOnePieceAtATime) {
  const TemporaryDirectory dir;
  const int64_t n = 5 * kFillElements + 17, ranks = 2;
  std::mutex mutex;
  std::vector<std::vector<Interval>> asked(2);
  EXPECT_THAT(test::errors_of_ranks(
                  ranks,
                  [&](int64_t rank, ProcessGroup& group) {
                    TensorSource source{.name = "x", .shape = {n}, .target = Dtype::bf16};
                    source.part = chunk_of(n, ranks, rank);
                    source.fill = [&](int64_t first, int64_t count, void* out) {
                      const std::lock_guard lock(mutex);
                      asked[static_cast<size_t>(rank)].push_back({first, first + count});
                      for (int64_t i = 0; i < count; ++i)
                        static_cast<float*>(out)[i] = static_cast<float>((first + i) % 251);
                    };
                    write_hf_model(dir / "out", {source}, {}, group);
                  }),
              Each(""));
  for (int64_t rank = 0; rank < ranks; ++rank) {
    const Interval part = chunk_of(n, ranks, rank);
    int64_t at = part.begin;
    for (const Interval& piece : asked[static_cast<size_t>(rank)]) {
      EXPECT_EQ(piece.begin, at);
      EXPECT_LE(piece.size(), kFillElements);
      at = piece.end;
    }
    EXPECT_EQ(at, part.end);
  }
  std::vector<float> back(static_cast<size_t>(n));
  convert(HfReader(dir / "out").at("x"), Tensor(back.data(), Dtype::f32, {n}));
  for (int64_t i = 0; i < n; ++i)
    ASSERT_EQ(back[static_cast<size_t>(i)], static_cast<float>(i % 251));
}

TEST(Agreement, EveryRankLearnsOfTheFirstFailure) {
  const auto said = test::errors_of_ranks(4, [](int64_t rank, ProcessGroup& group) {
    together(group, "work", [] {});
    EXPECT_EQ(broadcast_text(group, rank == 2 ? "from two" : "mine", 2), "from two");
    EXPECT_EQ(broadcast_text(group, rank == 0 ? "" : "mine"), "");
    together(group, "work", [&] {
      if (rank == 1) fail("one", "is tired");
      if (rank == 3) throw std::runtime_error("three");
    });
  });
  EXPECT_EQ(said[0], "work: rank 1: one: is tired");
  EXPECT_EQ(said[1], "one: is tired");
  EXPECT_EQ(said[2], said[0]);
  EXPECT_EQ(said[3], "three");
}

}  // namespace
}  // namespace lapidary
