#include "lapidary/ops/loss.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "lapidary/core/error.h"
#include "tests/gradcheck/complex_step.h"

namespace lapidary::test {
namespace {

struct Case {
  int64_t tokens, hidden, vocabulary;
  double softcap;
  double scale;  // of x: large ones reach the cap
  bool none_counted = false;
};

class Loss : public testing::TestWithParam<Case> {
 protected:
  Context ctx = ref_context();
  Rng rng{73, 1};
};

TEST_P(Loss, GradientMatchesComplexStep) {
  const Case& c = GetParam();
  const double grad_scale = 0.37;
  const OwnedTensor targets = random_int(Dtype::i64, {c.tokens}, rng, 0, c.vocabulary);
  for (int64_t t = 0; t < c.tokens; ++t) {
    if (c.none_counted || t % 3 == 1) set(targets.get(), t, -100.0);
  }
  std::vector<Variable> in =
      variables(written("x", random(Dtype::f64, {c.tokens, c.hidden}, rng, c.scale)),
                added("w", random(Dtype::f64, {c.vocabulary, c.hidden}, rng), rng));
  const Forward forward = [&](Dtype d, const std::vector<ConstTensor>& x) {
    Tensors out;
    out.push_back(zeros(d, {1}));
    set(out[0].get(), 0, 5.0);  // added to
    ops::linear_cross_entropy(ctx, {.x = x[0],
                                    .w = x[1],
                                    .targets = targets.get(),
                                    .softcap = c.softcap,
                                    .loss = out[0].get()});
    return out;
  };
  Tensors dy;
  dy.push_back(from_values(Dtype::f64, {1}, {grad_scale}));
  const OwnedTensor loss = from_values(Dtype::f64, {1}, {5.0});
  ops::linear_cross_entropy(ctx, {.x = in[0].value.get(),
                                  .w = in[1].value.get(),
                                  .targets = targets.get(),
                                  .softcap = c.softcap,
                                  .grad_scale = grad_scale,
                                  .loss = loss.get(),
                                  .dx = in[0].grad.get(),
                                  .dw = in[1].grad.get()});
  EXPECT_TRUE(same_bits(loss.get(), run_f64(in, forward)[0].get())) << "loss without gradient";
  for (int64_t i = 0; i < c.tokens * c.hidden; ++i) {
    if (at(targets.get(), i / c.hidden) >= 0) continue;
    EXPECT_EQ(at(in[0].grad.get(), i), 0.0);
  }
  expect_gradients(in, dy, forward, rng);
  const Spread dx = spread(in[0].grad.get()), x = spread(in[0].value.get());
  ops::linear_cross_entropy(ctx, {.x = x.view,
                                  .w = in[1].value.get(),
                                  .targets = targets.get(),
                                  .softcap = c.softcap,
                                  .grad_scale = grad_scale,
                                  .loss = loss.get(),
                                  .dx = dx.view});
  EXPECT_TRUE(same_bits(dx.view, in[0].grad.get())) << "frozen head, rows with gaps";
}

INSTANTIATE_TEST_SUITE_P(Shapes, Loss,
                         testing::Values(Case{1, 3, 1, 0.0, 1.0}, Case{1, 5, 9, 30.0, 1.0},
                                         Case{8, 6, 17, 0.0, 3.0}, Case{7, 6, 17, 30.0, 20.0},
                                         Case{6, 4, 11, 2.0, 1.0}, Case{4, 3, 5, 30.0, 1.0, true}));

TEST(LossByHand, ZeroWeightsGiveTheLogarithmOfTheVocabulary) {
  Context ctx = ref_context();
  const OwnedTensor x = from_values(Dtype::f64, {2, 1}, {1, 2});
  const OwnedTensor w = zeros(Dtype::f64, {262144, 1});
  const OwnedTensor targets = from_values(Dtype::i64, {2}, {7, 262143});
  const OwnedTensor loss = zeros(Dtype::f64, {1});
  ops::linear_cross_entropy(
      ctx,
      {.x = x.get(), .w = w.get(), .targets = targets.get(), .softcap = 30.0, .loss = loss.get()});
  EXPECT_NEAR(at(loss.get(), 0), 2 * 18 * std::log(2.0), 1e-12);
}

// Logits of +-1000 neither overflow nor lose the difference.
TEST(LossByHand, LargeLogits) {
  Context ctx = ref_context();
  const OwnedTensor x = from_values(Dtype::f64, {1, 1}, {1000});
  const OwnedTensor w = from_values(Dtype::f64, {3, 1}, {1, -1, 0.999});
  const OwnedTensor targets = from_values(Dtype::i64, {1}, {2});
  const OwnedTensor loss = zeros(Dtype::f64, {1});
  ops::linear_cross_entropy(
      ctx, {.x = x.get(), .w = w.get(), .targets = targets.get(), .loss = loss.get()});
  EXPECT_NEAR(at(loss.get(), 0), 1.0 + std::log1p(std::exp(-1.0)), 1e-12);
}

TEST(LossByHand, Softcap) {
  Context ctx = ref_context();
  const OwnedTensor l = from_values(Dtype::f64, {1, 3}, {0, 30, -1e9});
  const Spread wide = spread(l.get());
  ops::softcap(ctx, {.logits = wide.view, .softcap = 30.0});
  EXPECT_EQ(at(wide.view, 0), 0.0);
  EXPECT_NEAR(at(wide.view, 1), 30 * 0.7615941559557649, 1e-13);
  EXPECT_EQ(at(wide.view, 2), -30.0);
  ops::softcap(ctx, {.logits = l.get(), .softcap = 0.0});
  EXPECT_EQ(values(l.get()), (std::vector<double>{0, 30, -1e9}));
}

TEST(LossByHand, NamesTheTargetThatIsOutside) {
  Context ctx = ref_context();
  const OwnedTensor x = zeros(Dtype::f64, {3, 2}), w = zeros(Dtype::f64, {4, 2});
  const OwnedTensor loss = zeros(Dtype::f64, {1});
  for (const int bad : {4, -1, -99}) {
    const OwnedTensor targets = from_values(Dtype::i64, {3}, {0, -100, static_cast<double>(bad)});
    EXPECT_THAT(
        [&] {
          ops::linear_cross_entropy(
              ctx, {.x = x.get(), .w = w.get(), .targets = targets.get(), .loss = loss.get()});
        },
        testing::ThrowsMessage<Error>(
            testing::AllOf(testing::HasSubstr("target " + std::to_string(bad)),
                           testing::HasSubstr("position 2"))));
  }
}

}  // namespace
}  // namespace lapidary::test
