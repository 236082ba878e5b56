#include "lapidary/checkpoint/state.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <nlohmann/json.hpp>

#include "lapidary/checkpoint/hf.h"
#include "lapidary/core/error.h"
#include "lapidary/core/rng.h"
#include "tests/support/tensors.h"
#include "tests/support/thread_group.h"
#include "tests/unit/checkpoint/temporary_directory.h"

namespace lapidary {
namespace {

using lapidary::testing::TemporaryDirectory;
using ::testing::AllOf;
using ::testing::HasSubstr;

std::string error_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

const TrainingState kState = {.step = 12,
                              .epoch = 2,
                              .position = 7,
                              .optimizer_steps = 12,
                              .total_steps = 40,
                              .schedule_steps = 39,
                              .seed = -3,
                              .micro_batch_size = 2,
                              .global_batch_size = 8,
                              .samples = 15};

TEST(TrainingState, ComesBack) {
  EXPECT_EQ(parse_training_state(to_json(kState), "s"), kState);
  EXPECT_EQ(parse_training_state(to_json({}), "s"), TrainingState());
  TrainingState last = kState;
  last.position = 8;  // 15 samples are 8 micro-batches of 2
  EXPECT_EQ(parse_training_state(to_json(last), "s"), last);
}

// Every key: missing, of another type, out of range.
TEST(TrainingState, RefusesWhatItDidNotWrite) {
  const auto good = nlohmann::json::parse(to_json(kState));
  const auto refusal = [](const nlohmann::json& json) {
    return error_of([&] { parse_training_state(json.dump(), "s.json"); });
  };
  EXPECT_EQ(refusal(good), "no error");
  for (const auto& [key, value] : good.items()) {
    nlohmann::json bad = good;
    bad.erase(key);
    EXPECT_THAT(refusal(bad), HasSubstr(key == "version" ? "version 1" : "is missing")) << key;
    for (const char* other : {"null", "\"7\"", "7.0", "1e3", "[7]", "{}", "true",
                              "18446744073709551615", "99999999999999999999999"}) {
      bad[key] = nlohmann::json::parse(other);
      EXPECT_THAT(refusal(bad), HasSubstr("s.json")) << key << " " << other;
    }
    if (key == "seed") continue;
    bad[key] = -1;
    EXPECT_THAT(refusal(bad), HasSubstr("s.json")) << key;
    bad[key] = (int64_t{1} << 48) + 1;
    EXPECT_THAT(refusal(bad), HasSubstr("s.json")) << key;
  }
  nlohmann::json bad = good;
  bad["step"] = 41;
  bad["position"] = 9;
  EXPECT_THAT(refusal(bad), AllOf(HasSubstr("step 41 of 40"), HasSubstr("position 9 in")));
  bad = good;
  bad["more"] = 1;
  EXPECT_THAT(refusal(bad), HasSubstr("\"more\" is an unknown key"));
  for (const char* text : {"", "[]", "7", "{}", "{\"version\":2}", "{\"version\":1,\"version\":1}"})
    EXPECT_THROW(parse_training_state(text, "s"), Error) << text;
}

// Bytes changed, cut off and doubled at random: an Error or a state inside the bounds, never more.
TEST(TrainingState, SurvivesDamage) {
  Rng rng(11);
  const std::string good = to_json(kState);
  int refused = 0;
  for (int round = 0; round < 3000; ++round) {
    std::string text = good;
    const auto at = static_cast<size_t>(rng.below(static_cast<int64_t>(text.size())));
    switch (rng.below(3)) {
      case 0: text[at] = static_cast<char>(rng.below(256)); break;
      case 1: text.resize(at); break;
      default: text.insert(at, text.substr(at, static_cast<size_t>(rng.below(20))));
    }
    try {
      const TrainingState s = parse_training_state(text, "s");
      EXPECT_TRUE(s.step >= 0 && s.step <= s.total_steps && s.micro_batch_size > 0);
      EXPECT_LE(s.position, s.samples);
    } catch (const Error&) {
      ++refused;
    }
  }
  EXPECT_GT(refused, 1000);
}

TEST(TrainingState, OtherDataAreRefused) {
  TrainingState longer = kState;
  longer.total_steps = 400;
  longer.schedule_steps = 400;
  require_same_data(kState, longer, "here");
  TrainingState other = kState;
  other.seed = 1;
  other.samples = 16;
  EXPECT_THAT(error_of([&] { require_same_data(kState, other, "here"); }),
              AllOf(HasSubstr("seed -3, the run has 1"), HasSubstr("samples of 15")));
}

struct Memory {
  std::vector<OwnedTensor> owned;
  std::vector<StateTensor> state;
};

// Rank r of n: a dense tensor of floats, codes, scales, and one that two ranks have alike.
Memory memory_of(int64_t rank, int64_t ranks, bool filled) {
  Memory m;
  const Shape shapes[] = {{7, 11}, {600}, {3}, {40}};
  const Dtype dtypes[] = {Dtype::f32, Dtype::u8, Dtype::f32, Dtype::bf16};
  const char* names[] = {"w.exp_avg", "w.codes", "w.scale", "copies"};
  for (size_t i = 0; i < 4; ++i) {
    const int64_t n = shapes[i].numel(), replicas = i == 3 && ranks % 2 == 0 ? 2 : 1;
    const Interval part = chunk_of(n, ranks / replicas, rank / replicas);
    m.owned.emplace_back(Backend::cpu, dtypes[i], Shape{part.size()});
    char* bytes = static_cast<char*>(m.owned.back()->data());
    const int64_t width = size_of(dtypes[i]);
    // Any bits, NaN too: they come back as they are.
    for (int64_t b = 0; filled && b < part.size() * width; ++b) {
      const int64_t whole = part.begin * width + b;
      bytes[b] = static_cast<char>(Rng(3, i, static_cast<uint64_t>(whole)).bits() & 0xffU);
    }
    m.state.push_back({.name = names[i],
                       .shape = shapes[i],
                       .part = part,
                       .writes = rank % replicas == 0,
                       .value = m.owned.back().get()});
  }
  return m;
}

TEST(StateTensors, AreReadOnAnotherNumberOfRanks) {
  for (const int64_t writers : {1, 2, 3, 8}) {
    const TemporaryDirectory dir;
    test::run_ranks(writers, [&](int64_t rank, const SplitWorld& split) {
      const std::unique_ptr<ProcessGroup> group = split(0, "all");
      const Memory m = memory_of(rank, writers, true);
      write_state_tensors(dir / "optim", m.state, *group);
    });
    EXPECT_TRUE(std::filesystem::exists(dir / "optim/optimizer.safetensors"));
    for (const int64_t readers : {1, 2, 5}) {
      for (int64_t rank = 0; rank < readers; ++rank) {
        const Memory expected = memory_of(rank, readers, true),
                     got = memory_of(rank, readers, false);
        read_state_tensors(dir / "optim", got.state);
        for (size_t i = 0; i < 4; ++i)
          EXPECT_TRUE(test::same_bits(got.owned[i].get(), expected.owned[i].get())) << i;
      }
    }
  }
}

TEST(StateTensors, OtherFormsAreRefused) {
  const TemporaryDirectory dir;
  SelfGroup alone;
  const Memory m = memory_of(0, 1, true);
  write_state_tensors(dir / "optim", m.state, alone);
  Memory other = memory_of(0, 1, false);
  other.state[0].name = "v.exp_avg";
  const OwnedTensor wide(Backend::cpu, Dtype::f32, {600});
  other.state[1].value = wide.get();
  other.state[2].shape = {3, 1};
  const std::string message = error_of([&] { read_state_tensors(dir / "optim", other.state); });
  EXPECT_THAT(message, HasSubstr("\"v.exp_avg\": is missing"));
  EXPECT_THAT(message, HasSubstr("\"w.exp_avg\": is nothing that this run has"));
  EXPECT_THAT(message, HasSubstr("\"w.codes\": is U8 [600], the run needs f32 [600]"));
  EXPECT_THAT(message, HasSubstr("\"w.scale\": is F32 [3], the run needs f32 [3, 1]"));
  other = memory_of(0, 1, false);
  other.state[0].part = {0, 5};
  EXPECT_THAT(error_of([&] { read_state_tensors(dir / "optim", other.state); }),
              HasSubstr("elements 0 to 5"));
  EXPECT_THAT(error_of([&] { write_state_tensors(dir / "o2", other.state, alone); }),
              HasSubstr("elements 0 to 5"));
  EXPECT_EQ(dir.count(), 1U);
}

}  // namespace
}  // namespace lapidary
