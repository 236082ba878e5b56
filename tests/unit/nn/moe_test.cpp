#include "lapidary/nn/moe.h"

#include <gtest/gtest.h>

#include "tests/support/golden.h"
#include "tests/support/tensors.h"

// Padding costs experts nothing, and the counts that are reported say so.
namespace lapidary::test {
namespace {

class Experts : public ::testing::Test {
 protected:
  // Sum over experts of the tokens that each layer dispatched.
  std::vector<int64_t> dispatched() {
    const ConstTensor loads = model_.language_model().expert_loads();
    std::vector<int64_t> out;
    for (int64_t i = 0; i < loads.dim(0); ++i) {
      int64_t sum = 0;
      for (const double n : values(loads.slice(0, i, 1))) sum += static_cast<int64_t>(n);
      out.push_back(sum);
    }
    return out;
  }
  const GoldenCase golden_{"moe_text"};
  Gemma4ForConditionalGeneration model_ = golden_.model(Dtype::f32);
};

TEST_F(Experts, SeeEveryRealTokenTwiceAndNoPadding) {
  int64_t real = 0;
  for (const uint8_t r : golden_.inputs.real()) real += r;
  ASSERT_LT(real, golden_.inputs.input_ids->numel());
  run_forward(model_, golden_.inputs.text());
  EXPECT_EQ(dispatched(), std::vector<int64_t>(6, 2 * real));
}

// Recomputation routes nothing again.
TEST_F(Experts, CountEachTokenOncePerStep) {
  for (const nn::Recompute policy :
       {nn::Recompute::none, nn::Recompute::light, nn::Recompute::block}) {
    Context ctx = Context::make(model_.backend());
    model_.language_model().reset_expert_loads(ctx);
    EXPECT_EQ(dispatched(), std::vector<int64_t>(6, 0));
    run_gradients(model_, golden_.inputs.document(0, 0, 10), policy);
    EXPECT_EQ(dispatched(), std::vector<int64_t>(6, 2 * 10)) << nn::name_of(policy);
  }
}

TEST_F(Experts, RoutingIsWithinBoundsAndDistinct) {
  const gemma4::TextInputs inputs = golden_.inputs.text();
  const MemoryPlan plan = model_.plan_forward(inputs);
  Context ctx = Context::make(model_.backend(), plan);
  model_.forward(ctx, inputs, {});
  const auto& routing = model_.last_pass().routing;
  ASSERT_EQ(routing.size(), 6U);
  for (const nn::Routing& layer : routing) {
    ASSERT_TRUE(layer.decided);
    for (int64_t t = 0; t < layer.indices.dim(0); ++t) {
      const int32_t* chosen = layer.indices.as<int32_t>() + 2 * t;
      EXPECT_TRUE(chosen[0] >= 0 && chosen[0] < 8 && chosen[1] >= 0 && chosen[1] < 8);
      EXPECT_NE(chosen[0], chosen[1]);
      EXPECT_NEAR(at(layer.shares, 2 * t) + at(layer.shares, 2 * t + 1), 1.0, 1e-6);
    }
  }
}

}  // namespace
}  // namespace lapidary::test
