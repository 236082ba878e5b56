#include <gtest/gtest.h>

#include "tests/golden/names.h"
#include "tests/support/golden.h"
#include "tests/support/tensors.h"

// Recomputation trades time for memory and nothing else: loss and gradients keep every bit.
namespace lapidary::test {
namespace {

class RecomputePolicies : public ::testing::TestWithParam<CaseAndDtype> {};

TEST_P(RecomputePolicies, GiveBitwiseEqualGradients) {
  const GoldenCase golden(std::get<0>(GetParam()));
  Gemma4ForConditionalGeneration model = golden.model(std::get<1>(GetParam()));
  const LossAndGradients none = run_gradients(model, golden.inputs, nn::Recompute::none);
  ASSERT_GT(none.loss, 0.0);
  for (const nn::Recompute policy : {nn::Recompute::light, nn::Recompute::block}) {
    const LossAndGradients again = run_gradients(model, golden.inputs, policy);
    EXPECT_EQ(again.loss, none.loss) << nn::name_of(policy);
    ASSERT_EQ(again.gradients.size(), none.gradients.size());
    for (const auto& [name, gradient] : none.gradients) {
      EXPECT_TRUE(same_bits(again.gradients.at(name).get(), gradient.get()))
          << nn::name_of(policy) << " " << name;
    }
  }
}

TEST_P(RecomputePolicies, NeedLessMemoryTheMoreTheyRecompute) {
  const GoldenCase golden(std::get<0>(GetParam()));
  Gemma4ForConditionalGeneration model = golden.model(std::get<1>(GetParam()));
  model.zero_gradients();
  const auto bytes = [&](nn::Recompute policy) {
    return model.plan_loss(golden.inputs.text(), {.policy = policy}).activations;
  };
  EXPECT_LT(bytes(nn::Recompute::light), bytes(nn::Recompute::none));
  EXPECT_LT(bytes(nn::Recompute::block), bytes(nn::Recompute::light));
}

INSTANTIATE_TEST_SUITE_P(Golden, RecomputePolicies,
                         ::testing::Combine(::testing::Values("moe_text", "moe_packed",
                                                              "dense_text", "e_text",
                                                              "moe_trained"),
                                            ::testing::Values(Dtype::f32, Dtype::bf16)),
                         case_and_dtype);

}  // namespace
}  // namespace lapidary::test
