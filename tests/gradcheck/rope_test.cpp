#include "lapidary/ops/rope.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/gradcheck/complex_step.h"

namespace lapidary::test {
namespace {

struct Case {
  int64_t tokens, heads, size;
  bool accumulate;
};

Tensors tables(Context& ctx, Dtype d, const ConstTensor& positions, int64_t half) {
  std::vector<double> freq;
  for (int64_t j = 0; j < half; ++j)
    freq.push_back(j % 3 == 2 ? 0.0 : 1.0 / (1.0 + 0.3 * double(j)));
  const OwnedTensor inv_freq = from_values(Dtype::f64, {half}, freq);
  Tensors out;
  for (int i = 0; i < 2; ++i) out.push_back(poisoned(d, {positions.dim(0), half}));
  ops::rope_table(ctx, {.positions = positions,
                        .inv_freq = inv_freq.get(),
                        .cos = out[0].get(),
                        .sin = out[1].get()});
  return out;
}

class NormRopeGradient : public testing::TestWithParam<Case> {};

TEST_P(NormRopeGradient, MatchesComplexStep) {
  const auto [tokens, heads, size, accumulate] = GetParam();
  Context ctx = ref_context();
  Rng rng(5, 2);
  const OwnedTensor positions = random_int(Dtype::i64, {tokens}, rng, 0, 100000);
  OwnedTensor x0 = random(Dtype::f64, {tokens, heads, size}, rng);
  std::vector<Variable> in =
      variables(accumulate ? added("x", std::move(x0), rng) : written("x", std::move(x0)),
                added("w", random(Dtype::f64, {size}, rng), rng));
  const Forward forward = [&](Dtype d, const std::vector<ConstTensor>& x) {
    const Tensors table = tables(ctx, d, positions.get(), x[0].dim(2) / 2);
    Tensors out;
    out.push_back(poisoned(d, x[0].shape()));
    out.push_back(poisoned(d, {x[0].dim(0) * x[0].dim(1)}));
    ops::norm_rope(ctx, {.x = x[0],
                         .w = x[1],
                         .cos = table[0].get(),
                         .sin = table[1].get(),
                         .y = out[0].get(),
                         .rstd = out[1].get()});
    return out;
  };
  const Tensors saved = run_f64(in, forward);
  const Tensors table = tables(ctx, Dtype::f64, positions.get(), size / 2);
  Tensors dy;
  dy.push_back(random(Dtype::f64, {tokens, heads, size}, rng));
  ops::norm_rope_bwd(ctx, {.dy = dy[0].get(),
                           .x = in[0].value.get(),
                           .w = in[1].value.get(),
                           .cos = table[0].get(),
                           .sin = table[1].get(),
                           .rstd = saved[1].get(),
                           .dx = in[0].grad.get(),
                           .accumulate_dx = accumulate,
                           .dw = in[1].grad.get()});
  expect_gradients(in, dy, forward, rng);
}

INSTANTIATE_TEST_SUITE_P(Shapes, NormRopeGradient,
                         testing::Values(Case{1, 1, 2, false}, Case{1, 3, 8, true},
                                         Case{7, 2, 6, false}, Case{5, 4, 16, true}));

TEST(Rope, TableIsADoubleProduct) {
  Context ctx = ref_context();
  const OwnedTensor positions = from_values(Dtype::i64, {3}, {0, 1, 131071});
  const OwnedTensor freq = from_values(Dtype::f64, {2}, {0.1F, 0.0});
  const OwnedTensor cos = poisoned(Dtype::f64, {3, 2}), sin = poisoned(Dtype::f64, {3, 2});
  ops::rope_table(
      ctx,
      {.positions = positions.get(), .inv_freq = freq.get(), .cos = cos.get(), .sin = sin.get()});
  const double angle = 131071.0 * double{0.1F};
  EXPECT_EQ(values(cos.get()),
            (std::vector<double>{1, 1, std::cos(double{0.1F}), 1, std::cos(angle), 1}));
  EXPECT_EQ(values(sin.get()),
            (std::vector<double>{0, 0, std::sin(double{0.1F}), 0, std::sin(angle), 0}));
}

// A quarter turn sends (u_j, u_{j + D/2}) to (-u_{j + D/2}, u_j): halves pair, not neighbours.
TEST(Rope, QuarterTurn) {
  Context ctx = ref_context();
  const OwnedTensor x = from_values(Dtype::f64, {1, 1, 4}, {1, 3, 5, 7});  // mean square 21
  const OwnedTensor w = from_values(Dtype::f64, {4}, {1, 1, 1, 2});
  const OwnedTensor cos = from_values(Dtype::f64, {1, 2}, {0, 1});
  const OwnedTensor sin = from_values(Dtype::f64, {1, 2}, {1, 0});
  const OwnedTensor y = poisoned(Dtype::f64, {1, 1, 4});
  ops::norm_rope(
      ctx,
      {.x = x.get(), .w = w.get(), .cos = cos.get(), .sin = sin.get(), .y = y.get(), .eps = 0.0});
  const double r = 1.0 / std::sqrt(21.0);
  const OwnedTensor expected = from_values(Dtype::f64, {1, 1, 4}, {-5 * r, 3 * r, 1 * r, 14 * r});
  EXPECT_LT(max_error(y.get(), expected.get()), 1e-15);
}

TEST(Rope, AliasesAndStrides) {
  Context ctx = ref_context();
  Rng rng(17);
  const Shape shape{3, 2, 8};
  const OwnedTensor positions = from_values(Dtype::i64, {3}, {4, 0, 9});
  const Tensors table = tables(ctx, Dtype::f64, positions.get(), 4);
  const OwnedTensor x = random(Dtype::f64, shape, rng), w = random(Dtype::f64, {8}, rng);
  const OwnedTensor y = poisoned(Dtype::f64, shape), rstd = poisoned(Dtype::f64, {6});
  const auto run = [&](const ConstTensor& from, const Tensor& to) {
    ops::norm_rope(ctx, {.x = from,
                         .w = w.get(),
                         .cos = table[0].get(),
                         .sin = table[1].get(),
                         .y = to,
                         .rstd = rstd.get()});
  };
  run(x.get(), y.get());
  const Spread sx = spread(x.get()), in_place = spread(x.get());
  run(in_place.view, in_place.view);
  EXPECT_TRUE(same_bits(in_place.view, y.get()));
  const OwnedTensor dy = random(Dtype::f64, shape, rng), dx = poisoned(Dtype::f64, shape);
  const auto run_bwd = [&](const ConstTensor& from, const Tensor& to) {
    ops::norm_rope_bwd(ctx, {.dy = from,
                             .x = sx.view,
                             .w = w.get(),
                             .cos = table[0].get(),
                             .sin = table[1].get(),
                             .rstd = rstd.get(),
                             .dx = to});
  };
  run_bwd(dy.get(), dx.get());
  const Spread sdy = spread(dy.get());
  run_bwd(sdy.view, sdy.view);
  EXPECT_TRUE(same_bits(sdy.view, dx.get()));
}

}  // namespace
}  // namespace lapidary::test
