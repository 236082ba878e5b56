#include "lapidary/ops/moe.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "lapidary/core/error.h"
#include "tests/unit/ops/against_ref.h"

namespace lapidary::test {
namespace {

struct Size {
  int64_t tokens, top_k, experts, align;
};
const Size kSizes[] = {{1, 1, 1, 1},   {0, 2, 3, 16}, {7, 2, 5, 16},
                       {1, 2, 40, 16}, {64, 3, 4, 1}, {300, 2, 2, 16}};

// top_k different experts for each token; expert 0 serves none when there is a choice.
OwnedTensor choices(const Size& s, Rng& rng) {
  OwnedTensor out = zeros(Dtype::i32, {s.tokens, s.top_k});
  const int64_t first = s.experts > s.top_k ? 1 : 0;
  std::vector<int64_t> ids(static_cast<size_t>(s.experts - first));
  for (int64_t t = 0; t < s.tokens; ++t) {
    std::iota(ids.begin(), ids.end(), first);
    for (int64_t j = 0; j < s.top_k; ++j) {
      const auto from = static_cast<size_t>(j + rng.below(s.experts - first - j));
      std::swap(ids[static_cast<size_t>(j)], ids[from]);
      set(out.get(), t * s.top_k + j, static_cast<double>(ids[static_cast<size_t>(j)]));
    }
  }
  return out;
}

// A layout, as moe_sort of the reference makes it.
struct Layout {
  OwnedTensor indices, weights, counts, offsets, row_token, row_weight, pair_row;
  int64_t rows;
  Layout(const Size& s, bool drop, Rng& rng)
      : indices(choices(s, rng)),
        weights(random(Dtype::f64, {s.tokens, s.top_k}, rng)),
        counts(zeros(Dtype::i32, {s.experts})),
        offsets(zeros(Dtype::i32, {s.experts + 1})),
        rows(ops::max_sorted_rows(s.tokens, s.top_k, s.experts, s.align)) {
    row_token = zeros(Dtype::i32, {rows});
    row_weight = zeros(Dtype::f64, {rows});
    pair_row = zeros(Dtype::i32, {s.tokens, s.top_k});
    const OwnedTensor valid = random_int(Dtype::u8, {s.tokens}, rng, 0, 2);
    Context ctx = Context::make(Backend::ref, {0, 1 << 20});
    ops::moe_sort(ctx, {.indices = indices.get(),
                        .weights = weights.get(),
                        .token_valid = drop ? valid.get() : Tensor(),
                        .align = s.align,
                        .counts = counts.get(),
                        .offsets = offsets.get(),
                        .row_token = row_token.get(),
                        .row_weight = row_weight.get(),
                        .pair_row = pair_row.get()});
  }
  int64_t used() const { return static_cast<int64_t>(at(offsets.get(), offsets->dim(0) - 1)); }
  // Random rows where a token is, zeros in the gaps, and `beyond` behind the last segment.
  OwnedTensor sorted(int64_t n, Rng& rng, double beyond) const {
    OwnedTensor t = random(Dtype::f64, {rows, n}, rng);
    for (int64_t r = 0; r < rows; ++r) {
      if (at(row_token.get(), r) >= 0.0) continue;
      fill(t->slice(0, r, 1), r < used() ? 0.0 : beyond);
    }
    return t;
  }
};

TEST(CpuMoe, Sort) {
  Rng rng(171);
  for (const Size& s : kSizes) {
    for (const bool drop : {false, true}) {
      const int64_t rows = ops::max_sorted_rows(s.tokens, s.top_k, s.experts, s.align);
      for (const bool strided : {false, true}) {
        Call call(Dtype::f32, strided);
        const int indices = call.integers(choices(s, rng));
        const int weights = call.input_acc(random(Dtype::f64, {s.tokens, s.top_k}, rng));
        const int valid = drop ? call.integers(random_int(Dtype::u8, {s.tokens}, rng, 0, 2)) : -1;
        const int counts = call.written_integers("counts", Dtype::i32, {s.experts});
        const int offsets = call.written_integers("offsets", Dtype::i32, {s.experts + 1});
        const int row_token = call.written_integers("row_token", Dtype::i32, {rows});
        const int row_weight = call.written_acc("row_weight", {rows}, 0.0);
        const int pair_row = call.written_integers("pair_row", Dtype::i32, {s.tokens, s.top_k});
        const int loads = call.added_as(Dtype::i64, "loads",
                                        random_int(Dtype::i64, {s.experts}, rng, 0, 1000), 0.0);
        call.compare([=](Context& ctx, const Call::Args& t) {
          ops::moe_sort(ctx, {.indices = t[indices],
                              .weights = t[weights],
                              .token_valid = t[valid],
                              .align = s.align,
                              .counts = t[counts],
                              .offsets = t[offsets],
                              .row_token = t[row_token],
                              .row_weight = t[row_weight],
                              .pair_row = t[pair_row],
                              .loads = t[loads]});
        });
      }
    }
  }
}

TEST(CpuMoe, SortRefusesForeignExperts) {
  for (const double expert : {-2.0, 2.0}) {
    const OwnedTensor indices = from_values(Dtype::i32, {1, 1}, {expert});
    const OwnedTensor weights = zeros(Dtype::f32, {1, 1}), counts = zeros(Dtype::i32, {2});
    const OwnedTensor offsets = zeros(Dtype::i32, {3}), row_token = zeros(Dtype::i32, {1});
    const OwnedTensor row_weight = zeros(Dtype::f32, {1}), pair_row = zeros(Dtype::i32, {1, 1});
    Context ctx = Context::make(Backend::cpu, {0, 64});
    EXPECT_THROW(ops::moe_sort(ctx, {.indices = indices.get(),
                                     .weights = weights.get(),
                                     .align = 1,
                                     .counts = counts.get(),
                                     .offsets = offsets.get(),
                                     .row_token = row_token.get(),
                                     .row_weight = row_weight.get(),
                                     .pair_row = pair_row.get()}),
                 Error);
  }
}

// One token with experts 2 and 0, one without any, one with 2 alone.
TEST(CpuMoe, SortSkipsEmptySlotsAndNeedsRowsForThePairsAlone) {
  for (const Backend backend : {Backend::cpu, Backend::ref}) {
    const Dtype dtype = backend == Backend::ref ? Dtype::f64 : Dtype::f32;
    const OwnedTensor indices = from_values(Dtype::i32, {3, 2}, {2, 0, -1, -1, -1, 2});
    const OwnedTensor weights = from_values(dtype, {3, 2}, {1, 2, 3, 4, 5, 6});
    const OwnedTensor counts = poisoned(Dtype::i32, {3}), offsets = poisoned(Dtype::i32, {4});
    const OwnedTensor pair_row = poisoned(Dtype::i32, {3, 2});
    const auto sort = [&](int64_t rows, std::vector<double>& token, std::vector<double>& weight) {
      const OwnedTensor row_token = poisoned(Dtype::i32, {rows});
      const OwnedTensor row_weight = poisoned(dtype, {rows});
      Context ctx = Context::make(backend, {0, 64});
      ops::moe_sort(ctx, {.indices = indices.get(),
                          .weights = weights.get(),
                          .align = 1,
                          .counts = counts.get(),
                          .offsets = offsets.get(),
                          .row_token = row_token.get(),
                          .row_weight = row_weight.get(),
                          .pair_row = pair_row.get()});
      token = values(row_token.get());
      weight = values(row_weight.get());
    };
    std::vector<double> token, weight;
    sort(4, token, weight);
    EXPECT_EQ(token, (std::vector<double>{0, 0, 2, -1}));
    EXPECT_EQ(weight, (std::vector<double>{2, 1, 6, 0}));
    EXPECT_EQ(values(counts.get()), (std::vector<double>{1, 0, 2}));
    EXPECT_EQ(values(offsets.get()), (std::vector<double>{0, 1, 1, 3}));
    EXPECT_EQ(values(pair_row.get()), (std::vector<double>{1, 0, -1, -1, -1, 2}));
    sort(3, token, weight);
    EXPECT_EQ(token, (std::vector<double>{0, 0, 2}));
    EXPECT_THROW(sort(2, token, weight), Error);
  }
}

// A GPU can't tell in time that rows are short.
TEST(CudaMoe, SortNeedsRowsForEveryPair) {
  const auto tensor = [](Dtype dtype, const Shape& shape) { return Tensor(nullptr, dtype, shape); };
  const auto sort = [&](int64_t rows) {
    Context ctx = Context::meta(Backend::cuda);
    ops::moe_sort(ctx, {.indices = tensor(Dtype::i32, {3, 2}),
                        .weights = tensor(Dtype::f32, {3, 2}),
                        .align = 16,
                        .counts = tensor(Dtype::i32, {4}),
                        .offsets = tensor(Dtype::i32, {5}),
                        .row_token = tensor(Dtype::i32, {rows}),
                        .row_weight = tensor(Dtype::f32, {rows}),
                        .pair_row = tensor(Dtype::i32, {3, 2})});
  };
  sort(ops::max_sorted_rows(3, 2, 4, 16));
  EXPECT_THROW(sort(ops::max_sorted_rows(3, 2, 4, 16) - 1), Error);
}

TEST(CpuMoe, GatherAndCombine) {
  Rng rng(172);
  for_each_form([&](Dtype d, bool strided) {
    for (const Size& s : kSizes) {
      for (const int64_t n : {1, 33, 520}) {
        const Layout layout(s, true, rng);
        Call gather(d, strided);
        const int x = gather.input(random(Dtype::f64, {s.tokens, n}, rng));
        const int token = gather.integers(layout.row_token);
        const int offsets = gather.integers(layout.offsets);
        // Rows that stay as they are beyond the segments.
        const int out =
            gather.added("out", random(Dtype::f64, {layout.rows, n}, rng), tolerance(d));
        gather.compare([=](Context& ctx, const Call::Args& t) {
          ops::moe_gather(ctx,
                          {.x = t[x], .row_token = t[token], .offsets = t[offsets], .out = t[out]});
        });
        for (const bool accumulate : {false, true}) {
          Call combine(d, strided);
          const int y = combine.input(layout.sorted(n, rng, 1e30));
          const int pairs = combine.integers(layout.pair_row);
          const Shape shape = {s.tokens, n};
          const double tol = tolerance(d, s.top_k);
          const int sum = accumulate ? combine.added("sum", random(Dtype::f64, shape, rng), tol)
                                     : combine.written("sum", shape, tol);
          combine.compare([=](Context& ctx, const Call::Args& t) {
            ops::moe_combine(
                ctx, {.y = t[y], .pair_row = t[pairs], .out = t[sum], .accumulate = accumulate});
          });
        }
      }
    }
  });
}

struct GroupedSize {
  Size layout;
  bool trans;
  int64_t k, n;
};
// Odd sizes for every layout; sizes of whole vectors and tiles for the larger ones.
std::vector<GroupedSize> grouped_sizes() {
  std::vector<GroupedSize> out;
  for (const Size& s : kSizes) {
    for (const bool trans : {false, true}) {
      out.push_back({s, trans, 19, 37});
      if (s.tokens < 7) continue;
      out.push_back({s, trans, 64, 128});
      out.push_back({s, trans, 200, 264});
    }
  }
  return out;
}

TEST(CpuMoe, GroupedMatmul) {
  Rng rng(173);
  for_each_form([&](Dtype d, bool strided) {
    for (const auto& [s, trans, k, n] : grouped_sizes()) {
      const Layout layout(s, true, rng);
      Call call(d, strided);
      const int a = call.input(layout.sorted(k, rng, 1e30));
      const int b = call.input(
          random(Dtype::f64, trans ? Shape{s.experts, n, k} : Shape{s.experts, k, n}, rng));
      const int counts = call.integers(layout.counts);
      const int offsets = call.integers(layout.offsets);
      // Rows beyond the segments stay as they are: the output starts from numbers.
      const int out = call.added("out", random(Dtype::f64, {layout.rows, n}, rng), tolerance(d, k));
      call.compare(
          [=, trans_b = trans](Context& ctx, const Call::Args& t) {
            ops::grouped_matmul(ctx, {.a = t[a],
                                      .b = t[b],
                                      .counts = t[counts],
                                      .offsets = t[offsets],
                                      .out = t[out],
                                      .trans_b = trans_b});
          },
          false);
    }
  });
}

TEST(CpuMoe, GroupedWeightGradient) {
  Rng rng(174);
  for_each_form([&](Dtype d, bool strided) {
    for (const Size& s : kSizes) {
      for (const auto& [n, k] : {std::pair{5, 11}, {300, 11}, {128, 64}, {264, 200}}) {
        const Layout layout(s, true, rng);
        Call call(d, strided);
        const int dy = call.input(layout.sorted(n, rng, 1e30));
        const int x = call.input(layout.sorted(k, rng, 1e30));
        const int counts = call.integers(layout.counts);
        const int offsets = call.integers(layout.offsets);
        const int dw = call.added_acc("dw", random(Dtype::f64, {s.experts, n, k}, rng),
                                      tolerance(Dtype::f32, s.tokens * s.top_k));
        call.compare(
            [=](Context& ctx, const Call::Args& t) {
              ops::grouped_matmul_wgrad(ctx, {.dy = t[dy],
                                              .x = t[x],
                                              .counts = t[counts],
                                              .offsets = t[offsets],
                                              .dw = t[dw]});
            },
            false);
      }
    }
  });
}

TEST(CpuMoe, GroupedRefusesBadSegments) {
  const OwnedTensor a = zeros(Dtype::f32, {4, 2}), b = zeros(Dtype::f32, {1, 2, 3});
  const OwnedTensor out = zeros(Dtype::f32, {4, 3}), counts = zeros(Dtype::i32, {1});
  Context ctx = Context::make(Backend::cpu);
  for (const auto& [first, last] : {std::pair{0.0, 5.0}, {-1.0, 3.0}, {3.0, 2.0}}) {
    const OwnedTensor offsets = from_values(Dtype::i32, {2}, {first, last});
    EXPECT_THROW(ops::grouped_matmul(ctx, {.a = a.get(),
                                           .b = b.get(),
                                           .counts = counts.get(),
                                           .offsets = offsets.get(),
                                           .out = out.get()}),
                 Error);
  }
}

}  // namespace
}  // namespace lapidary::test
