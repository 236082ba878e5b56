#include "lapidary/ops/loss.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "lapidary/core/error.h"
#include "tests/unit/ops/against_ref.h"

namespace lapidary::test {
namespace {

struct Size {
  int64_t tokens, hidden, vocabulary;
};
const Size kSizes[] = {{1, 1, 1}, {0, 4, 5}, {5, 7, 33}, {40, 16, 2049}, {600, 8, 65}};

OwnedTensor targets(int64_t tokens, int64_t vocabulary, int pattern, Rng& rng) {
  OwnedTensor t = random_int(Dtype::i64, {tokens}, rng, 0, vocabulary);
  for (int64_t i = 0; i < tokens; ++i) {
    if (pattern == 2 || (pattern == 1 && rng.below(3) == 0)) set(t.get(), i, -100.0);
  }
  return t;
}

// pattern: 0 = every token counts, 1 = two thirds, 2 = none; gradients: 0 = none, 1 = dx, 2 = both.
void check(Dtype d, bool strided, const Size& size, double cap, int pattern, int gradients,
           Rng& rng) {
  const auto [tokens, hidden, vocabulary] = size;
  SCOPED_TRACE("tokens " + std::to_string(tokens) + " cap " + std::to_string(cap) + " pattern " +
               std::to_string(pattern));
  Call call(d, strided);
  const int x = call.input(random(Dtype::f64, {tokens, hidden}, rng));
  const double scale = 2.0 / std::sqrt(static_cast<double>(hidden));
  const int w = call.input(random(Dtype::f64, {vocabulary, hidden}, rng, scale));
  const int y = call.integers(targets(tokens, vocabulary, pattern, rng));
  // Logits to a few float roundings of their size (at most 10); losses are of the order of 1, and
  // the sum of `tokens` of them loses no more than they do.
  const int loss = call.added_as(Dtype::f64, "loss", random(Dtype::f64, {1}, rng, 1.0, 50.0),
                                 10.0 * tolerance(Dtype::f32, hidden));
  int dx = -1, dw = -1;
  if (gradients >= 1) {
    dx = call.written("dx", {tokens, hidden},
                      10.0 * tolerance(Dtype::f32, hidden) + tolerance(d, vocabulary, d));
  }
  if (gradients == 2) {
    dw = call.added_acc("dw", random(Dtype::f64, {vocabulary, hidden}, rng, 0.01),
                        10.0 * tolerance(Dtype::f32, hidden) + tolerance(Dtype::f32, tokens, d));
  }
  call.compare(
      [=](Context& ctx, const Call::Args& t) {
        ops::linear_cross_entropy(ctx, {.x = t[x],
                                        .w = t[w],
                                        .targets = t[y],
                                        .softcap = cap,
                                        .grad_scale = 0.37,
                                        .loss = t[loss],
                                        .dx = t[dx],
                                        .dw = t[dw]});
      },
      false);
}

TEST(CpuLoss, EqualsReference) {
  Rng rng(161);
  for_each_form([&](Dtype d, bool strided) {
    for (const Size& size : kSizes) {
      for (const double cap : {0.0, 3.0}) {
        for (int pattern = 0; pattern < 3; ++pattern) {
          for (int gradients = 0; gradients < 3; ++gradients) {
            check(d, strided, size, cap, pattern, gradients, rng);
          }
        }
      }
    }
  });
}

// Rows that a GPU shares among several blocks.
TEST(CpuLoss, LongRowsEqualReference) {
  Rng rng(162);
  for_each_form([&](Dtype d, bool strided) { check(d, strided, {9, 16, 40003}, 3.0, 1, 2, rng); });
}

OwnedTensor one_loss(const OwnedTensor& x, const OwnedTensor& w, double target) {
  OwnedTensor loss = zeros(Dtype::f64, {1});
  const OwnedTensor y = from_values(Dtype::i64, {1}, {target});
  Context ctx = Context::make(Backend::cpu, {0, 1 << 20});
  ops::linear_cross_entropy(
      ctx, {.x = x.get(), .w = w.get(), .targets = y.get(), .softcap = 30.0, .loss = loss.get()});
  return loss;
}

TEST(CpuLoss, ShowsBrokenNumbers) {
  const OwnedTensor w = from_values(Dtype::f32, {2, 1}, {1.0, 2.0});
  for (const double x :
       {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    const OwnedTensor loss = one_loss(from_values(Dtype::f32, {1, 1}, {x}), w, 1.0);
    EXPECT_TRUE(std::isnan(at(loss.get(), 0)));
  }
}

TEST(CpuLoss, RefusesForeignTargets) {
  const OwnedTensor x = zeros(Dtype::f32, {1, 1}), w = zeros(Dtype::f32, {2, 1});
  for (const double target : {-1.0, -99.0, 2.0}) EXPECT_THROW(one_loss(x, w, target), Error);
}

TEST(CpuLoss, ScratchIsBounded) {
  const ConstTensor x(nullptr, Dtype::bf16, {8192, 5376}), w(nullptr, Dtype::bf16, {262144, 5376});
  const ConstTensor targets(nullptr, Dtype::i64, {8192});
  const Tensor loss(nullptr, Dtype::f64, {1}), dx(nullptr, Dtype::bf16, {8192, 5376});
  const Tensor dw(nullptr, Dtype::f32, {262144, 5376});
  Context ctx = Context::meta();
  ops::linear_cross_entropy(ctx,
                            {.x = x, .w = w, .targets = targets, .loss = loss, .dx = dx, .dw = dw});
  EXPECT_LT(ctx.scratch.peak(), 150'000'000);
}

}  // namespace
}  // namespace lapidary::test
