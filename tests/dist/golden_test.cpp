#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/dist/world.h"
#include "tests/golden/names.h"
#include "tests/support/ranks.h"
#include "tests/support/tensors.h"

// The golden cases on every legal mesh of the ranks that run, at the tolerances of one rank.
namespace lapidary::test {
namespace {

using ::testing::IsEmpty;

class DistTraining : public ::testing::TestWithParam<const char*> {};
class DistGolden : public ::testing::TestWithParam<const char*> {};

TEST_P(DistGolden, LogitsLossAndGradients) {
  const GoldenCase golden(GetParam());
  for (const MeshOptions& mesh : legal_meshes(world().size(), has_experts(golden))) {
    const MeshGroups groups = groups_of(Mesh(mesh));
    for (const bool resident : {false, true}) {
      const RanksErrors errors =
          errors_on_ranks(golden, groups,
                          {.resident_weights = resident,
                           .recompute = resident ? nn::Recompute::block : nn::Recompute::none});
      EXPECT_LT(errors.logits, 1e-5) << name_of(mesh);
      EXPECT_LT(errors.loss, 1e-6) << name_of(mesh);
      if (world().rank() != 0) continue;
      EXPECT_LT(errors.gradients.worst, 1e-4) << errors.gradients.worst_name << name_of(mesh);
      EXPECT_THAT(errors.gradients.missing, IsEmpty());
    }
  }
}

// In double, where twenty steps leave no room for chance: the reference's own losses.
TEST_P(DistTraining, TwentySteps) {
  const GoldenCase golden(GetParam());
  const TensorFile train = golden.train();
  for (const MeshOptions& mesh : legal_meshes(world().size(), has_experts(golden))) {
    const MeshGroups groups = groups_of(Mesh(mesh));
    const Trajectory got = train_on_ranks(golden, groups, {.dtype = Dtype::f64}, 20);
    for (size_t s = 0; s < got.losses.size(); ++s) {
      const auto i = static_cast<int64_t>(s);
      EXPECT_NEAR(got.losses[s] / at(train.get("losses"), i), 1.0, 5e-7) << s << name_of(mesh);
      EXPECT_NEAR(got.grad_norms[s] / at(train.get("grad_norms"), i), 1.0, 5e-7)
          << s << name_of(mesh);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Golden, DistGolden,
                         ::testing::Values("moe_text", "moe_packed", "dense_text", "e_text"),
                         case_name);

INSTANTIATE_TEST_SUITE_P(Golden, DistTraining,
                         ::testing::Values("moe_text", "dense_text", "e_text"), case_name);

}  // namespace
}  // namespace lapidary::test
