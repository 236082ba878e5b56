#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "lapidary/ops/moe.h"
#include "tests/gradcheck/complex_step.h"

namespace lapidary::test {
namespace {

struct Case {
  int64_t tokens, hidden, experts, top_k;
};

// What the router writes.
struct Routing {
  OwnedTensor rstd, indices, shares, weights;
  Routing(Dtype d, int64_t tokens, int64_t top_k)
      : rstd(poisoned(d, {tokens})),
        indices(poisoned(Dtype::i32, {tokens, top_k})),
        shares(poisoned(d, {tokens, top_k})),
        weights(poisoned(d, {tokens, top_k})) {}
};

void route(const std::vector<ConstTensor>& x, const Routing& r, bool select = true) {
  Context ctx = ref_context();
  ops::router(ctx, {.u = x[0],
                    .scale = x[1],
                    .proj = x[2],
                    .per_expert_scale = x[3],
                    .rstd = r.rstd.get(),
                    .indices = r.indices.get(),
                    .shares = r.shares.get(),
                    .weights = r.weights.get(),
                    .select = select});
}

std::vector<Variable> inputs_of(const Case& c, Rng& rng) {
  return variables(added("u", random(Dtype::f64, {c.tokens, c.hidden}, rng), rng),
                   added("scale", random(Dtype::f64, {c.hidden}, rng, 1.0, 1.0), rng),
                   added("proj", random(Dtype::f64, {c.experts, c.hidden}, rng), rng),
                   added("per_expert_scale", random(Dtype::f64, {c.experts}, rng, 0.5, 1.0), rng));
}

class RouterGradient : public testing::TestWithParam<Case> {
 protected:
  Rng rng{53, 1};
};

// Pair (t, k) has its row at a shuffled place; some pairs have none.
TEST_P(RouterGradient, MatchesComplexStep) {
  const Case& c = GetParam();
  const int64_t pairs = c.tokens * c.top_k;
  std::vector<Variable> in = inputs_of(c, rng);
  const Forward forward = [&](Dtype d, const std::vector<ConstTensor>& x) {
    Routing r(d, c.tokens, c.top_k);
    route(x, r);
    Tensors out;
    out.push_back(std::move(r.weights));
    return out;
  };
  Routing r(Dtype::f64, c.tokens, c.top_k);
  route({in[0].value.get(), in[1].value.get(), in[2].value.get(), in[3].value.get()}, r);
  Tensors dy;
  dy.push_back(random(Dtype::f64, {c.tokens, c.top_k}, rng));
  const OwnedTensor pair_row = zeros(Dtype::i32, {c.tokens, c.top_k});
  const OwnedTensor rows = poisoned(Dtype::f64, {pairs + 2});
  const Tensor drow_weight = rows->slice(0, 1, pairs + 1);  // row -1 is NaN too
  for (int64_t p = 0; p < pairs; ++p) {
    const bool dropped = p / c.top_k == 1;  // all pairs of token 1, as for a padded token
    set(pair_row.get(), p, dropped ? -1.0 : static_cast<double>(pairs - p));
    if (dropped) set(dy[0].get(), p, 0.0);
    set(drow_weight, pairs - p, at(dy[0].get(), p));
  }
  Context ctx = ref_context();
  ops::router_bwd(ctx, {.u = in[0].value.get(),
                        .scale = in[1].value.get(),
                        .proj = in[2].value.get(),
                        .per_expert_scale = in[3].value.get(),
                        .rstd = r.rstd.get(),
                        .indices = r.indices.get(),
                        .shares = r.shares.get(),
                        .pair_row = pair_row.get(),
                        .drow_weight = drow_weight,
                        .du = in[0].grad.get(),
                        .dscale = in[1].grad.get(),
                        .dproj = in[2].grad.get(),
                        .dper_expert_scale = in[3].grad.get()});
  expect_gradients(in, dy, forward, rng);
  const OwnedTensor du = cast(in[0].start.get(), Dtype::f64);
  ops::router_bwd(ctx, {.u = in[0].value.get(),
                        .scale = in[1].value.get(),
                        .proj = in[2].value.get(),
                        .per_expert_scale = in[3].value.get(),
                        .rstd = r.rstd.get(),
                        .indices = r.indices.get(),
                        .shares = r.shares.get(),
                        .pair_row = pair_row.get(),
                        .drow_weight = drow_weight,
                        .du = du.get()});
  EXPECT_TRUE(same_bits(du.get(), in[0].grad.get())) << "frozen parameters";
}

// Shares sum to one, p_k / sum of the selected p with the softmax over all experts, and the scale
// of an expert multiplies afterwards.
TEST_P(RouterGradient, ForwardByTheFormula) {
  const Case& c = GetParam();
  const std::vector<Variable> in = inputs_of(c, rng);
  const auto value = [&](size_t i, int64_t n) { return at(in[i].value.get(), n); };
  Routing r(Dtype::f64, c.tokens, c.top_k);
  route({in[0].value.get(), in[1].value.get(), in[2].value.get(), in[3].value.get()}, r);
  for (int64_t t = 0; t < c.tokens; ++t) {
    double square = 0.0;
    for (int64_t j = 0; j < c.hidden; ++j) square += std::pow(value(0, t * c.hidden + j), 2);
    const double rstd = std::pow(square / static_cast<double>(c.hidden) + 1e-6, -0.5);
    EXPECT_NEAR(at(r.rstd.get(), t) / rstd, 1.0, 1e-14);
    std::vector<double> p;
    for (int64_t e = 0; e < c.experts; ++e) {
      double l = 0.0;
      for (int64_t j = 0; j < c.hidden; ++j) {
        l += value(0, t * c.hidden + j) * rstd * value(1, j) * value(2, e * c.hidden + j);
      }
      p.push_back(std::exp(l / std::sqrt(static_cast<double>(c.hidden))));
    }
    double selected = 0.0;
    for (int64_t k = 0; k < c.top_k; ++k) {
      selected += p[static_cast<size_t>(at(r.indices.get(), t * c.top_k + k))];
    }
    double previous = INFINITY;
    for (int64_t k = 0; k < c.top_k; ++k) {
      const auto e = static_cast<int64_t>(at(r.indices.get(), t * c.top_k + k));
      const double pe = p[static_cast<size_t>(e)];
      const auto larger = std::count_if(p.begin(), p.end(), [&](double q) { return q > pe; });
      EXPECT_EQ(larger, k) << "not the expert of this rank";
      EXPECT_LT(pe, previous);
      previous = pe;
      EXPECT_NEAR(at(r.shares.get(), t * c.top_k + k), pe / selected, 1e-13);
      EXPECT_NEAR(at(r.weights.get(), t * c.top_k + k), pe / selected * value(3, e), 1e-13);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, RouterGradient,
                         testing::Values(Case{1, 5, 1, 1}, Case{1, 8, 4, 1}, Case{6, 8, 4, 4},
                                         Case{7, 9, 5, 2}, Case{5, 16, 16, 3}));

TEST(Router, TiesTakeTheLowestId) {
  const OwnedTensor u = from_values(Dtype::f64, {1, 2}, {1, 1});
  const OwnedTensor scale = from_values(Dtype::f64, {2}, {1, 1});
  const OwnedTensor proj = from_values(Dtype::f64, {4, 2}, {0, 0, 1, 1, 0, 2, 2, 0});
  const OwnedTensor per_expert = from_values(Dtype::f64, {4}, {1, 2, 3, 4});
  Routing r(Dtype::f64, 1, 2);
  route({u.get(), scale.get(), proj.get(), per_expert.get()}, r);
  EXPECT_EQ(values(r.indices.get()), (std::vector<double>{1, 2}));
  EXPECT_EQ(values(r.shares.get()), (std::vector<double>{0.5, 0.5}));
  EXPECT_EQ(values(r.weights.get()), (std::vector<double>{1.0, 1.5}));
}

// Recomputation keeps the given experts even where others would win now.
TEST(Router, GivenIndices) {
  Rng rng(59);
  const Case c{3, 6, 5, 2};
  const std::vector<Variable> in = inputs_of(c, rng);
  const std::vector<ConstTensor> x = {in[0].value.get(), in[1].value.get(), in[2].value.get(),
                                      in[3].value.get()};
  Routing chosen(Dtype::f64, 3, 2), again(Dtype::f64, 3, 2), forced(Dtype::f64, 3, 2);
  route(x, chosen);
  copy(chosen.indices.get(), again.indices.get());
  route(x, again, false);
  EXPECT_TRUE(same_bits(again.indices.get(), chosen.indices.get()));
  EXPECT_TRUE(same_bits(again.weights.get(), chosen.weights.get()));
  const OwnedTensor ids = from_values(Dtype::i32, {3, 2}, {4, 0, 0, 4, 3, 1});
  copy(ids.get(), forced.indices.get());
  route(x, forced, false);
  EXPECT_TRUE(same_bits(forced.indices.get(), ids.get()));
  for (int64_t t = 0; t < 3; ++t) {
    EXPECT_NEAR(at(forced.shares.get(), 2 * t) + at(forced.shares.get(), 2 * t + 1), 1.0, 1e-15);
  }
}

// Large logits neither overflow nor divide zero by zero.
TEST(Router, LargeLogits) {
  const OwnedTensor u = from_values(Dtype::f64, {1, 1}, {1});
  const OwnedTensor scale = from_values(Dtype::f64, {1}, {1e4});
  const OwnedTensor proj = from_values(Dtype::f64, {3, 1}, {1, -1, 0.5});
  const OwnedTensor per_expert = from_values(Dtype::f64, {3}, {1, 1, 1});
  Routing r(Dtype::f64, 1, 2);
  route({u.get(), scale.get(), proj.get(), per_expert.get()}, r);
  EXPECT_EQ(values(r.indices.get()), (std::vector<double>{0, 2}));
  EXPECT_EQ(values(r.weights.get()), (std::vector<double>{1, 0}));
}

}  // namespace
}  // namespace lapidary::test
