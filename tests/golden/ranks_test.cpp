#include "tests/support/ranks.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/golden/names.h"
#include "tests/support/tensors.h"
#include "tests/support/thread_group.h"

// Golden cases on meshes of several ranks, which are threads here; tests/dist has all meshes over
// MPI.
namespace lapidary::test {
namespace {

using ::testing::IsEmpty;

class RanksTraining : public ::testing::TestWithParam<const char*> {};
class Ranks : public ::testing::TestWithParam<const char*> {};

TEST_P(Ranks, EqualTheReferenceInDouble) {
  const GoldenCase golden(GetParam());
  for (const int64_t ranks : {2, 4}) {
    for (const MeshOptions& mesh : legal_meshes(ranks, has_experts(golden))) {
      run_on_mesh(Mesh(mesh), [&](const MeshGroups& groups) {
        const RanksErrors errors = errors_on_ranks(golden, groups, {.dtype = Dtype::f64});
        EXPECT_LT(errors.logits, 5e-7) << name_of(mesh);
        EXPECT_LT(errors.loss, 5e-7) << name_of(mesh);
        if (groups.rank() != 0) return;
        EXPECT_LT(errors.gradients.worst, 5e-7) << errors.gradients.worst_name << name_of(mesh);
        EXPECT_THAT(errors.gradients.missing, IsEmpty());
      });
    }
  }
}

// Weights gathered or resident, gradients deferred or not, recomputed or not: the same steps.
TEST_P(RanksTraining, StepsAreThoseOfOneRank) {
  const GoldenCase golden(GetParam());
  const TensorFile train = golden.train();
  const auto expect_steps = [&](const MeshOptions& mesh, const RanksOptions& options,
                                const GradientFlow& flow) {
    run_on_mesh(Mesh(mesh), [&](const MeshGroups& groups) {
      const Trajectory got = train_on_ranks(golden, groups, options, 6, flow);
      for (size_t s = 0; s < got.losses.size(); ++s) {
        const auto i = static_cast<int64_t>(s);
        EXPECT_NEAR(got.losses[s] / at(train.get("losses"), i), 1.0, 5e-7) << s << name_of(mesh);
        EXPECT_NEAR(got.grad_norms[s] / at(train.get("grad_norms"), i), 1.0, 5e-7) << s;
      }
    });
  };
  const int64_t ep = has_experts(golden) ? 2 : 1;
  const MeshOptions mesh{.world_size = 4, .dp_replicate_size = 2, .ep_size = ep};
  const RanksOptions gathered{.dtype = Dtype::f64};
  const RanksOptions resident{
      .dtype = Dtype::f64, .resident_weights = true, .recompute = nn::Recompute::block};
  expect_steps(mesh, gathered, {});
  expect_steps(mesh, resident, {});
  expect_steps(mesh, gathered, {.micro_batches = 2});
  expect_steps(mesh, resident, {.defer_fsdp_grad_sync = false, .micro_batches = 2});
  expect_steps(mesh, gathered, {.optimizer_in_bwd = true});
}

INSTANTIATE_TEST_SUITE_P(Golden, Ranks,
                         ::testing::Values("moe_text", "moe_packed", "dense_text", "e_text"),
                         case_name);

INSTANTIATE_TEST_SUITE_P(Golden, RanksTraining,
                         ::testing::Values("moe_text", "dense_text", "e_text"), case_name);

}  // namespace
}  // namespace lapidary::test
