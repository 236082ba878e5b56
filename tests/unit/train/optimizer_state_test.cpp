// The state of AdamW, saved and read again: a run goes on as if it had not stopped, on any number
// of ranks.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "lapidary/core/error.h"
#include "lapidary/train/optimizer.h"
#include "tests/support/tensors.h"
#include "tests/support/thread_group.h"
#include "tests/unit/checkpoint/temporary_directory.h"

namespace lapidary::test {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kRows = 12, kCols = 250;  // 3000 elements: 11 blocks and a part of one
constexpr double kRate = 0.01, kDecay = 0.1;

// Rank `rank` of `ranks`: its chunk of one matrix, trained on gradients that depend on the element
// alone.
struct Shard {
  Shard(int64_t rank, int64_t ranks, Dtype dtype, const AdamWOptions& options, int64_t align = 256)
      : part(chunk_of(kRows * kCols, ranks, rank, align)) {
    Rng rng(21);
    const OwnedTensor start = random(Dtype::f32, {kRows * kCols}, rng);
    value = cast(start->slice(0, part.begin, part.size()), dtype);
    grad = zeros(Dtype::f32, {part.size()});
    parameter = {.name = "w", .shape = {part.size()}};
    parameter.value = value.get();
    parameter.grad = grad.get();
    optimizer.emplace(Backend::cpu, options, std::vector<Parameter*>{&parameter});
  }
  ParameterShard shard() const { return {{kRows, kCols}, part}; }
  std::vector<StateTensor> state() {
    return optimizer->state([this](const Parameter&) { return shard(); });
  }
  void step() {
    Context ctx = Context::make(Backend::cpu);
    Rng rng(22, static_cast<uint64_t>(optimizer->steps()));
    const OwnedTensor all = random(Dtype::f32, {kRows * kCols}, rng);
    copy(all->slice(0, part.begin, part.size()), grad.get());
    optimizer->begin_step();
    optimizer->step(ctx, kRate, kDecay);
  }

  Interval part;
  OwnedTensor value, grad;
  Parameter parameter;
  std::optional<AdamW> optimizer;
};

// Three steps on `writers` ranks, saved, two more on `readers`: the weights of five steps on one.
void resume(int64_t writers, int64_t readers, Dtype dtype, const AdamWOptions& options) {
  const testing::TemporaryDirectory dir;
  const OwnedTensor weights = zeros(dtype, {kRows * kCols});
  run_ranks(writers, [&](int64_t rank, const SplitWorld& split) {
    const std::unique_ptr<ProcessGroup> group = split(0, "all");
    Shard shard(rank, writers, dtype, options);
    for (int i = 0; i < 3; ++i) shard.step();
    copy(shard.value.get(), weights->slice(0, shard.part.begin, shard.part.size()));
    write_state_tensors(dir / "optim", shard.state(), *group);
  });
  Shard expected(0, 1, dtype, options);
  for (int i = 0; i < 5; ++i) expected.step();
  run_ranks(readers, [&](int64_t rank, const SplitWorld&) {
    Shard shard(rank, readers, dtype, options);
    const Interval part = shard.part;
    copy(weights->slice(0, part.begin, part.size()), shard.value.get());
    read_state_tensors(dir / "optim", shard.state());
    shard.optimizer->set_steps(3);
    for (int i = 0; i < 2; ++i) shard.step();
    EXPECT_TRUE(same_bits(shard.value.get(), expected.value->slice(0, part.begin, part.size())));
  });
}

TEST(OptimizerState, GoesOnOnAnotherNumberOfRanks) {
  for (const MomentType moments : {MomentType::f32, MomentType::bf16, MomentType::int8}) {
    for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
      resume(1, 1, dtype, {.moments = moments});
      resume(1, 3, dtype, {.moments = moments});
      resume(4, 1, dtype, {.moments = moments});
      resume(3, 5, dtype, {.moments = moments});
    }
  }
}

TEST(OptimizerState, NamesAndShapes) {
  const auto list = [](Dtype dtype, const AdamWOptions& options) {
    Shard shard(1, 2, dtype, options);
    std::vector<std::string> out;
    for (const StateTensor& t : shard.state()) {
      out.push_back(t.name + " " + name_of(t.value.dtype()) + " " + t.shape.str() + " " +
                    std::to_string(t.part.begin) + "-" + std::to_string(t.part.end));
    }
    return out;
  };
  using ::testing::ElementsAre;
  EXPECT_THAT(list(Dtype::f32, {}), ElementsAre("w.exp_avg f32 [12, 250] 1536-3000",
                                                "w.exp_avg_sq f32 [12, 250] 1536-3000"));
  EXPECT_THAT(list(Dtype::bf16, {.moments = MomentType::int8}),
              ElementsAre("w.exp_avg u8 [12, 250] 1536-3000", "w.exp_avg_sq u8 [12, 250] 1536-3000",
                          "w.exp_avg_scale f32 [12] 6-12", "w.exp_avg_sq_scale f32 [12] 6-12",
                          "w.master f32 [12, 250] 1536-3000"));
}

TEST(OptimizerState, BlocksOfCodesMustBeWhole) {
  Shard shard(1, 2, Dtype::f32, {.moments = MomentType::int8}, 1);
  try {
    shard.state();
    FAIL();
  } catch (const Error& e) {
    EXPECT_THAT(e.what(), HasSubstr("w: elements 1500 to 3000 of 3000 are no whole blocks of 256"));
  }
  Shard other(1, 2, Dtype::f32, {}, 1);
  EXPECT_EQ(other.state().size(), 2U);
  const auto too_long = [](const Parameter&) { return ParameterShard{{3000}, {0, 3000}}; };
  EXPECT_THROW(other.optimizer->state(too_long), Error);
}

}  // namespace
}  // namespace lapidary::test
