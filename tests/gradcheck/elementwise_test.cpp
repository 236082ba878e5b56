#include "lapidary/ops/elementwise.h"

#include <gtest/gtest.h>

#include <cmath>

#include "lapidary/core/error.h"
#include "lapidary/ops/adamw.h"
#include "tests/gradcheck/complex_step.h"

namespace lapidary::test {
namespace {

TEST(Elementwise, AxpbyByHand) {
  Context ctx = ref_context();
  const OwnedTensor a = from_values(Dtype::f64, {2, 2}, {1, 2, 3, 4});
  const OwnedTensor b = from_values(Dtype::f64, {2, 2}, {10, 20, 30, 40});
  const Spread sa = spread(a.get()), sb = spread(b.get());
  const auto run = [&](const ConstTensor& y, const Tensor& out) {
    ops::axpby(ctx, {.a = sa.view, .b = y, .alpha = 2.0, .beta = -1.0, .out = out});
  };
  const OwnedTensor out = poisoned(Dtype::f64, {2, 2});
  run({}, out.get());
  EXPECT_EQ(values(out.get()), (std::vector<double>{2, 4, 6, 8}));
  run(sb.view, sb.view);
  EXPECT_EQ(values(sb.view), (std::vector<double>{-8, -16, -24, -32}));
  run(b.get(), sa.view);
  EXPECT_EQ(values(sa.view), (std::vector<double>{-8, -16, -24, -32}));
}

TEST(Elementwise, ScaleByByHand) {
  Context ctx = ref_context();
  const OwnedTensor a = from_values(Dtype::f64, {2, 2}, {1, 2, 3, 4});
  const OwnedTensor s = from_values(Dtype::f64, {1}, {0.25});
  const Spread sa = spread(a.get());
  ops::scale_by(ctx, {.a = sa.view, .s = s.get(), .out = sa.view});
  EXPECT_EQ(values(sa.view), (std::vector<double>{0.25, 0.5, 0.75, 1}));
}

TEST(Elementwise, SumOfSquares) {
  Context ctx = ref_context();
  const OwnedTensor t = from_values(Dtype::f64, {2, 1, 2}, {1, -2, 3, 0.5});
  const OwnedTensor sum = from_values(Dtype::f64, {1}, {0.5});
  ops::sum_of_squares(ctx, {.t = t.get(), .sum = sum.get()});
  EXPECT_EQ(at(sum.get(), 0), 14.75);
}

TEST(Elementwise, OtherTypesAreRefused) {
  Context ctx = ref_context();
  const OwnedTensor t = zeros(Dtype::f32, {2, 2});
  EXPECT_THROW(ops::axpby(ctx, {.a = t.get(), .out = t.get()}), Error);
  const OwnedTensor sum = zeros(Dtype::f64, {1});
  EXPECT_THROW(ops::sum_of_squares(ctx, {.t = t.get(), .sum = sum.get()}), Error);
}

// One element, three steps, against the bias-corrected form of the paper:
//   mhat = m / (1 - b1^t), vhat = v / (1 - b2^t), p -= lr (mhat / (sqrt vhat + eps) + wd p)
TEST(AdamW, BiasCorrectedForm) {
  Context ctx = ref_context();
  const double b1 = 0.9, b2 = 0.95, lr = 0.1, decay = 0.5, eps = 0.01;
  const OwnedTensor param = from_values(Dtype::f64, {1, 1}, {2.0});
  const OwnedTensor master = from_values(Dtype::f64, {1, 1}, {2.0});
  const OwnedTensor m = zeros(Dtype::f64, {1, 1}), v = zeros(Dtype::f64, {1, 1});
  const std::vector<double> grads{0.8, -0.3, 0.0};
  double p = 2.0, first = 0.0, second = 0.0;
  for (int t = 1; t <= 3; ++t) {
    const double g = 0.5 * grads[static_cast<size_t>(t - 1)];
    const OwnedTensor grad = from_values(Dtype::f64, {1, 1}, {2.0 * g});
    ops::adamw(ctx, {.param = param.get(),
                     .master = master.get(),
                     .grad = grad.get(),
                     .m = m.get(),
                     .v = v.get(),
                     .grad_scale = 0.5,
                     .lr = lr,
                     .beta1 = b1,
                     .beta2 = b2,
                     .eps = eps,
                     .weight_decay = decay,
                     .step = t});
    first = b1 * first + (1 - b1) * g;
    second = b2 * second + (1 - b2) * g * g;
    const double mhat = first / (1 - std::pow(b1, t)), vhat = second / (1 - std::pow(b2, t));
    p -= lr * (mhat / (std::sqrt(vhat) + eps) + decay * p);
    EXPECT_NEAR(at(param.get(), 0), p, 1e-14);
    EXPECT_EQ(at(master.get(), 0), at(param.get(), 0));
  }
}

// The first step is lr in the direction of the sign, whatever the size of the gradient.
TEST(AdamW, FirstStepWithoutMaster) {
  Context ctx = ref_context();
  const OwnedTensor param = from_values(Dtype::f64, {3}, {1, 1, 1});
  const OwnedTensor grad = from_values(Dtype::f64, {3}, {1e-3, -50, 0});
  const OwnedTensor m = zeros(Dtype::f64, {3}), v = zeros(Dtype::f64, {3});
  ops::adamw(ctx, {.param = param.get(),
                   .grad = grad.get(),
                   .m = m.get(),
                   .v = v.get(),
                   .lr = 0.01,
                   .eps = 1e-20,
                   .weight_decay = 0.0});
  const OwnedTensor expected = from_values(Dtype::f64, {3}, {0.99, 1.01, 1.0});
  EXPECT_LT(max_error(param.get(), expected.get()), 1e-14);
}

}  // namespace
}  // namespace lapidary::test
