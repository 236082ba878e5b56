#include "lapidary/ops/attention.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>

#include "tests/gradcheck/complex_step.h"

namespace lapidary::test {
namespace {

struct Sizes {
  int64_t rows, queries, keys, query_heads, key_heads, size;
};

struct Case {
  const char* name;
  Sizes s;
  bool sliding = false;
  int64_t window = 0;
  bool padded = false;  // row 0 has no valid key, the last row some
  bool packed = false;
  bool images = false;
  bool dense = false;
  ops::ImageRule rule = ops::ImageRule::google;
  double scale = 1.0;
};

std::string name_of_case(const testing::TestParamInfo<Case>& info) { return info.param.name; }

// The tensors that a mask of the case views.
struct Mask {
  OwnedTensor valid, query_docs, key_docs, query_blocks, key_blocks, dense;
  ops::MaskSpec spec;
};

// A queries x keys corner of a row: the queries are the last positions.
Mask make_mask(const Case& c, Rng& rng) {
  Mask m;
  m.spec.sliding = c.sliding;
  m.spec.window = c.window;
  m.spec.image_rule = c.rule;
  m.spec.query_offset = c.s.keys - c.s.queries;
  if (c.padded) {
    m.valid = random_int(Dtype::u8, {c.s.rows, c.s.keys}, rng, 0, 2);
    for (int64_t t = 0; t < c.s.keys; ++t) set(m.valid.get(), t, 0.0);
    m.spec.key_valid = m.valid.get();
  }
  const auto corner = [&](const OwnedTensor& all) {
    return cast(all->slice(1, c.s.keys - c.s.queries, c.s.queries), Dtype::i32);
  };
  if (c.packed) {
    m.key_docs = zeros(Dtype::i32, {c.s.rows, c.s.keys});
    for (int64_t i = 0; i < m.key_docs->numel(); ++i) {
      const int64_t t = i % c.s.keys;
      set(m.key_docs.get(), i, t == c.s.keys - 1 ? 0.0 : 1.0 + static_cast<double>(t / 3));
    }
    m.query_docs = corner(m.key_docs);
    m.spec.query_docs = m.query_docs.get();
    m.spec.key_docs = m.key_docs.get();
  }
  if (c.images) {
    m.key_blocks = zeros(Dtype::i32, {c.s.rows, c.s.keys});
    for (int64_t i = 0; i < m.key_blocks->numel(); ++i) {
      const int64_t t = i % c.s.keys;
      set(m.key_blocks.get(), i, t % 5 == 0 ? -1.0 : static_cast<double>(t / 5));
    }
    m.query_blocks = corner(m.key_blocks);
    m.spec.query_blocks = m.query_blocks.get();
    m.spec.key_blocks = m.key_blocks.get();
  }
  if (c.dense) {
    m.dense = random_int(Dtype::u8, {c.s.rows, c.s.queries, c.s.keys}, rng, 0, 2);
    m.spec.dense = m.dense.get();
  }
  return m;
}

class AttentionGradient : public testing::TestWithParam<Case> {
 protected:
  Context ctx = ref_context();
  Rng rng{41, 1};
};

TEST_P(AttentionGradient, MatchesComplexStep) {
  const Case& c = GetParam();
  const Mask mask = make_mask(c, rng);
  const Shape qs{c.s.rows, c.s.queries, c.s.query_heads, c.s.size};
  const Shape ks{c.s.rows, c.s.keys, c.s.key_heads, c.s.size};
  std::vector<Variable> in = variables(written("q", random(Dtype::f64, qs, rng)),
                                       added("k", random(Dtype::f64, ks, rng), rng),
                                       added("v", random(Dtype::f64, ks, rng), rng));
  const Forward forward = [&](Dtype d, const std::vector<ConstTensor>& x) {
    Tensors out;
    out.push_back(poisoned(d, qs));
    out.push_back(poisoned(d, {c.s.rows, c.s.query_heads, c.s.queries}));
    ops::attention(ctx, {.q = x[0],
                         .k = x[1],
                         .v = x[2],
                         .mask = mask.spec,
                         .scale = c.scale,
                         .o = out[0].get(),
                         .lse = out[1].get()});
    return out;
  };
  const Tensors saved = run_f64(in, forward);
  Tensors dy;
  dy.push_back(random(Dtype::f64, qs, rng));
  ops::attention_bwd(ctx, {.dout = dy[0].get(),
                           .q = in[0].value.get(),
                           .k = in[1].value.get(),
                           .v = in[2].value.get(),
                           .o = saved[0].get(),
                           .lse = saved[1].get(),
                           .mask = mask.spec,
                           .scale = c.scale,
                           .dq = in[0].grad.get(),
                           .dk = in[1].grad.get(),
                           .dv = in[2].grad.get()});
  EXPECT_TRUE(all_finite(in[0].grad.get()));
  expect_gradients(in, dy, forward, rng);
}

// Softmax over an explicit list of visible keys, without a maximum and without a range of keys.
TEST_P(AttentionGradient, ForwardIsThePlainSum) {
  const Case& c = GetParam();
  const Mask mask = make_mask(c, rng);
  const Shape qs{c.s.rows, c.s.queries, c.s.query_heads, c.s.size};
  const Shape ks{c.s.rows, c.s.keys, c.s.key_heads, c.s.size};
  const OwnedTensor q = random(Dtype::f64, qs, rng), k = random(Dtype::f64, ks, rng);
  const OwnedTensor v = random(Dtype::f64, ks, rng), o = poisoned(Dtype::f64, qs);
  const OwnedTensor lse = poisoned(Dtype::f64, {c.s.rows, c.s.query_heads, c.s.queries});
  ops::attention(ctx, {.q = q.get(),
                       .k = k.get(),
                       .v = v.get(),
                       .mask = mask.spec,
                       .scale = c.scale,
                       .o = o.get(),
                       .lse = lse.get()});
  const OwnedTensor expected = zeros(Dtype::f64, qs);
  const OwnedTensor expected_lse = zeros(Dtype::f64, lse->shape());
  for (int64_t n = 0; n < c.s.rows * c.s.queries * c.s.query_heads; ++n) {
    const int64_t h = n % c.s.query_heads, s = n / c.s.query_heads % c.s.queries;
    const int64_t b = n / c.s.query_heads / c.s.queries;
    double sum = 0.0;
    std::vector<double> out(static_cast<size_t>(c.s.size));
    for (int64_t t = 0; t < c.s.keys; ++t) {
      if (!mask.spec.visible(b, s, t)) continue;
      const int64_t key =
          ((b * c.s.keys + t) * c.s.key_heads + h / (c.s.query_heads / c.s.key_heads));
      double score = 0.0;
      for (int64_t j = 0; j < c.s.size; ++j) {
        score += at(q.get(), n * c.s.size + j) * at(k.get(), key * c.s.size + j);
      }
      const double e = std::exp(c.scale * score);
      sum += e;
      for (int64_t j = 0; j < c.s.size; ++j) {
        out[static_cast<size_t>(j)] += e * at(v.get(), key * c.s.size + j);
      }
    }
    const double total = sum == 0.0 ? 1.0 : sum;
    for (int64_t j = 0; j < c.s.size; ++j) {
      set(expected.get(), n * c.s.size + j, out[static_cast<size_t>(j)] / total);
    }
    set(expected_lse.get(), (b * c.s.query_heads + h) * c.s.queries + s,
        sum == 0.0 ? std::numeric_limits<double>::infinity() : std::log(sum));
  }
  EXPECT_LT(max_error(o.get(), expected.get()), 1e-13);
  EXPECT_LT(max_error(lse.get(), expected_lse.get()), 1e-13);
}

constexpr auto kRule58 = ops::ImageRule::transformers_5_8;
constexpr auto kRule55 = ops::ImageRule::transformers_5_5;
constexpr auto kPacked = ops::ImageRule::automodel_packed;

INSTANTIATE_TEST_SUITE_P(
    Cases, AttentionGradient,
    testing::Values(
        Case{.name = "one_token", .s = {1, 1, 1, 1, 1, 3}},
        Case{.name = "causal", .s = {2, 7, 7, 4, 2, 5}},
        Case{.name = "one_key_head", .s = {1, 6, 6, 3, 1, 4}, .scale = 0.5},
        Case{.name = "window_one", .s = {1, 5, 5, 2, 2, 4}, .sliding = true, .window = 1},
        Case{.name = "window_three", .s = {2, 9, 9, 2, 1, 4}, .sliding = true, .window = 3},
        Case{.name = "decode", .s = {2, 1, 9, 4, 2, 4}},
        Case{.name = "chunk", .s = {1, 3, 8, 2, 1, 4}},
        Case{.name = "padded", .s = {3, 6, 6, 2, 1, 4}, .padded = true},
        Case{.name = "packed", .s = {2, 10, 10, 2, 2, 3}, .packed = true},
        Case{.name = "packed_window",
             .s = {2, 10, 10, 2, 1, 3},
             .sliding = true,
             .window = 2,
             .packed = true},
        Case{.name = "images",
             .s = {1, 11, 11, 2, 1, 4},
             .sliding = true,
             .window = 3,
             .images = true},
        Case{.name = "images_5_8", .s = {1, 11, 11, 2, 1, 4}, .images = true, .rule = kRule58},
        Case{.name = "images_5_5",
             .s = {1, 11, 11, 2, 1, 4},
             .sliding = true,
             .window = 2,
             .images = true,
             .rule = kRule55},
        Case{.name = "images_packed",
             .s = {2, 11, 11, 2, 1, 4},
             .sliding = true,
             .window = 2,
             .padded = true,
             .packed = true,
             .images = true,
             .rule = kPacked},
        Case{.name = "dense", .s = {2, 5, 7, 2, 1, 4}, .dense = true}),
    name_of_case);

TEST(Attention, BlindRows) {
  Context ctx = ref_context();
  Rng rng(43);
  const Shape shape{2, 3, 2, 4};
  const OwnedTensor q = random(Dtype::f64, shape, rng);
  const OwnedTensor valid = from_values(Dtype::u8, {2, 3}, {0, 0, 0, 0, 1, 1});
  const OwnedTensor o = poisoned(Dtype::f64, shape), lse = poisoned(Dtype::f64, {2, 2, 3});
  const ops::MaskSpec mask{.key_valid = valid.get()};
  ops::attention(
      ctx,
      {.q = q.get(), .k = q.get(), .v = q.get(), .mask = mask, .o = o.get(), .lse = lse.get()});
  const OwnedTensor dq = poisoned(Dtype::f64, shape);
  const OwnedTensor dk = zeros(Dtype::f64, shape), dv = zeros(Dtype::f64, shape);
  ops::attention_bwd(ctx, {.dout = q.get(),
                           .q = q.get(),
                           .k = q.get(),
                           .v = q.get(),
                           .o = o.get(),
                           .lse = lse.get(),
                           .mask = mask,
                           .dq = dq.get(),
                           .dk = dk.get(),
                           .dv = dv.get()});
  // Row 0 is all padding; in row 1 the first query sees nothing.
  const int64_t blind = 4 * 2 * 4;  // elements of the queries (0, 0..2) and (1, 0)
  for (int64_t i = 0; i < blind; ++i) {
    EXPECT_EQ(at(o.get(), i), 0.0);
    EXPECT_EQ(at(dq.get(), i), 0.0);
  }
  for (int64_t i = 0; i < blind; ++i) {
    EXPECT_EQ(at(dk.get(), i), 0.0);
    EXPECT_EQ(at(dv.get(), i), 0.0);
  }
  const double inf = std::numeric_limits<double>::infinity();
  for (const int64_t i : {0, 1, 2, 3, 4, 5, 6, 9}) EXPECT_EQ(at(lse.get(), i), inf) << i;
  EXPECT_TRUE(all_finite(dq.get()) && all_finite(dk.get()) && all_finite(dv.get()));
}

TEST(Attention, AliasesAndStrides) {
  Context ctx = ref_context();
  Rng rng(47);
  const Shape qs{2, 5, 4, 3}, ks{2, 5, 2, 3};
  const OwnedTensor q = random(Dtype::f64, qs, rng), k = random(Dtype::f64, ks, rng);
  const OwnedTensor v = random(Dtype::f64, ks, rng), dout = random(Dtype::f64, qs, rng);
  const Spread sq = spread(q.get()), sk = spread(k.get()), sv = spread(v.get());
  const OwnedTensor o = poisoned(Dtype::f64, qs), lse = poisoned(Dtype::f64, {2, 4, 5});
  const OwnedTensor lse2 = poisoned(Dtype::f64, {2, 4, 5});
  const Spread so = spread(poisoned(Dtype::f64, qs).get());
  ops::attention(ctx, {.q = q.get(), .k = k.get(), .v = v.get(), .o = o.get(), .lse = lse.get()});
  ops::attention(ctx, {.q = sq.view, .k = sk.view, .v = sv.view, .o = so.view, .lse = lse2.get()});
  EXPECT_TRUE(same_bits(so.view, o.get()));
  EXPECT_TRUE(same_bits(lse2.get(), lse.get()));
  ops::attention(ctx, {.q = sq.view, .k = sk.view, .v = sv.view, .o = so.view});
  EXPECT_TRUE(same_bits(so.view, o.get())) << "without lse";

  const OwnedTensor dq = poisoned(Dtype::f64, qs);
  const OwnedTensor dk = zeros(Dtype::f64, ks), dv = zeros(Dtype::f64, ks);
  const Spread sdq = spread(dout.get());
  const Spread sdk = spread(zeros(Dtype::f64, ks).get()), sdv = spread(sdk.view);
  ops::attention_bwd(ctx, {.dout = dout.get(),
                           .q = q.get(),
                           .k = k.get(),
                           .v = v.get(),
                           .o = o.get(),
                           .lse = lse.get(),
                           .dq = dq.get(),
                           .dk = dk.get(),
                           .dv = dv.get()});
  ops::attention_bwd(ctx, {.dout = sdq.view,
                           .q = sq.view,
                           .k = sk.view,
                           .v = sv.view,
                           .o = so.view,
                           .lse = lse.get(),
                           .dq = sdq.view,
                           .dk = sdk.view,
                           .dv = sdv.view});
  EXPECT_TRUE(same_bits(sdq.view, dq.get()));
  EXPECT_TRUE(same_bits(sdk.view, dk.get()));
  EXPECT_TRUE(same_bits(sdv.view, dv.get()));
}

}  // namespace
}  // namespace lapidary::test
