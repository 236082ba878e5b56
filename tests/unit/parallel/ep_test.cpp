#include "lapidary/parallel/ep.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <numeric>
#include <ostream>

#include "lapidary/core/error.h"
#include "tests/support/tensors.h"
#include "tests/support/thread_group.h"

// Rows travel to the ranks of their experts and back.
namespace lapidary::test {
namespace {

constexpr int64_t kRowBytes = 8;  // of one f64
constexpr int64_t kWidth = 3;

struct Case {
  int64_t ranks, experts, top_k;
  std::vector<int64_t> tokens;  // of each rank
  bool masked = false;
};

void PrintTo(const Case& c, std::ostream* out) {
  *out << c.ranks << " ranks, " << c.experts << " experts, top " << c.top_k << ", tokens";
  for (const int64_t n : c.tokens) *out << ' ' << n;
  if (c.masked) *out << ", masked";
}

// What one rank routes, the same whoever asks.
struct Tokens {
  OwnedTensor indices, weights, valid, x;
  Tokens(const Case& c, int64_t rank) {
    Rng rng(40, static_cast<uint64_t>(rank));
    const int64_t tokens = c.tokens[static_cast<size_t>(rank)];
    indices = zeros(Dtype::i32, {tokens, c.top_k});
    std::vector<int32_t> all(static_cast<size_t>(c.experts));
    std::iota(all.begin(), all.end(), 0);
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t k = 0; k < c.top_k; ++k) {
        std::swap(all[static_cast<size_t>(k)],
                  all[static_cast<size_t>(k + rng.below(c.experts - k))]);
        indices->as<int32_t>()[t * c.top_k + k] = all[static_cast<size_t>(k)];
      }
    }
    weights = random(Dtype::f64, {tokens, c.top_k}, rng);
    valid = random_int(Dtype::u8, {tokens}, rng, 0, 3);
    x = random(Dtype::f64, {tokens, kWidth}, rng);
  }
  bool goes(const Case& c, int64_t t) const { return !c.masked || at(valid.get(), t) != 0.0; }
  // Experts of token t on a rank, slot by slot: the local id or -1.
  std::vector<int64_t> on(const Case& c, int64_t rank, int64_t t) const {
    std::vector<int64_t> out;
    const Interval here = dealt(c.experts, c.ranks, rank);
    for (int64_t k = 0; k < c.top_k; ++k) {
      const auto e = static_cast<int64_t>(at(indices.get(), t * c.top_k + k));
      out.push_back(e >= here.begin && e < here.end ? e - here.begin : -1);
    }
    return out;
  }
  bool goes_to(const Case& c, int64_t rank, int64_t t) const {
    const std::vector<int64_t> ids = on(c, rank, t);
    return goes(c, t) && std::any_of(ids.begin(), ids.end(), [](int64_t e) { return e >= 0; });
  }
};

