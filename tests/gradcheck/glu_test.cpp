#include "lapidary/ops/glu.h"

#include <gtest/gtest.h>

#include "tests/gradcheck/complex_step.h"

namespace lapidary::test {
namespace {

struct Case {
  int64_t rows, size;
  double scale;  // large: tanh saturates
};

class GegluGradient : public testing::TestWithParam<Case> {
 protected:
  Context ctx = ref_context();
  Rng rng{23, 1};
};

TEST_P(GegluGradient, Plain) {
  const auto [rows, size, scale] = GetParam();
  std::vector<Variable> in =
      variables(written("gate", random(Dtype::f64, {rows, size}, rng, scale)),
                written("up", random(Dtype::f64, {rows, size}, rng)));
  const Forward forward = [&](Dtype d, const std::vector<ConstTensor>& x) {
    Tensors out;
    out.push_back(poisoned(d, x[0].shape()));
    ops::geglu(ctx, {.gate = x[0], .up = x[1], .h = out[0].get()});
    return out;
  };
  Tensors dy;
  dy.push_back(random(Dtype::f64, {rows, size}, rng));
  ops::geglu_bwd(ctx, {.dh = dy[0].get(),
                       .gate = in[0].value.get(),
                       .up = in[1].value.get(),
                       .dgate = in[0].grad.get(),
                       .dup = in[1].grad.get()});
  expect_gradients(in, dy, forward, rng);
}

TEST_P(GegluGradient, RowWeights) {
  const auto [rows, size, scale] = GetParam();
  std::vector<Variable> in =
      variables(written("gate", random(Dtype::f64, {rows, size}, rng, scale)),
                written("up", random(Dtype::f64, {rows, size}, rng)),
                written("row_weight", random(Dtype::f64, {rows}, rng)));
  set(in[2].value.get(), 0, 0.0);  // a gap of the expert layout
  const Forward forward = [&](Dtype d, const std::vector<ConstTensor>& x) {
    Tensors out;
    out.push_back(poisoned(d, x[0].shape()));
    ops::geglu(ctx, {.gate = x[0], .up = x[1], .row_weight = x[2], .h = out[0].get()});
    return out;
  };
  Tensors dy;
  dy.push_back(random(Dtype::f64, {rows, size}, rng));
  ops::geglu_bwd(ctx, {.dh = dy[0].get(),
                       .gate = in[0].value.get(),
                       .up = in[1].value.get(),
                       .row_weight = in[2].value.get(),
                       .dgate = in[0].grad.get(),
                       .dup = in[1].grad.get(),
                       .drow_weight = in[2].grad.get()});
  expect_gradients(in, dy, forward, rng);
}

// Per-layer embeddings: up and dup are one layer's columns of a [T, L P] tensor.
TEST_P(GegluGradient, ColumnsOfAWideTensor) {
  const auto [rows, size, scale] = GetParam();
  std::vector<Variable> in =
      variables(written("gate", random(Dtype::f64, {rows, size}, rng, scale)),
                added("ple", random(Dtype::f64, {rows, 3 * size}, rng), rng));
  const int64_t p = size;
  const Forward forward = [&](Dtype d, const std::vector<ConstTensor>& x) {
    Tensors out;
    out.push_back(poisoned(d, x[0].shape()));
    ops::geglu(ctx, {.gate = x[0], .up = x[1].slice(1, p, p), .h = out[0].get()});
    return out;
  };
  Tensors dy;
  dy.push_back(random(Dtype::f64, {rows, size}, rng));
  ops::geglu_bwd(ctx, {.dh = dy[0].get(),
                       .gate = in[0].value.get(),
                       .up = in[1].value->slice(1, p, p),
                       .dgate = in[0].grad.get(),
                       .dup = in[1].grad->slice(1, p, p),
                       .accumulate_dup = true});
  for (int64_t i = 0; i < rows; ++i) {
    for (const int64_t j : {int64_t{0}, 3 * p - 1}) {
      EXPECT_EQ(at(in[1].grad.get(), i * 3 * p + j), at(in[1].start.get(), i * 3 * p + j));
    }
  }
  expect_gradients(in, dy, forward, rng);
}

INSTANTIATE_TEST_SUITE_P(Shapes, GegluGradient,
                         testing::Values(Case{1, 1, 1.0}, Case{1, 31, 1.0}, Case{6, 5, 3.0},
                                         Case{9, 16, 8.0}));

TEST(Geglu, ByHand) {
  Context ctx = ref_context();
  const OwnedTensor gate = from_values(Dtype::f64, {1, 3}, {1, -1, 0});
  const OwnedTensor up = from_values(Dtype::f64, {1, 3}, {2, 1, 5});
  const OwnedTensor weight = from_values(Dtype::f64, {1}, {0.5});
  const OwnedTensor h = poisoned(Dtype::f64, {1, 3});
  ops::geglu(ctx, {.gate = gate.get(), .up = up.get(), .row_weight = weight.get(), .h = h.get()});
  // tanh(sqrt(2/pi) 1.044715) = 0.6823839812165535, so g(1) = 0.8411919906082768
  EXPECT_NEAR(at(h.get(), 0), 0.8411919906082768, 1e-15);
  EXPECT_NEAR(at(h.get(), 1), 0.5 * (0.8411919906082768 - 1.0), 1e-15);
  EXPECT_EQ(at(h.get(), 2), 0.0);
}

TEST(Geglu, GradientsOnTheInputs) {
  Context ctx = ref_context();
  Rng rng(29);
  const Shape shape{3, 7};
  const OwnedTensor gate = random(Dtype::f64, shape, rng), up = random(Dtype::f64, shape, rng);
  const OwnedTensor dh = random(Dtype::f64, shape, rng);
  const OwnedTensor dgate = poisoned(Dtype::f64, shape), dup = poisoned(Dtype::f64, shape);
  ops::geglu_bwd(
      ctx,
      {.dh = dh.get(), .gate = gate.get(), .up = up.get(), .dgate = dgate.get(), .dup = dup.get()});
  const Spread sg = spread(gate.get()), su = spread(up.get()), sh = spread(dh.get());
  ops::geglu_bwd(ctx,
                 {.dh = sh.view, .gate = sg.view, .up = su.view, .dgate = sg.view, .dup = su.view});
  EXPECT_TRUE(same_bits(sg.view, dgate.get()));
  EXPECT_TRUE(same_bits(su.view, dup.get()));
}

}  // namespace
}  // namespace lapidary::test
