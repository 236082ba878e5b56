#include <gtest/gtest.h>

#include <cmath>
#include <complex>

#include "tests/golden/names.h"
#include "tests/support/golden.h"
#include "tests/support/tensors.h"

// The backward pass of the whole model against complex-step derivatives of its forward pass:
// for a direction d in one parameter, Im loss(w + i h d) / h = <gradient, d>, without cancellation.
namespace lapidary::test {
namespace {

using Complex = std::complex<double>;

constexpr double kStep = 1e-30;

// Mean cross entropy of softcapped logits [B, S, V] over the shifted labels, in c128.
Complex mean_loss(const ConstTensor& logits, const GoldenInputs& inputs) {
  const int64_t cols = logits.dim(1);
  const int64_t vocabulary = logits.dim(2);
  const auto* labels = inputs.labels->as<int64_t>();
  Complex sum = 0.0;
  for (int64_t t = 0; t < inputs.labels->numel(); ++t) {
    if (t % cols == cols - 1 || labels[t + 1] == -100) continue;
    const Complex* z = logits.as<Complex>() + t * vocabulary;
    Complex total = 0.0;
    for (int64_t v = 0; v < vocabulary; ++v) total += std::exp(z[v] - z[0].real());
    sum += std::log(total) + z[0].real() - z[labels[t + 1]];
  }
  return sum / static_cast<double>(inputs.targets());
}

class ComplexStep : public ::testing::TestWithParam<const char*> {};

TEST_P(ComplexStep, EveryParameterTensorAlongARandomDirection) {
  const GoldenCase golden(GetParam());
  Gemma4ForConditionalGeneration real = golden.model(Dtype::f64);
  const LossAndGradients expected = run_gradients(real, golden.inputs);
  Gemma4ForConditionalGeneration model = golden.model(Dtype::c128);
  std::vector<Parameter*> parameters;
  model.for_each_parameter([&](Parameter& p) { parameters.push_back(&p); });
  int checked = 0;
  for (Parameter* p : parameters) {
    if (p->buffer) continue;
    Rng rng(7, stream_of(p->name.c_str()));
    const OwnedTensor direction = random(Dtype::f64, p->shape, rng);
    const auto* d = direction->as<double>();
    const auto* g = expected.gradients.at(p->name)->as<double>();
    auto* w = p->value.as<Complex>();
    double slope = 0.0, scale = 0.0;
    for (int64_t i = 0; i < direction->numel(); ++i) {
      w[i] = {w[i].real(), kStep * d[i]};
      slope += g[i] * d[i];
      scale += g[i] * g[i];
    }
    const gemma4::ForwardOutput out = run_forward(model, golden.inputs.text());
    const double got = mean_loss(out.logits.get(), golden.inputs).imag() / kStep;
    // A random direction may be nearly orthogonal to the gradient: relative to the larger of the
    // slope and its typical size, the gradient's norm.
    EXPECT_LT(std::abs(got - slope), 1e-10 * std::max(std::abs(slope), std::sqrt(scale)))
        << p->name;
    for (int64_t i = 0; i < direction->numel(); ++i) w[i] = w[i].real();
    ++checked;
  }
  EXPECT_EQ(static_cast<size_t>(checked), expected.gradients.size());
}

INSTANTIATE_TEST_SUITE_P(Golden, ComplexStep, ::testing::Values("moe_text", "dense_text", "e_text"),
                         case_name);

}  // namespace
}  // namespace lapidary::test
