#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "lapidary/core/rng.h"
#include "lapidary/models/gemma4/generation.h"
#include "tests/golden/names.h"
#include "tests/support/golden.h"
#include "tests/support/tensors.h"

// The whole model in f32 on the cpu operations, against the f64 values of the reference.
namespace lapidary::test {
namespace {

using ::testing::IsEmpty;

class F32 : public ::testing::TestWithParam<const char*> {};

TEST_P(F32, LogitsLossAndGradients) {
  const GoldenCase golden(GetParam());
  Gemma4ForConditionalGeneration model = golden.model(Dtype::f32);
  const gemma4::ForwardOutput out = run_forward(model, golden.inputs.text());
  const double logits =
      token_error(out.logits.get(), golden.expected.get("logits"), golden.inputs.real()).peak;
  EXPECT_LT(logits, 1e-5);

  const LossAndGradients got = run_gradients(model, golden.inputs);
  EXPECT_NEAR(got.loss / at(golden.expected.get("loss"), 0), 1.0, 1e-6);
  const GradientErrors errors = gradient_errors(got.gradients, golden.expected);
  EXPECT_LT(errors.worst, 1e-4) << errors.worst_name;
  EXPECT_THAT(errors.missing, IsEmpty());
  RecordProperty("logits", std::to_string(logits));
  RecordProperty("worst_gradient", std::to_string(errors.worst));
}

INSTANTIATE_TEST_SUITE_P(Golden, F32,
                         ::testing::Values("moe_text", "moe_packed", "dense_text", "e_text",
                                           "moe_trained"),
                         case_name);

class F32Training : public ::testing::TestWithParam<const char*> {};

// Largest relative deviation up to and including each step.
std::vector<double> running_deviation(const std::vector<double>& got,
                                      const std::vector<double>& expected) {
  std::vector<double> out;
  double worst = 0.0;
  for (size_t s = 0; s < expected.size(); ++s) {
    worst = std::max(worst, std::abs(got[s] / expected[s] - 1.0));
    out.push_back(worst);
  }
  return out;
}

// Gradients with normal noise of `relative` times the root mean square of each tensor. Zeros stay:
// what no token touched is zero without rounding.
Disturb noise(double relative, uint64_t seed) {
  return [=](int64_t step, Parameter& p) {
    const std::vector<double> g = values(p.grad);
    double sum = 0.0;
    for (const double x : g) sum += x * x;
    const double deviation = relative * std::sqrt(sum / static_cast<double>(g.size()));
    Rng rng(seed + static_cast<uint64_t>(step), stream_of(p.name.c_str()));
    for (int64_t i = 0; i < p.grad.numel(); ++i) {
      double& element = p.grad.as<double>()[i];
      const double change = deviation * rng.normal();
      if (element != 0.0) element += change;
    }
  };
}

// How far training may drift is a property of the case: Adam divides by the root of the second
// moment, so that noise far below a tensor's typical gradient still decides elements whose gradient
// is nearly zero, and routing and softmax amplify what follows. The yardstick is therefore measured
// here: the f64 model runs again with seeded noise, as large (relative to each gradient tensor's
// RMS) as the error that f32 gradients have in this very case, at least 1e-6; and f32 training may
// deviate by three times the largest effect seen so far, plus the rounding of the compared numbers
// themselves: a loss is an f32 mean of 46 terms behind some sixty f32 operations per layer, sixteen
// epsilon.
TEST_P(F32Training, TwentyStepsWithinTheEffectOfRoundingNoise) {
  const GoldenCase golden(GetParam());
  const TensorFile train = golden.train();
  const std::vector<double> losses = values(train.get("losses"));
  const std::vector<double> norms = values(train.get("grad_norms"));
  const int64_t steps = static_cast<int64_t>(losses.size());
  Gemma4ForConditionalGeneration single = golden.model(Dtype::f32);
  const double error =
      gradient_errors(run_gradients(single, golden.inputs).gradients, golden.expected).worst;

  std::vector<double> loss_bound(losses.size()), norm_bound(losses.size());
  for (const uint64_t seed : {1000U, 2000U, 3000U, 4000U}) {
    Gemma4ForConditionalGeneration model = golden.model(Dtype::f64);
    const Trajectory t = run_training(model, train, steps, noise(std::max(1e-6, error), seed));
    const std::vector<double> loss = running_deviation(t.losses, losses);
    const std::vector<double> norm = running_deviation(t.grad_norms, norms);
    for (size_t s = 0; s < losses.size(); ++s) {
      loss_bound[s] = std::max(loss_bound[s], loss[s]);
      norm_bound[s] = std::max(norm_bound[s], norm[s]);
    }
  }

  Gemma4ForConditionalGeneration model = golden.model(Dtype::f32);
  const Trajectory got = run_training(model, train, steps);
  constexpr double kRounding = 16 * std::numeric_limits<float>::epsilon();
  for (size_t s = 0; s < losses.size(); ++s) {
    EXPECT_LT(std::abs(got.losses[s] / losses[s] - 1.0), 3 * loss_bound[s] + kRounding)
        << "step " << s;
    // Noise in all directions hardly moves a norm; an error of one direction moves it by its size.
    EXPECT_LT(std::abs(got.grad_norms[s] / norms[s] - 1.0), 3 * norm_bound[s] + error + kRounding)
        << "step " << s;
  }
}

TEST_P(F32Training, GreedyTokens) {
  const GoldenCase golden(GetParam());
  Gemma4ForConditionalGeneration model = golden.model(Dtype::f32);
  const TensorFile file = golden.generate();
  const std::vector<int64_t> expected = integers(file.get("tokens"));
  const auto count = static_cast<int64_t>(expected.size());
  EXPECT_EQ(gemma4::generate(model, integers(file.get("prompt")), {.max_new_tokens = count}),
            expected);
}

INSTANTIATE_TEST_SUITE_P(Golden, F32Training, ::testing::Values("moe_text", "dense_text", "e_text"),
                         case_name);

}  // namespace
}  // namespace lapidary::test
