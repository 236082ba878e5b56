#include "lapidary/ops/moe.h"

#include <gtest/gtest.h>

#include <set>

#include "lapidary/ops/glu.h"
#include "tests/gradcheck/complex_step.h"

namespace lapidary::test {
namespace {

struct Case {
  int64_t tokens, top_k, experts, align;
  int64_t idle = 0;  // experts without tokens, at the front
};

// Distinct experts for each token; with `c.idle` the first ones are never chosen.
OwnedTensor random_experts(const Case& c, Rng& rng) {
  OwnedTensor indices = zeros(Dtype::i32, {c.tokens, c.top_k});
  for (int64_t t = 0; t < c.tokens; ++t) {
    std::set<int64_t> taken;
    while (static_cast<int64_t>(taken.size()) < c.top_k) {
      const int64_t e = c.idle + rng.below(c.experts - c.idle);
      if (taken.insert(e).second) {
        set(indices.get(), t * c.top_k + static_cast<int64_t>(taken.size()) - 1,
            static_cast<double>(e));
      }
    }
  }
  return indices;
}

struct Sorted {
  OwnedTensor counts, offsets, row_token, row_weight, pair_row, loads;
  int64_t rows;

  Sorted(const Case& c, const ConstTensor& indices, const ConstTensor& weights,
         const ConstTensor& valid)
      : counts(poisoned(Dtype::i32, {c.experts})),
        offsets(poisoned(Dtype::i32, {c.experts + 1})),
        loads(from_values(Dtype::i64, {c.experts},
                          std::vector<double>(static_cast<size_t>(c.experts), 100.0))),
        rows(ops::max_sorted_rows(c.tokens, c.top_k, c.experts, c.align)) {
    row_token = poisoned(Dtype::i32, {rows});
    row_weight = poisoned(weights.dtype(), {rows});
    pair_row = poisoned(Dtype::i32, {c.tokens, c.top_k});
    Context ctx = ref_context();
    ops::moe_sort(ctx, {.indices = indices,
                        .weights = weights,
                        .token_valid = valid,
                        .align = c.align,
                        .counts = counts.get(),
                        .offsets = offsets.get(),
                        .row_token = row_token.get(),
                        .row_weight = row_weight.get(),
                        .pair_row = pair_row.get(),
                        .loads = loads.get()});
  }
  int64_t used() const { return static_cast<int64_t>(at(offsets.get(), offsets->numel() - 1)); }
};

class Moe : public testing::TestWithParam<Case> {
 protected:
  Context ctx = ref_context();
  Rng rng{61, 1};
  const Case c = GetParam();
  OwnedTensor indices = random_experts(c, rng);
  OwnedTensor weights = random(Dtype::f64, {c.tokens, c.top_k}, rng);
  OwnedTensor valid = random_int(Dtype::u8, {c.tokens}, rng, 0, 4);  // 0: a quarter of the tokens

