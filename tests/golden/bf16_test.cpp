#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "lapidary/checkpoint/files.h"
#include "lapidary/checkpoint/json.h"
#include "tests/golden/names.h"
#include "tests/support/golden.h"
#include "tests/support/tensors.h"

// The whole model in bf16 against the f64 values of the reference. What is allowed is the error
// that the reference itself makes in bf16 on the same weights, the larger of its two attention
// variants.
namespace lapidary::test {
namespace {

struct Bf16Error {
  double logits_l2, logits_max, loss_abs, grad_l2_median, grad_l2_worst;
};

Bf16Error reference_error(const std::string& name) {
  const std::string path = LAPIDARY_SOURCE_DIR "/tests/golden/data/bf16_reference_error.json";
  const nlohmann::json all = parse_json(read_text_file(path, 1 << 20), path);
  const auto larger = [&](const char* metric) {
    return std::max(all.at(name).at("bfloat16 sdpa").at(metric).get<double>(),
                    all.at(name).at("bfloat16 eager").at(metric).get<double>());
  };
  return {larger("logits_l2"), larger("logits_max"), larger("loss_abs"), larger("grad_l2_median"),
          larger("grad_l2_worst")};
}

Bf16Error measured_error(const GoldenCase& golden) {
  Gemma4ForConditionalGeneration model = golden.model(Dtype::bf16);
  const gemma4::ForwardOutput out = run_forward(model, golden.inputs.text());
  const TokenError logits =
      token_error(out.logits.get(), golden.expected.get("logits"), golden.inputs.real());
  const LossAndGradients got = run_gradients(model, golden.inputs);
  const GradientErrors gradients = gradient_errors(got.gradients, golden.expected);
  return {logits.l2, logits.peak, std::abs(got.loss - at(golden.expected.get("loss"), 0)),
          gradients.median, gradients.worst};
}

class Bf16 : public ::testing::TestWithParam<const char*> {};

// Weights that were trained: every figure.
TEST(Bf16Trained, EveryFigure) {
  const GoldenCase golden("moe_trained");
  const Bf16Error allowed = reference_error(golden.name);
  const Bf16Error got = measured_error(golden);
  EXPECT_LE(got.logits_l2, allowed.logits_l2);
  EXPECT_LE(got.logits_max, allowed.logits_max);
  EXPECT_LE(got.loss_abs, allowed.loss_abs);
  EXPECT_LE(got.grad_l2_median, allowed.grad_l2_median);
  EXPECT_LE(got.grad_l2_worst, allowed.grad_l2_worst);
}

// Random weights amplify each rounding tenfold and more: the largest logit, the worst tensor and
// the one loss are draws of chance there (the reference's own two variants differ by up to a factor
// of 3 in them). The figures over many elements are compared.
TEST_P(Bf16, RandomWeights) {
  const GoldenCase golden(GetParam());
  const Bf16Error allowed = reference_error(golden.name);
  const Bf16Error got = measured_error(golden);
  EXPECT_LE(got.logits_l2, allowed.logits_l2);
  EXPECT_LE(got.grad_l2_median, allowed.grad_l2_median);
}

INSTANTIATE_TEST_SUITE_P(Golden, Bf16, ::testing::Values("dense_text", "e_text", "moe_text"),
                         case_name);

}  // namespace
}  // namespace lapidary::test
