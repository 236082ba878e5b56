#include "lapidary/train/evaluator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <mutex>

#include "tests/support/golden.h"
#include "tests/support/thread_group.h"

namespace lapidary {
namespace {

// Samples of 2, 3, 4, ... tokens, all of them targets, longest first.
std::vector<Sample> samples_of(int64_t count) {
  std::vector<Sample> samples;
  for (int64_t i = count; i > 0; --i) {
    Sample sample;
    for (int64_t t = 0; t <= i; ++t) sample.input_ids.push_back(3 + (7 * i + 11 * t) % 290);
    sample.labels = sample.input_ids;
    samples.push_back(sample);
  }
  return samples;
}

DataParallel alone() {
  static SelfGroup group;
  return DataParallel(group);
}

TEST(Evaluator, RanksShareTheBatchesOfOneRank) {
  for (const int64_t count : {1, 4, 9}) {
    const std::vector<Sample> samples = samples_of(count);
    const Evaluator one(samples, 2, 0, alone());
    for (const int64_t ranks : {2, 3, 4}) {
      std::mutex mutex;
      std::vector<std::vector<Batch>> taken(static_cast<size_t>(ranks));
      test::run_on_mesh(Mesh({.world_size = ranks}), [&](const MeshGroups& groups) {
        const Evaluator mine(samples, 2, 0, DataParallel(groups.data()));
        const std::scoped_lock lock(mutex);
        EXPECT_EQ(mine.rows(), one.rows());
        EXPECT_EQ(mine.cols(), one.cols());
        taken[static_cast<size_t>(groups.rank())] = mine.batches();
      });
      size_t next = 0;
      for (size_t turn = 0; turn < taken.front().size(); ++turn) {
        for (const std::vector<Batch>& rank : taken) {
          ASSERT_EQ(rank.size(), taken.front().size());
          const Batch& batch = rank[turn];
          if (next == one.batches().size()) {
            EXPECT_EQ(batch.num_label_tokens, 0);
            EXPECT_THAT(batch.attention_mask, ::testing::Each(0));
            continue;
          }
          EXPECT_EQ(batch.input_ids, one.batches()[next].input_ids);
          EXPECT_EQ(batch.num_label_tokens, one.batches()[next].num_label_tokens);
          ++next;
        }
      }
      EXPECT_EQ(next, one.batches().size());
    }
  }
}

Evaluation evaluate(const std::vector<Sample>& samples, const MeshGroups& groups) {
  auto model = gemma4::Gemma4ForConditionalGeneration::from_pretrained(
      test::GoldenCase("moe_text").directory, {.groups = &groups});
  const Evaluator evaluator(samples, 2, 0, DataParallel(groups.data()));
  const MemoryPlan plan = model.plan_loss(
      gemma4::TextInputs::of_shape(evaluator.rows(), evaluator.cols()), {.backward = false});
  Context ctx = Context::make(model.backend(), plan);
  return evaluator.run(ctx, model);
}

TEST(Evaluator, TheLossIsThatOfOneRank) {
  const std::vector<Sample> samples = samples_of(5);
  const Evaluation one = evaluate(samples, MeshGroups());
  ASSERT_TRUE(std::isfinite(one.loss));
  EXPECT_EQ(one.num_label_tokens, 1 + 2 + 3 + 4 + 5);
  const MeshOptions meshes[] = {{.world_size = 2}, {.world_size = 4, .ep_size = 2}};
  for (const MeshOptions& mesh : meshes) {
    test::run_on_mesh(Mesh(mesh), [&](const MeshGroups& groups) {
      const Evaluation here = evaluate(samples, groups);
      EXPECT_NEAR(here.loss, one.loss, 1e-6 * one.loss);
      EXPECT_EQ(here.num_label_tokens, one.num_label_tokens);
    });
  }
}

}  // namespace
}  // namespace lapidary
