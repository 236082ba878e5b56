#include "lapidary/ops/attention.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/unit/ops/against_ref.h"

namespace lapidary::test {
namespace {

struct Size {
  int64_t rows, queries, keys, heads, groups, n;
};

// What a case's mask is made of.
enum Part { kFull = 0, kSliding = 1, kValid = 2, kDocs = 4, kBlocks = 8, kDense = 16, kBlind = 32 };

struct Masks {
  OwnedTensor valid, docs, blocks, dense;
  int parts;
  // Tensors of the keys; queries are the last of them.
  Masks(const Size& s, int p, Rng& rng) : parts(p) {
    valid = random_int(Dtype::u8, {s.rows, s.keys}, rng, 0, 4);
    if ((p & kBlind) != 0) fill(valid.get(), 0.0);
    docs = zeros(Dtype::i32, {s.rows, s.keys});
    blocks = zeros(Dtype::i32, {s.rows, s.keys});
    for (int64_t i = 0; i < docs->numel(); ++i) {
      const int64_t t = i % s.keys;
      set(docs.get(), i, t + 3 > s.keys ? 0.0 : static_cast<double>(1 + t * 3 / s.keys));
      const int64_t run = t / 4;
      set(blocks.get(), i, run % 2 == 0 ? -1.0 : static_cast<double>(run));
    }
    dense = random_int(Dtype::u8, {s.rows, s.queries, s.keys}, rng, 0, 2);
  }
};

ops::MaskSpec spec(const Masks& m, const Size& s, int64_t window, ops::ImageRule rule) {
  ops::MaskSpec mask;
  const auto queries = [&](const OwnedTensor& t) {
    return t->slice(1, s.keys - s.queries, s.queries);
  };
  mask.sliding = (m.parts & kSliding) != 0;
  mask.window = window;
  mask.query_offset = s.keys - s.queries + 3;
  mask.key_offset = 3;
  mask.image_rule = rule;
  if ((m.parts & kValid) != 0) mask.key_valid = m.valid.get();
  if ((m.parts & kDocs) != 0) {
    mask.query_docs = queries(m.docs);
    mask.key_docs = m.docs.get();
  }
  if ((m.parts & kBlocks) != 0) {
    mask.query_blocks = queries(m.blocks);
    mask.key_blocks = m.blocks.get();
  }
  if ((m.parts & kDense) != 0) mask.dense = m.dense.get();
  return mask;
}

// Scores are sums of n products, of size up to about 5, and a probability's relative error is the
// absolute one of its score. In bf16 the probabilities are factors rounded to bf16.
double tolerance_of(Dtype d, const Size& s) {
  return 5.0 * tolerance(Dtype::f32, s.n) + tolerance(d, s.keys, d);
}

// The tensors of a mask as inputs of a call, so that they lie where the call runs.
class MaskInputs {
 public:
  MaskInputs(Call& call, const ops::MaskSpec& mask) : mask_(mask) {
    for (const ConstTensor* part : parts(mask_)) {
      indices_.push_back(part->defined() ? call.integers(cast(*part, part->dtype())) : -1);
    }
  }
  ops::MaskSpec of(const Call::Args& t) const {
    ops::MaskSpec mask = mask_;
    size_t i = 0;
    for (ConstTensor* part : parts(mask)) *part = t[indices_[i++]];
    return mask;
  }