  static int64_t whole(const OwnedTensor& t, int64_t i) {
    return static_cast<int64_t>(at(t.get(), i));
  }
};

TEST_P(Moe, SortIsAStablePermutation) {
  for (const bool masked : {false, true}) {
    const Sorted s(c, indices.get(), weights.get(),
                   masked ? ConstTensor(valid.get()) : ConstTensor());
    std::vector<std::vector<int64_t>> pairs(static_cast<size_t>(c.experts));
    for (int64_t p = 0; p < c.tokens * c.top_k; ++p) {
      if (masked && at(valid.get(), p / c.top_k) == 0.0) {
        EXPECT_EQ(whole(s.pair_row, p), -1);
      } else {
        pairs[static_cast<size_t>(whole(indices, p))].push_back(p);
      }
    }
    std::vector<bool> filled(static_cast<size_t>(s.rows));
    int64_t start = 0;
    for (int64_t e = 0; e < c.experts; ++e) {
      const auto& mine = pairs[static_cast<size_t>(e)];
      const auto count = static_cast<int64_t>(mine.size());
      EXPECT_EQ(whole(s.offsets, e), start);
      EXPECT_EQ(start % c.align, 0);
      EXPECT_EQ(whole(s.counts, e), count);
      EXPECT_EQ(whole(s.loads, e), 100 + count);
      for (int64_t n = 0; n < count; ++n) {
        const int64_t p = mine[static_cast<size_t>(n)], r = start + n;
        EXPECT_EQ(whole(s.pair_row, p), r);
        EXPECT_EQ(whole(s.row_token, r), p / c.top_k);
        EXPECT_EQ(at(s.row_weight.get(), r), at(weights.get(), p));
        filled[static_cast<size_t>(r)] = true;
      }
      start = (start + count + c.align - 1) / c.align * c.align;
    }
    EXPECT_EQ(s.used(), start);
    EXPECT_LE(start, s.rows);
    for (int64_t r = 0; r < s.rows; ++r) {
      if (filled[static_cast<size_t>(r)]) continue;
      EXPECT_EQ(whole(s.row_token, r), -1);
      EXPECT_EQ(at(s.row_weight.get(), r), 0.0);
    }
  }
}

// <gather x, y> = <x, combine y>
TEST_P(Moe, GatherAndCombineAreAdjoint) {
  const Sorted s(c, indices.get(), weights.get(), valid.get());
  const int64_t width = 5;
  const OwnedTensor x = random(Dtype::f64, {c.tokens, width}, rng);
  const OwnedTensor y = random(Dtype::f64, {s.rows, width}, rng);
  const OwnedTensor gathered = poisoned(Dtype::f64, {s.rows, width});
  ops::moe_gather(ctx, {.x = x.get(),
                        .row_token = s.row_token.get(),
                        .offsets = s.offsets.get(),
                        .out = gathered.get()});
  const OwnedTensor combined = poisoned(Dtype::f64, {c.tokens, width});
  ops::moe_combine(ctx, {.y = y.get(), .pair_row = s.pair_row.get(), .out = combined.get()});
  const Tensor used = gathered->slice(0, 0, s.used());
  EXPECT_TRUE(all_finite(used));
  EXPECT_TRUE(all_finite(combined.get()));
  EXPECT_NEAR(inner(used, y->slice(0, 0, s.used())), inner(x.get(), combined.get()), 1e-12);
  for (int64_t r = 0; r < s.used(); ++r) {
    const int64_t t = whole(s.row_token, r);
    for (int64_t j = 0; j < width; ++j) {
      EXPECT_EQ(at(used, r * width + j), t < 0 ? 0.0 : at(x.get(), t * width + j));
    }
  }
  const Spread sum = spread(x.get()), sy = spread(y.get());
  ops::moe_combine(
      ctx, {.y = sy.view, .pair_row = s.pair_row.get(), .out = sum.view, .accumulate = true});
  for (int64_t i = 0; i < x->numel(); ++i) {
    EXPECT_NEAR(at(sum.view, i), at(x.get(), i) + at(combined.get(), i), 1e-14);
  }
}

// Both forms of the product and its two gradients: out = a b^T and out = a b.
TEST_P(Moe, GroupedProducts) {
  const Sorted s(c, indices.get(), weights.get(), valid.get());
  const int64_t k = 4, n = 3;
  for (const bool trans : {true, false}) {
    OwnedTensor a = random(Dtype::f64, {s.rows, k}, rng);
    for (int64_t i = 0; i < a->numel(); ++i) {
      if (whole(s.row_token, i / k) < 0) set(a.get(), i, 0.0);
    }
    const Shape shape = trans ? Shape{c.experts, n, k} : Shape{c.experts, k, n};
    std::vector<Variable> in =
        variables(written("a", std::move(a)), added("b", random(Dtype::f64, shape, rng), rng));
    const Forward forward = [&](Dtype d, const std::vector<ConstTensor>& x) {
      Tensors out;
      out.push_back(zeros(d, {s.rows, n}));
      ops::grouped_matmul(ctx, {.a = x[0],
                                .b = x[1],
                                .counts = s.counts.get(),
                                .offsets = s.offsets.get(),
                                .out = out[0].get(),
                                .trans_b = trans});
      return out;
    };
    Tensors dy;
    dy.push_back(random(Dtype::f64, {s.rows, n}, rng));
    for (int64_t i = 0; i < dy[0]->numel(); ++i) {
      if (whole(s.row_token, i / n) < 0) set(dy[0].get(), i, 0.0);
    }
    ops::grouped_matmul(ctx, {.a = dy[0].get(),
                              .b = in[1].value.get(),
                              .counts = s.counts.get(),
                              .offsets = s.offsets.get(),
                              .out = in[0].grad.get(),
                              .trans_b = !trans});
    for (int64_t i = s.used() * k; i < s.rows * k; ++i) set(in[0].grad.get(), i, 0.0);
    ops::grouped_matmul_wgrad(ctx, {.dy = trans ? dy[0].get() : in[0].value.get(),
                                    .x = trans ? in[0].value.get() : dy[0].get(),
                                    .counts = s.counts.get(),
                                    .offsets = s.offsets.get(),
                                    .dw = in[1].grad.get()});
    for (int64_t e = 0; e < c.experts; ++e) {
      if (whole(s.counts, e) > 0) continue;
      EXPECT_TRUE(same_bits(in[1].grad->slice(0, e, 1), in[1].start->slice(0, e, 1)));
    }
    expect_gradients(in, dy, forward, rng);
  }
}

// The expert path: out_t = sum_k w_k (g(x GATE^T) (x UP^T)) DOWN^T.
class Experts : public Moe {
 protected:
  const int64_t hidden = 4, wide = 3;