class Exchange : public testing::TestWithParam<Case> {
 protected:
  struct Arrived {
    std::vector<int64_t> ids;
    std::vector<double> weights, x;
    int64_t pairs = 0;
  };
  // By the definition, one token after the other.
  Arrived expected(int64_t rank) const {
    Arrived out;
    for (int64_t from = 0; from < c.ranks; ++from) {
      const Tokens tokens(c, from);
      for (int64_t t = 0; t < tokens.x->dim(0); ++t) {
        if (!tokens.goes_to(c, rank, t)) continue;
        const std::vector<int64_t> ids = tokens.on(c, rank, t);
        for (size_t k = 0; k < ids.size(); ++k) {
          const auto pair = t * c.top_k + static_cast<int64_t>(k);
          out.ids.push_back(ids[k]);
          out.weights.push_back(ids[k] < 0 ? 0.0 : at(tokens.weights.get(), pair));
          out.pairs += ids[k] < 0 ? 0 : 1;
        }
        for (int64_t j = 0; j < kWidth; ++j) {
          out.x.push_back(at(tokens.x.get(), t * kWidth + j));
        }
      }
    }
    return out;
  }
  // Rows that leave rank `from` for others.
  int64_t leaving(int64_t from) const {
    const Tokens tokens(c, from);
    int64_t rows = 0;
    for (int64_t to = 0; to < c.ranks; ++to) {
      for (int64_t t = 0; to != from && t < tokens.x->dim(0); ++t) {
        rows += tokens.goes_to(c, to, t) ? 1 : 0;
      }
    }
    return rows;
  }
  // Rows that come to rank `to` from others.
  int64_t coming(int64_t to) const {
    int64_t rows = 0;
    for (int64_t from = 0; from < c.ranks; ++from) {
      const Tokens tokens(c, from);
      for (int64_t t = 0; from != to && t < tokens.x->dim(0); ++t) {
        rows += tokens.goes_to(c, to, t) ? 1 : 0;
      }
    }
    return rows;
  }
  static Context context() {
    Context ctx = Context::make(Backend::ref, {1 << 20, 1 << 20});
    ctx.activations.set_poison(true);
    ctx.scratch.set_poison(true);
    return ctx;
  }
  ExpertParallel::Plan planned(Context& ctx, const ExpertParallel& ep, const Tokens& t) const {
    ExpertParallel::Plan plan = ep.alloc(ctx, t.x->dim(0), c.top_k, Dtype::f64);
    ep.plan(ctx,
            {.indices = t.indices.get(),
             .weights = t.weights.get(),
             .token_valid = c.masked ? ConstTensor(t.valid.get()) : ConstTensor()},
            plan);
    return plan;
  }
  static Tensor dispatch(Context& ctx, const ExpertParallel& ep, const ExpertParallel::Plan& plan,
                         const ConstTensor& x) {
    const Tensor out = ctx.activations.alloc(x.dtype(), {plan.received(), x.dim(1)});
    const Tensor sent = ctx.activations.alloc(x.dtype(), {plan.sent(), x.dim(1)});
    ep.start_dispatch(ctx, plan, x, sent, out).wait();
    return out;
  }
  const Case c = GetParam();
};

TEST_P(Exchange, BringsEachTokenOnceWithItsExperts) {
  run_ranks(c.ranks, [&](int64_t rank, const SplitWorld& split) {
    const auto group = split(0, "ep");
    const ExpertParallel ep(group.get(), c.experts);
    Context ctx = context();
    const Tokens tokens(c, rank);
    const ExpertParallel::Plan plan = planned(ctx, ep, tokens);
    const Tensor rows = dispatch(ctx, ep, plan, tokens.x.get());
    const Arrived want = expected(rank);
    const std::vector<double> ids(want.ids.begin(), want.ids.end());
    EXPECT_EQ(values(plan.ids), ids);
    EXPECT_EQ(values(plan.weights), want.weights);
    EXPECT_EQ(values(rows), want.x);
    EXPECT_EQ(plan.pairs, want.pairs);
  });
}

// <A x, y> = <x, A^T y>, over all ranks.
TEST_P(Exchange, DispatchAndCombineAreAdjoint) {
  run_ranks(c.ranks, [&](int64_t rank, const SplitWorld& split) {
    const auto group = split(0, "ep");
    const ExpertParallel ep(group.get(), c.experts);
    Context ctx = context();
    const Tokens tokens(c, rank);
    const ExpertParallel::Plan plan = planned(ctx, ep, tokens);
    const Tensor rows = dispatch(ctx, ep, plan, tokens.x.get());
    Rng rng(41, static_cast<uint64_t>(rank));
    const OwnedTensor y = random(Dtype::f64, rows.shape(), rng);
    const OwnedTensor back = poisoned(Dtype::f64, tokens.x->shape());
    const Tensor returned = ctx.scratch.alloc(Dtype::f64, {plan.sent(), kWidth});
    ep.combine(ctx, plan, y.get(), returned, back.get());
    std::array<double, 2> products{};
    for (int64_t i = 0; i < rows.numel(); ++i) products[0] += at(rows, i) * at(y.get(), i);
    for (int64_t i = 0; i < back->numel(); ++i) {
      products[1] += at(tokens.x.get(), i) * at(back.get(), i);
    }
    group->all_reduce(products);
    EXPECT_NEAR(products[0], products[1], 1e-12);
  });
}

