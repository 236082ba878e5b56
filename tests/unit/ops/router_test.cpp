#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <set>

#include "lapidary/core/error.h"
#include "lapidary/ops/moe.h"
#include "tests/unit/ops/against_ref.h"

namespace lapidary::test {
namespace {

struct Size {
  int64_t tokens, hidden, experts, top_k;
};
const Size kSizes[] = {{1, 1, 1, 1},    {0, 4, 3, 2},      {5, 33, 7, 7},
                       {300, 24, 9, 3}, {70, 200, 128, 8}, {21, 1408, 128, 8}};

// Logits are sums of `hidden` products of the order of 1, and a share's relative error is the
// absolute one of its logits.
double share_tolerance(const Size& s) { return 4.0 * tolerance(Dtype::f32, s.hidden); }

void check_forward(Dtype d, bool strided, const Size& s, bool select, Rng& rng) {
  Call call(d, strided);
  const int u = call.input(random(Dtype::f64, {s.tokens, s.hidden}, rng, 3.0));
  const int scale = call.input(random(Dtype::f64, {s.hidden}, rng, 0.3, 1.0));
  const int proj = call.input(random(Dtype::f64, {s.experts, s.hidden}, rng));
  const int expert_scale = call.input(random(Dtype::f64, {s.experts}, rng, 0.1, 1.0));
  const int rstd = call.written_acc("rstd", {s.tokens}, tolerance(Dtype::f32, s.hidden));
  const Shape pairs = {s.tokens, s.top_k};
  const int indices = select ? call.written_integers("indices", Dtype::i32, pairs)
                             : call.integers(random_int(Dtype::i32, pairs, rng, 0, s.experts));
  const int shares = call.written_acc("shares", pairs, share_tolerance(s));
  const int weights = call.written_acc("weights", pairs, share_tolerance(s));
  call.compare(
      [=](Context& ctx, const Call::Args& t) {
        ops::router(ctx, {.u = t[u],
                          .scale = t[scale],
                          .proj = t[proj],
                          .per_expert_scale = t[expert_scale],
                          .rstd = t[rstd],
                          .indices = t[indices],
                          .shares = t[shares],
                          .weights = t[weights],
                          .select = select});
      },
      false);
}

TEST(CpuRouter, Forward) {
  Rng rng(181);
  for_each_form([&](Dtype d, bool strided) {
    for (const Size& s : kSizes) {
      check_forward(d, strided, s, true, rng);
      check_forward(d, strided, s, false, rng);
    }
  });
}

struct Routed {
  OwnedTensor u, scale, proj, expert_scale, indices, shares, weights;
  Routed(const Size& s, Dtype d, Rng& rng)
      : u(random(d, {s.tokens, s.hidden}, rng)),
        scale(random(d, {s.hidden}, rng)),
        proj(random(d, {s.experts, s.hidden}, rng)),
        expert_scale(random(d, {s.experts}, rng)),
        indices(poisoned(Dtype::i32, {s.tokens, s.top_k})),
        shares(poisoned(Dtype::f32, {s.tokens, s.top_k})),
        weights(poisoned(Dtype::f32, {s.tokens, s.top_k})) {}
  void run(bool select) const {
    Context ctx = Context::make(Backend::cpu, {0, 1 << 24});
    ops::router(ctx, {.u = u.get(),
                      .scale = scale.get(),
                      .proj = proj.get(),
                      .per_expert_scale = expert_scale.get(),
                      .indices = indices.get(),
                      .shares = shares.get(),
                      .weights = weights.get(),
                      .select = select});
  }
};

TEST(CpuRouter, TiesGoToTheLowestId) {
  Rng rng(182);
  const Routed r({3, 5, 6, 4}, Dtype::f32, rng);
  fill(r.proj.get(), 0.0);
  r.run(true);
  for (int64_t i = 0; i < 12; ++i) {
    EXPECT_EQ(at(r.indices.get(), i), static_cast<double>(i % 4));
    EXPECT_EQ(at(r.shares.get(), i), 0.25);
  }
}

TEST(CpuRouter, RecomputationHasTheSameBits) {
  Rng rng(183);
  const Routed r({300, 64, 16, 4}, Dtype::bf16, rng);
  r.run(true);
  const OwnedTensor shares = cast(r.shares.get(), Dtype::f32);
  const OwnedTensor indices = cast(r.indices.get(), Dtype::i32);
  fill(r.shares.get(), 0.0);
  r.run(false);
  EXPECT_TRUE(same_bits(r.shares.get(), shares.get()));
  EXPECT_TRUE(same_bits(r.indices.get(), indices.get()));
}

TEST(CpuRouter, BrokenNumbersChooseValidExperts) {
  Rng rng(184);
  const Routed r({2, 4, 5, 3}, Dtype::f32, rng);
  fill(r.u->slice(0, 0, 1), std::numeric_limits<double>::quiet_NaN());
  r.run(true);
  for (int64_t t = 0; t < 2; ++t) {
    std::set<double> chosen;
    for (int64_t j = 0; j < 3; ++j) chosen.insert(at(r.indices.get(), t * 3 + j));
    EXPECT_EQ(chosen.size(), 3U);
    EXPECT_GE(*chosen.begin(), 0.0);
    EXPECT_LT(*chosen.rbegin(), 5.0);
  }
}

TEST(CpuRouter, RefusesForeignExperts) {
  Rng rng(185);
  const Routed r({2, 4, 5, 3}, Dtype::f32, rng);
  fill(r.indices.get(), 5.0);
  EXPECT_THROW(r.run(false), Error);
}

// frozen: no gradient of parameters is wanted.
void check_backward(Dtype d, bool strided, const Size& s, bool frozen, Rng& rng) {
  Call call(d, strided);
  const Shape pairs = {s.tokens, s.top_k};
  const int64_t rows = s.tokens * s.top_k;
  const int u = call.input(random(Dtype::f64, {s.tokens, s.hidden}, rng, 2.0));
  const int scale = call.input(random(Dtype::f64, {s.hidden}, rng, 0.3, 1.0));
  const int proj = call.input(random(Dtype::f64, {s.experts, s.hidden}, rng));
  const int expert_scale = call.input(random(Dtype::f64, {s.experts}, rng, 0.1, 1.0));
  const int rstd = call.input_acc(random(Dtype::f64, {s.tokens}, rng, 0.05, 0.5));
  OwnedTensor choice = zeros(Dtype::i32, pairs), row = zeros(Dtype::i32, pairs);
  for (int64_t i = 0; i < rows; ++i) {  // different experts in a token; some pairs without a row
    set(choice.get(), i, static_cast<double>((i / s.top_k * 5 + i % s.top_k) % s.experts));
    set(row.get(), i, rng.below(5) == 0 ? -1.0 : static_cast<double>(rng.below(rows)));
  }
  const int indices = call.integers(choice), pair_row = call.integers(row);
  const double share = 1.0 / static_cast<double>(s.top_k);
  const int shares = call.input_acc(random(Dtype::f64, pairs, rng, 0.1 * share, share));
  const int drow = call.input_acc(random(Dtype::f64, {rows}, rng));
  const int du = call.added("du", random(Dtype::f64, {s.tokens, s.hidden}, rng),
                            tolerance(d, s.hidden + s.top_k));
  int dscale = -1, dproj = -1, dexpert = -1;
  if (!frozen) {
    const double tol = tolerance(Dtype::f32, s.tokens * s.top_k);
    dscale = call.added_acc("dscale", random(Dtype::f64, {s.hidden}, rng), tol);
    dproj = call.added_acc("dproj", random(Dtype::f64, {s.experts, s.hidden}, rng), tol);
    dexpert = call.added_acc("dper_expert_scale", random(Dtype::f64, {s.experts}, rng), tol);
  }
  call.compare(
      [=](Context& ctx, const Call::Args& t) {
        ops::router_bwd(ctx, {.u = t[u],
                              .scale = t[scale],
                              .proj = t[proj],
                              .per_expert_scale = t[expert_scale],
                              .rstd = t[rstd],
                              .indices = t[indices],
                              .shares = t[shares],
                              .pair_row = t[pair_row],
                              .drow_weight = t[drow],
                              .du = t[du],
                              .dscale = t[dscale],
                              .dproj = t[dproj],
                              .dper_expert_scale = t[dexpert]});
      },
      false);
}

TEST(CpuRouter, Backward) {
  Rng rng(186);
  for_each_form([&](Dtype d, bool strided) {
    for (const Size& s : kSizes) {
      check_backward(d, strided, s, true, rng);
      check_backward(d, strided, s, false, rng);
    }
  });
}

}  // namespace
}  // namespace lapidary::test
