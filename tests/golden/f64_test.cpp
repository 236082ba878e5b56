#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "lapidary/models/gemma4/generation.h"
#include "tests/golden/names.h"
#include "tests/support/golden.h"
#include "tests/support/tensors.h"

// The whole model in f64 on the reference operations. The expected values were computed in f64 and
// stored in f32, which alone costs about 6e-8. moe_trained leaves the model's constants (embedding
// scales, rotary frequencies) unrounded where the model rounds them to f32: 2e-7 in a gradient.
namespace lapidary::test {
namespace {

using ::testing::IsEmpty;

constexpr double kTolerance = 5e-7;

class F64 : public ::testing::TestWithParam<const char*> {};

TEST_P(F64, LogitsAndHiddenStates) {
  const GoldenCase golden(GetParam());
  Gemma4ForConditionalGeneration model = golden.model(Dtype::f64);
  const gemma4::ForwardOutput out =
      run_forward(model, golden.inputs.text(), {.output_hidden_states = true});
  const std::vector<uint8_t> real = golden.inputs.real();
  EXPECT_LT(token_error(out.logits.get(), golden.expected.get("logits"), real).peak, kTolerance);
  const std::vector<std::string> names = golden.expected.names("hidden_states.");
  EXPECT_TRUE(names.empty() || names.size() == out.hidden_states.size());
  for (size_t i = 0; i < names.size(); ++i) {
    const std::string name = "hidden_states." + std::to_string(i);
    const Tensor& got = out.hidden_states[i].get();
    EXPECT_LT(token_error(got, golden.expected.get(name), real).peak, kTolerance) << name;
  }
}

TEST_P(F64, LossAndEveryGradient) {
  const GoldenCase golden(GetParam());
  Gemma4ForConditionalGeneration model = golden.model(Dtype::f64);
  const LossAndGradients got = run_gradients(model, golden.inputs);
  EXPECT_NEAR(got.loss / at(golden.expected.get("loss"), 0), 1.0, kTolerance);
  const GradientErrors errors = gradient_errors(got.gradients, golden.expected);
  EXPECT_LT(errors.worst, kTolerance) << errors.worst_name;
  EXPECT_THAT(errors.missing, IsEmpty());
  EXPECT_GT(errors.errors.size(), 30U);
  // Only the large case keeps a part of its gradients.
  if (golden.name != "moe_trained") {
    EXPECT_THAT(errors.surplus, IsEmpty());
  }
}

INSTANTIATE_TEST_SUITE_P(Golden, F64,
                         ::testing::Values("moe_text", "moe_packed", "dense_text", "e_text",
                                           "moe_trained"),
                         case_name);

class F64Training : public ::testing::TestWithParam<const char*> {};

TEST_P(F64Training, TwentySteps) {
  const GoldenCase golden(GetParam());
  Gemma4ForConditionalGeneration model = golden.model(Dtype::f64);
  const TensorFile train = golden.train();
  const Trajectory got = run_training(model, train, 20);
  for (size_t s = 0; s < got.losses.size(); ++s) {
    const auto i = static_cast<int64_t>(s);
    EXPECT_NEAR(got.losses[s] / at(train.get("losses"), i), 1.0, kTolerance) << "step " << s;
    EXPECT_NEAR(got.grad_norms[s] / at(train.get("grad_norms"), i), 1.0, kTolerance)
        << "step " << s;
  }
}

TEST_P(F64Training, GreedyTokens) {
  const GoldenCase golden(GetParam());
  Gemma4ForConditionalGeneration model = golden.model(Dtype::f64);
  const TensorFile file = golden.generate();
  const std::vector<int64_t> expected = integers(file.get("tokens"));
  const auto count = static_cast<int64_t>(expected.size());
  EXPECT_EQ(gemma4::generate(model, integers(file.get("prompt")), {.max_new_tokens = count}),
            expected);
}

INSTANTIATE_TEST_SUITE_P(Golden, F64Training, ::testing::Values("moe_text", "dense_text", "e_text"),
                         case_name);

}  // namespace
}  // namespace lapidary::test