TEST_P(Exchange, SendsWhatLeavesAndNothingElse) {
  run_ranks(c.ranks, [&](int64_t rank, const SplitWorld& split) {
    const auto group = split(0, "ep");
    const ExpertParallel ep(group.get(), c.experts);
    Context ctx = context();
    const Tokens tokens(c, rank);
    const auto sent = [&] {
      const int64_t bytes = group->traffic(Collective::all_to_all_v).bytes;
      group->reset_traffic();
      return bytes;
    };
    const ExpertParallel::Plan plan = planned(ctx, ep, tokens);
    EXPECT_EQ(sent(), 8 * (c.ranks - 1) + leaving(rank) * c.top_k * (4 + 8));
    const Tensor rows = dispatch(ctx, ep, plan, tokens.x.get());
    EXPECT_EQ(sent(), leaving(rank) * kWidth * kRowBytes);
    const OwnedTensor back = poisoned(Dtype::f64, tokens.x->shape());
    const Tensor returned = ctx.scratch.alloc(Dtype::f64, {plan.sent(), kWidth});
    ep.combine(ctx, plan, rows, returned, back.get());
    EXPECT_EQ(sent(), coming(rank) * kWidth * kRowBytes);
    EXPECT_TRUE(all_finite(back.get()));
  });
}

INSTANTIATE_TEST_SUITE_P(Cases, Exchange,
                         testing::Values(Case{2, 4, 2, {5, 7}}, Case{2, 2, 1, {0, 9}},
                                         Case{3, 5, 3, {4, 0, 6}, true}, Case{3, 5, 5, {1, 8, 3}},
                                         Case{4, 7, 2, {6, 6, 0, 11}, true},
                                         Case{4, 4, 4, {0, 0, 0, 0}},
                                         Case{5, 128, 8, {20, 3, 1, 17, 30}, true}));

TEST(ExpertParallel, ExpertsBelongToTheRankTheyAreDealtTo) {
  for (int64_t experts = 1; experts <= 20; ++experts) {
    for (int64_t ranks = 1; ranks <= experts; ++ranks) {
      for (int64_t e = 0; e < experts; ++e) {
        const Interval part = dealt(experts, ranks, dealt_to(experts, ranks, e));
        EXPECT_TRUE(part.begin <= e && e < part.end) << e << " of " << experts << ", " << ranks;
      }
    }
  }
}

TEST(ExpertParallel, OneRankExchangesNothing) {
  SelfGroup alone;
  for (ProcessGroup* group :
       {static_cast<ProcessGroup*>(&alone), static_cast<ProcessGroup*>(nullptr)}) {
    const ExpertParallel ep(group, 6);
    EXPECT_FALSE(ep.active());
    EXPECT_EQ(ep.experts(), (Interval{0, 6}));
    EXPECT_EQ(ep.top_k_here(2), 2);
  }
}

TEST(ExpertParallel, RefusesMoreRanksThanExperts) {
  run_ranks(3, [&](int64_t, const SplitWorld& split) {
    const auto group = split(0, "ep");
    EXPECT_THROW(ExpertParallel(group.get(), 2), Error);
  });
}

TEST(ExpertParallel, RefusesGpusAndForeignExperts) {
  run_ranks(2, [&](int64_t, const SplitWorld& split) {
    const auto group = split(0, "ep");
    const ExpertParallel ep(group.get(), 2);
    Context gpu = Context::meta(Backend::cuda);
    EXPECT_THROW(ep.alloc(gpu, 4, 1, Dtype::f32), Error);
    Context ctx = Context::make(Backend::ref, {1 << 16, 1 << 16});
    const OwnedTensor indices = from_values(Dtype::i32, {1, 1}, {2.0});
    const OwnedTensor weights = zeros(Dtype::f32, {1, 1});
    ExpertParallel::Plan plan = ep.alloc(ctx, 1, 1, Dtype::f32);
    EXPECT_THROW(ep.plan(ctx, {.indices = indices.get(), .weights = weights.get()}, plan), Error);
  });
}

}  // namespace
}  // namespace lapidary::test
