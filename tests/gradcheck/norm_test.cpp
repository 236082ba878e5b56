#include "lapidary/ops/norm.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/gradcheck/complex_step.h"

namespace lapidary::test {
namespace {

struct Case {
  int64_t rows, size;
  double eps;
};

class NormGradient : public testing::TestWithParam<Case> {
 protected:
  Context ctx = ref_context();
  Rng rng{7, 1};
};

TEST_P(NormGradient, WithoutWeight) {
  const auto [rows, size, eps] = GetParam();
  std::vector<Variable> in = variables(written("x", random(Dtype::f64, {rows, size}, rng)));
  const Forward forward = [&, e = eps](Dtype d, const std::vector<ConstTensor>& x) {
    Tensors out;
    out.push_back(poisoned(d, x[0].shape()));
    out.push_back(poisoned(d, {x[0].dim(0)}));
    ops::rms_norm(ctx, {.x = x[0], .y = out[0].get(), .rstd = out[1].get(), .eps = e});
    return out;
  };
  const Tensors saved = run_f64(in, forward);
  Tensors dy;
  dy.push_back(random(Dtype::f64, {rows, size}, rng));
  ops::rms_norm_bwd(
      ctx,
      {.dy = dy[0].get(), .x = in[0].value.get(), .rstd = saved[1].get(), .dx = in[0].grad.get()});
  expect_gradients(in, dy, forward, rng);
}

TEST_P(NormGradient, WithWeightAndResidual) {
  const auto [rows, size, eps] = GetParam();
  std::vector<Variable> in = variables(added("x", random(Dtype::f64, {rows, size}, rng), rng),
                                       added("w", random(Dtype::f64, {size}, rng), rng),
                                       written("residual", random(Dtype::f64, {rows, size}, rng)));
  const Forward forward = [&, e = eps](Dtype d, const std::vector<ConstTensor>& x) {
    Tensors out;
    out.push_back(poisoned(d, x[0].shape()));
    out.push_back(poisoned(d, {x[0].dim(0)}));
    ops::rms_norm(ctx, {.x = x[0],
                        .w = x[1],
                        .residual = x[2],
                        .y = out[0].get(),
                        .rstd = out[1].get(),
                        .eps = e});
    return out;
  };
  const Tensors saved = run_f64(in, forward);
  Tensors dy;
  dy.push_back(random(Dtype::f64, {rows, size}, rng));
  ops::rms_norm_bwd(ctx, {.dy = dy[0].get(),
                          .x = in[0].value.get(),
                          .w = in[1].value.get(),
                          .rstd = saved[1].get(),
                          .dx = in[0].grad.get(),
                          .accumulate_dx = true,
                          .dw = in[1].grad.get()});
  copy(dy[0].get(), in[2].grad.get());
  expect_gradients(in, dy, forward, rng);
}

INSTANTIATE_TEST_SUITE_P(Shapes, NormGradient,
                         testing::Values(Case{1, 1, 1e-6}, Case{1, 33, 1e-6}, Case{5, 8, 1e-6},
                                         Case{3, 7, 0.5}, Case{17, 64, 1e-6}));

// A row of zeros has rstd = eps^-1/2 and a finite gradient.
TEST(Norm, ZeroRow) {
  Context ctx = ref_context();
  Rng rng(3);
  std::vector<Variable> in = variables(written("x", zeros(Dtype::f64, {2, 6})));
  const Forward forward = [&](Dtype d, const std::vector<ConstTensor>& x) {
    Tensors out;
    out.push_back(poisoned(d, x[0].shape()));
    out.push_back(poisoned(d, {x[0].dim(0)}));
    ops::rms_norm(ctx, {.x = x[0], .y = out[0].get(), .rstd = out[1].get(), .eps = 1e-6});
    return out;
  };
  const Tensors saved = run_f64(in, forward);
  EXPECT_DOUBLE_EQ(at(saved[1].get(), 0), 1e3);
  Tensors dy;
  dy.push_back(random(Dtype::f64, {2, 6}, rng));
  ops::rms_norm_bwd(
      ctx,
      {.dy = dy[0].get(), .x = in[0].value.get(), .rstd = saved[1].get(), .dx = in[0].grad.get()});
  expect_gradients(in, dy, forward, rng);
}

TEST(Norm, ByHand) {
  Context ctx = ref_context();
  const OwnedTensor x = from_values(Dtype::f64, {1, 2}, {3, 4});
  const OwnedTensor w = from_values(Dtype::f64, {2}, {2, 10});
  const OwnedTensor y = poisoned(Dtype::f64, {1, 2});
  ops::rms_norm(ctx, {.x = x.get(), .w = w.get(), .residual = x.get(), .y = y.get(), .eps = 0.0});
  // mean square 12.5; the weight is plain, not 1 + w.
  const double r = 1.0 / std::sqrt(12.5);
  EXPECT_NEAR(at(y.get(), 0), 3 + 3 * r * 2, 1e-14);
  EXPECT_NEAR(at(y.get(), 1), 4 + 4 * r * 10, 1e-14);
}

// Allowed aliases and free row strides change no bit.
TEST(Norm, AliasesAndStrides) {
  Context ctx = ref_context();
  Rng rng(11);
  const Shape shape{4, 9};
  const OwnedTensor x = random(Dtype::f64, shape, rng), w = random(Dtype::f64, {9}, rng);
  const OwnedTensor residual = random(Dtype::f64, shape, rng), dy = random(Dtype::f64, shape, rng);
  const OwnedTensor y = poisoned(Dtype::f64, shape), rstd = poisoned(Dtype::f64, {4});
  ops::rms_norm(
      ctx,
      {.x = x.get(), .w = w.get(), .residual = residual.get(), .y = y.get(), .rstd = rstd.get()});
  for (const bool on_x : {true, false}) {
    const Spread sx = spread(x.get()), sr = spread(residual.get());
    const Tensor out = on_x ? sx.view : sr.view;
    ops::rms_norm(ctx, {.x = sx.view, .w = w.get(), .residual = sr.view, .y = out});
    EXPECT_TRUE(same_bits(out, y.get()));
  }
  const OwnedTensor dx = poisoned(Dtype::f64, shape), dw = zeros(Dtype::f64, {9});
  ops::rms_norm_bwd(ctx, {.dy = dy.get(),
                          .x = x.get(),
                          .w = w.get(),
                          .rstd = rstd.get(),
                          .dx = dx.get(),
                          .dw = dw.get()});
  const Spread sx = spread(x.get()), sdy = spread(dy.get());
  const OwnedTensor dw2 = zeros(Dtype::f64, {9}), dw3 = zeros(Dtype::f64, {9});
  ops::rms_norm_bwd(
      ctx, {.dy = sdy.view, .x = sx.view, .w = w.get(), .rstd = rstd.get(), .dw = dw3.get()});
  EXPECT_TRUE(same_bits(dw3.get(), dw.get())) << "dw without dx";
  ops::rms_norm_bwd(ctx, {.dy = sdy.view,
                          .x = sx.view,
                          .w = w.get(),
                          .rstd = rstd.get(),
                          .dx = sdy.view,
                          .dw = dw2.get()});
  EXPECT_TRUE(same_bits(sdy.view, dx.get()));
  EXPECT_TRUE(same_bits(dw2.get(), dw.get()));
}

}  // namespace
}  // namespace lapidary::test
