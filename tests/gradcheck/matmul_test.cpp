#include "lapidary/ops/matmul.h"

#include <gtest/gtest.h>

#include "tests/gradcheck/complex_step.h"

namespace lapidary::test {
namespace {

struct Case {
  int64_t m, k, n;
  bool trans_a, trans_b;
};

class Matmul : public testing::TestWithParam<Case> {
 protected:
  Context ctx = ref_context();
  Rng rng{67, 1};
  const Case c = GetParam();
  const Shape a_shape = c.trans_a ? Shape{c.k, c.m} : Shape{c.m, c.k};
  const Shape b_shape = c.trans_b ? Shape{c.n, c.k} : Shape{c.k, c.n};

  void product(const ConstTensor& a, const ConstTensor& b, const Tensor& out, bool ta, bool tb,
               bool accumulate) {
    ops::matmul(
        ctx, {.a = a, .b = b, .out = out, .trans_a = ta, .trans_b = tb, .accumulate = accumulate});
  }
};

TEST_P(Matmul, IsTheSumOfProducts) {
  const OwnedTensor a = random(Dtype::f64, a_shape, rng), b = random(Dtype::f64, b_shape, rng);
  const OwnedTensor start = random(Dtype::f64, {c.m, c.n}, rng);
  const OwnedTensor out = poisoned(Dtype::f64, {c.m, c.n});
  const Spread sa = spread(a.get()), sb = spread(b.get()), sum = spread(start.get());
  product(a.get(), b.get(), out.get(), c.trans_a, c.trans_b, false);
  product(sa.view, sb.view, sum.view, c.trans_a, c.trans_b, true);
  for (int64_t i = 0; i < c.m * c.n; ++i) {
    double expected = 0.0;
    for (int64_t k = 0; k < c.k; ++k) {
      const int64_t row = i / c.n, column = i % c.n;
      expected += at(a.get(), c.trans_a ? k * c.m + row : row * c.k + k) *
                  at(b.get(), c.trans_b ? column * c.k + k : k * c.n + column);
    }
    EXPECT_NEAR(at(out.get(), i), expected, 1e-13);
    EXPECT_NEAR(at(sum.view, i), at(start.get(), i) + expected, 1e-13);
  }
}

// The gradients of a product are products: da' = dy b'^T, db' = a'^T dy.
TEST_P(Matmul, GradientsAreProducts) {
  std::vector<Variable> in = variables(written("a", random(Dtype::f64, a_shape, rng)),
                                       added("b", random(Dtype::f64, b_shape, rng), rng));
  const Forward forward = [&](Dtype d, const std::vector<ConstTensor>& x) {
    Tensors out;
    out.push_back(poisoned(d, {c.m, c.n}));
    product(x[0], x[1], out[0].get(), c.trans_a, c.trans_b, false);
    return out;
  };
  Tensors dy;
  dy.push_back(random(Dtype::f64, {c.m, c.n}, rng));
  const ConstTensor d = dy[0].get(), a = in[0].value.get(), b = in[1].value.get();
  if (c.trans_a) {
    product(b, d, in[0].grad.get(), c.trans_b, true, false);
  } else {
    product(d, b, in[0].grad.get(), false, !c.trans_b, false);
  }
  if (c.trans_b) {
    product(d, a, in[1].grad.get(), true, c.trans_a, true);
  } else {
    product(a, d, in[1].grad.get(), !c.trans_a, false, true);
  }
  expect_gradients(in, dy, forward, rng);
}

INSTANTIATE_TEST_SUITE_P(Shapes, Matmul,
                         testing::Values(Case{1, 1, 1, false, false}, Case{3, 5, 7, false, false},
                                         Case{3, 5, 7, false, true}, Case{3, 5, 7, true, false},
                                         Case{3, 5, 7, true, true}, Case{1, 17, 4, false, true},
                                         Case{9, 1, 2, true, true}));

TEST(MatmulEmpty, NoInnerDimension) {
  Context ctx = ref_context();
  const OwnedTensor a = zeros(Dtype::f64, {2, 0}), b = zeros(Dtype::f64, {0, 3});
  const OwnedTensor out = poisoned(Dtype::f64, {2, 3});
  ops::matmul(ctx, {.a = a.get(), .b = b.get(), .out = out.get()});
  EXPECT_EQ(values(out.get()), std::vector<double>(6, 0.0));
  const OwnedTensor none = zeros(Dtype::f64, {0, 3}), wide = zeros(Dtype::f64, {3, 4});
  const OwnedTensor nothing = zeros(Dtype::f64, {0, 4});
  EXPECT_NO_THROW(ops::matmul(ctx, {.a = none.get(), .b = wide.get(), .out = nothing.get()}));
}

}  // namespace
}  // namespace lapidary::test