  void product(const Sorted& s, const ConstTensor& a, const ConstTensor& b, const Tensor& out,
               bool trans_b) {
    ops::grouped_matmul(ctx, {.a = a,
                              .b = b,
                              .counts = s.counts.get(),
                              .offsets = s.offsets.get(),
                              .out = out,
                              .trans_b = trans_b});
  }
  void wgrad(const Sorted& s, const ConstTensor& dy, const ConstTensor& x, const Tensor& dw) {
    ops::grouped_matmul_wgrad(
        ctx, {.dy = dy, .x = x, .counts = s.counts.get(), .offsets = s.offsets.get(), .dw = dw});
  }
  void gather(const Sorted& s, const ConstTensor& x, const Tensor& out) {
    ops::moe_gather(
        ctx, {.x = x, .row_token = s.row_token.get(), .offsets = s.offsets.get(), .out = out});
  }

  // Inputs: x, gate_up, down, weights. Outputs: out, and saved: gathered x, gate and up, h
  // weighted.
  Tensors forward(Dtype d, const std::vector<ConstTensor>& x) {
    const Sorted s(c, indices.get(), x[3], valid.get());
    Tensors out;
    out.push_back(poisoned(d, {c.tokens, hidden}));
    out.push_back(zeros(d, {s.rows, hidden}));
    out.push_back(zeros(d, {s.rows, 2 * wide}));
    out.push_back(zeros(d, {s.rows, wide}));
    const OwnedTensor y = zeros(d, {s.rows, hidden});
    gather(s, x[0], out[1].get());
    product(s, out[1].get(), x[1], out[2].get(), true);
    ops::geglu(ctx, {.gate = out[2]->slice(1, 0, wide),
                     .up = out[2]->slice(1, wide, wide),
                     .row_weight = s.row_weight.get(),
                     .h = out[3].get()});
    product(s, out[3].get(), x[2], y.get(), true);
    ops::moe_combine(ctx, {.y = y.get(), .pair_row = s.pair_row.get(), .out = out[0].get()});
    return out;
  }

  // The gradient of the routing weight comes from h and the gradient of the weighted row: the
  // experts' outputs are not kept.
  void backward(const std::vector<Variable>& in, const Tensors& saved, const ConstTensor& dy) {
    const Sorted s(c, indices.get(), in[3].value.get(), valid.get());
    const OwnedTensor drow = zeros(Dtype::f64, {s.rows, hidden});
    const OwnedTensor dh = zeros(Dtype::f64, {s.rows, wide});
    const OwnedTensor dgu = zeros(Dtype::f64, {s.rows, 2 * wide});
    const OwnedTensor dx = zeros(Dtype::f64, {s.rows, hidden});
    const OwnedTensor dweight = zeros(Dtype::f64, {s.rows});
    gather(s, dy, drow.get());
    wgrad(s, drow.get(), saved[3].get(), in[2].grad.get());
    product(s, drow.get(), in[2].value.get(), dh.get(), false);
    ops::geglu_bwd(ctx, {.dh = dh.get(),
                         .gate = saved[2]->slice(1, 0, wide),
                         .up = saved[2]->slice(1, wide, wide),
                         .row_weight = s.row_weight.get(),
                         .dgate = dgu->slice(1, 0, wide),
                         .dup = dgu->slice(1, wide, wide),
                         .drow_weight = dweight.get()});
    wgrad(s, dgu.get(), saved[1].get(), in[1].grad.get());
    product(s, dgu.get(), in[1].value.get(), dx.get(), false);
    ops::moe_combine(ctx, {.y = dx.get(), .pair_row = s.pair_row.get(), .out = in[0].grad.get()});
    for (int64_t p = 0; p < c.tokens * c.top_k; ++p) {
      const int64_t r = whole(s.pair_row, p);
      set(in[3].grad.get(), p, r < 0 ? 0.0 : at(dweight.get(), r));
    }
  }
};

TEST_P(Experts, GradientsMatchComplexStep) {
  std::vector<Variable> in =
      variables(written("x", random(Dtype::f64, {c.tokens, hidden}, rng)),
                added("gate_up", random(Dtype::f64, {c.experts, 2 * wide, hidden}, rng), rng),
                added("down", random(Dtype::f64, {c.experts, hidden, wide}, rng), rng),
                written("weights", random(Dtype::f64, {c.tokens, c.top_k}, rng)));
  const Forward run = [&](Dtype d, const std::vector<ConstTensor>& x) { return forward(d, x); };
  const Tensors saved = run_f64(in, run);
  Tensors dy;
  dy.push_back(random(Dtype::f64, {c.tokens, hidden}, rng));
  backward(in, saved, dy[0].get());
  expect_gradients(in, dy, run, rng);
}

const auto kCases = testing::Values(Case{1, 1, 1, 1}, Case{1, 2, 5, 4}, Case{9, 2, 4, 1},
                                    Case{13, 3, 8, 4, 3}, Case{6, 4, 4, 16}, Case{20, 1, 6, 4, 5});
INSTANTIATE_TEST_SUITE_P(Shapes, Moe, kCases);
INSTANTIATE_TEST_SUITE_P(Shapes, Experts, kCases);

}  // namespace
}  // namespace lapidary::test