 private:
  static std::vector<ConstTensor*> parts(ops::MaskSpec& m) {
    return {&m.key_valid, &m.query_docs, &m.key_docs, &m.query_blocks, &m.key_blocks, &m.dense};
  }
  ops::MaskSpec mask_;
  std::vector<int> indices_;
};

void check_forward(Dtype d, bool strided, const Size& s, const ops::MaskSpec& mask, Rng& rng) {
  Call call(d, strided);
  const double size = std::pow(static_cast<double>(s.n), -0.25);
  const int q = call.input(random(Dtype::f64, {s.rows, s.queries, s.heads, s.n}, rng, size));
  const int k = call.input(random(Dtype::f64, {s.rows, s.keys, s.groups, s.n}, rng, size));
  const int v = call.input(random(Dtype::f64, {s.rows, s.keys, s.groups, s.n}, rng));
  const int o = call.written("o", {s.rows, s.queries, s.heads, s.n}, tolerance_of(d, s));
  const int lse = call.written_acc("lse", {s.rows, s.heads, s.queries},
                                   5.0 * tolerance(Dtype::f32, s.n + s.keys));
  const MaskInputs masks(call, mask);
  call.compare([=](Context& ctx, const Call::Args& t) {
    ops::attention(ctx, {.q = t[q],
                         .k = t[k],
                         .v = t[v],
                         .mask = masks.of(t),
                         .scale = 1.25,
                         .o = t[o],
                         .lse = t[lse]});
  });
}

// lse and o come from the reference, rounded; in_place: dq lies over dout.
void check_backward(Dtype d, bool strided, const Size& s, const ops::MaskSpec& mask, bool in_place,
                    Rng& rng) {
  const Shape qs = {s.rows, s.queries, s.heads, s.n}, ks = {s.rows, s.keys, s.groups, s.n};
  const double size = std::pow(static_cast<double>(s.n), -0.25);
  const auto rounded = [&](const Shape& shape, double scale) {
    return cast(cast(random(Dtype::f64, shape, rng, scale).get(), d).get(), Dtype::f64);
  };
  const OwnedTensor q0 = rounded(qs, size), k0 = rounded(ks, size), v0 = rounded(ks, 1.0);
  const OwnedTensor o0 = poisoned(Dtype::f64, qs);
  const OwnedTensor lse0 = poisoned(Dtype::f64, {s.rows, s.heads, s.queries});
  Context ref = Context::make(Backend::ref, {0, 1 << 24});
  ops::attention(ref, {.q = q0.get(),
                       .k = k0.get(),
                       .v = v0.get(),
                       .mask = mask,
                       .scale = 1.25,
                       .o = o0.get(),
                       .lse = lse0.get()});
  Call call(d, strided);
  const int q = call.input(q0), k = call.input(k0), v = call.input(v0), o = call.input(o0);
  const int lse = call.input_acc(lse0);
  const double tol = tolerance_of(d, s);
  const OwnedTensor grad = random(Dtype::f64, qs, rng);
  const int dq = in_place ? call.added("dq", grad, tol) : call.written("dq", qs, tol);
  const int dout = in_place ? dq : call.input(grad);
  const double sum =
      5.0 * tolerance(Dtype::f32, s.n) + tolerance(Dtype::f32, s.queries * s.heads / s.groups, d);
  const int dk = call.added_acc("dk", random(Dtype::f64, ks, rng), sum);
  const int dv = call.added_acc("dv", random(Dtype::f64, ks, rng), sum);
  const MaskInputs masks(call, mask);
  call.compare(
      [=](Context& ctx, const Call::Args& t) {
        ops::attention_bwd(ctx, {.dout = t[dout],
                                 .q = t[q],
                                 .k = t[k],
                                 .v = t[v],
                                 .o = t[o],
                                 .lse = t[lse],
                                 .mask = masks.of(t),
                                 .scale = 1.25,
                                 .dq = t[dq],
                                 .dk = t[dk],
                                 .dv = t[dv]});
      },
      false);
}

void check(const Size& s, int parts, int64_t window, ops::ImageRule rule, Rng& rng) {
  SCOPED_TRACE("queries " + std::to_string(s.queries) + " keys " + std::to_string(s.keys) +
               " size " + std::to_string(s.n) + " parts " + std::to_string(parts) + " window " +
               std::to_string(window));
  const Masks masks(s, parts, rng);
  const ops::MaskSpec mask = spec(masks, s, window, rule);
  for_each_form([&](Dtype d, bool strided) {
    check_forward(d, strided, s, mask, rng);
    check_backward(d, strided, s, mask, strided, rng);
  });
}

const Size kSmall = {2, 37, 43, 4, 2, 8};
constexpr ops::ImageRule kGoogle = ops::ImageRule::google;

TEST(CpuAttention, Shapes) {
  Rng rng(191);
  const Size sizes[] = {{1, 1, 1, 1, 1, 8},      {1, 1, 300, 8, 1, 16},  {3, 70, 70, 6, 3, 24},
                        {1, 130, 601, 2, 2, 32}, {1, 65, 65, 128, 1, 8}, {1, 9, 40, 2, 1, 512},
                        {2, 0, 4, 2, 1, 8},      {0, 4, 4, 2, 1, 8},     {1, 300, 300, 1, 1, 64}};
  for (const Size& s : sizes) check(s, kFull, 0, kGoogle, rng);
}

TEST(CpuAttention, Windows) {
  Rng rng(192);
  for (const int64_t window : {1, 2, 17, 1000}) {
    check(kSmall, kSliding, window, kGoogle, rng);
    check({1, 200, 530, 2, 1, 16}, kSliding, window, kGoogle, rng);
  }
}

TEST(CpuAttention, PaddingDocumentsImages) {
  Rng rng(193);
  for (const auto rule : {ops::ImageRule::google, ops::ImageRule::transformers_5_8,
                          ops::ImageRule::transformers_5_5, ops::ImageRule::automodel_packed}) {
    for (const int base : {kFull, kSliding}) {
      for (const int more : {kValid + 0, kDocs + 0, kBlocks + 0, kValid | kDocs | kBlocks}) {
        check(kSmall, base | more, 5, rule, rng);
      }
    }
  }
  check({1, 300, 300, 2, 1, 8}, kDocs | kBlocks | kSliding, 70, kGoogle, rng);
}

TEST(CpuAttention, DenseMask) {
  Rng rng(194);
  check(kSmall, kDense, 0, kGoogle, rng);
}

TEST(CpuAttention, RowsThatSeeNothing) {
  Rng rng(195);
  check(kSmall, kValid | kBlind, 0, kGoogle, rng);
  check({1, 12, 0, 2, 1, 8}, kFull, 0, kGoogle, rng);
}

// Scores that differ by hundreds: the largest alone counts, nothing overflows.
TEST(CpuAttention, LargeScores) {
  for (const Dtype d : {Dtype::f32, Dtype::bf16}) {
    const OwnedTensor q = zeros(d, {1, 1, 1, 8}), k = zeros(d, {1, 600, 1, 8});
    const OwnedTensor v = zeros(d, {1, 600, 1, 8}), o = poisoned(d, {1, 1, 1, 8});
    const OwnedTensor lse = poisoned(Dtype::f32, {1, 1, 1});
    fill(q.get(), 100.0);
    for (int64_t t = 0; t < 600; ++t) {
      set(k.get(), t * 8, t == 321 ? 64.0 : -64.0);
      fill(v->slice(1, t, 1), t == 321 ? 3.0 : -1.0);
    }
    ops::MaskSpec mask;
    mask.query_offset = 599;
    Context ctx = Context::make(Backend::cpu, {0, 1 << 24});
    ops::attention(
        ctx,
        {.q = q.get(), .k = k.get(), .v = v.get(), .mask = mask, .o = o.get(), .lse = lse.get()});
    for (int64_t i = 0; i < 8; ++i) EXPECT_EQ(at(o.get(), i), 3.0);
    EXPECT_EQ(at(lse.get(), 0), 6400.0);
  }
}

}  // namespace
}  // namespace lapidary::test
