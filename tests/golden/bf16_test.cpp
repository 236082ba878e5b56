#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "tests/golden/names.h"
#include "tests/support/golden.h"
#include "tests/support/tensors.h"

// The whole model in bf16 against the f64 values of the reference. What is allowed is the error
// that the reference itself makes in bf16 on the same weights, the larger of its two attention
// variants.
namespace lapidary::test {
namespace {

constexpr std::array kMetrics = {"logits_l2", "logits_max", "loss_abs", "grad_l2_median",
                                 "grad_l2_worst"};
using Errors = std::array<double, kMetrics.size()>;

Errors errors_of(const GoldenCase& golden, Gemma4ForConditionalGeneration& model,
                 const GoldenInputs& inputs) {
  const gemma4::ForwardOutput out = run_forward(model, inputs.text());
  const TokenError logits =
      token_error(out.logits.get(), golden.expected.get("logits"), inputs.real());
  const LossAndGradients got = run_gradients(model, inputs);
  const GradientErrors gradients = gradient_errors(got.gradients, golden.expected);
  return {logits.l2, logits.peak, std::abs(got.loss - at(golden.expected.get("loss"), 0)),
          gradients.median, gradients.worst};
}

void expect_at_most_the_references(const GoldenCase& golden, const Errors& errors,
                                   std::initializer_list<size_t> metrics) {
  for (const size_t i : metrics) {
    const double allowed = std::max(golden.reference_error("bfloat16 sdpa", kMetrics[i]),
                                    golden.reference_error("bfloat16 eager", kMetrics[i]));
    EXPECT_LE(errors[i], allowed) << kMetrics[i];
    ::testing::Test::RecordProperty(kMetrics[i], std::to_string(errors[i]));
  }
}

// Trained weights: routing is confident, and rounding is not amplified.
TEST(Bf16Trained, EveryErrorIsAtMostTheReferences) {
  const GoldenCase golden("moe_trained");
  Gemma4ForConditionalGeneration model = golden.model(Dtype::bf16);
  expect_at_most_the_references(golden, errors_of(golden, model, golden.inputs), {0, 1, 2, 3, 4});
}

// Random weights amplify rounding so much that one run, the reference's too, is one draw of a wide
// distribution: the loss errs in either direction, an expert more or less flips. Position ids that
// begin elsewhere give more draws, for they change rounding and nothing else. The median of each
// error over eleven draws is a property of the arithmetic.
// That of the loss is left out: the loss is one number, and what the reference errs by in it is one
// draw of either sign, not an average over many elements.
class Bf16Random : public ::testing::TestWithParam<const char*> {};

TEST_P(Bf16Random, EveryMedianErrorIsAtMostTheReferences) {
  const GoldenCase golden(GetParam());
  Gemma4ForConditionalGeneration model = golden.model(Dtype::bf16);
  const int64_t cols = golden.inputs.input_ids->dim(1);
  GoldenInputs inputs = golden.inputs.rows(0, golden.inputs.input_ids->dim(0));
  inputs.position_ids = zeros(Dtype::i64, {cols});
  constexpr int kDraws = 11;
  std::array<std::vector<double>, kMetrics.size()> draws;
  for (int64_t draw = 0; draw < kDraws; ++draw) {
    for (int64_t s = 0; s < cols; ++s) inputs.position_ids->as<int64_t>()[s] = 37 * draw + s;
    const Errors errors = errors_of(golden, model, inputs);
    for (size_t i = 0; i < errors.size(); ++i) draws[i].push_back(errors[i]);
  }
  Errors medians;
  for (size_t i = 0; i < medians.size(); ++i) {
    std::sort(draws[i].begin(), draws[i].end());
    medians[i] = draws[i][kDraws / 2];
  }
  expect_at_most_the_references(golden, medians, {0, 1, 3, 4});
}

INSTANTIATE_TEST_SUITE_P(Golden, Bf16Random, ::testing::Values("dense_text", "e_text", "moe_text"),
                         case_name);

}  // namespace
}  // namespace lapidary::test
