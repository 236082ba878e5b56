#include "tests/gradcheck/complex_step.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

namespace lapidary::test {
namespace {

constexpr double kStep = 1e-30;

// Im <dy, f(x + i h d)> / h, with the step in input `moved` only.
double derivative(const std::vector<Variable>& inputs, size_t moved, const ConstTensor& d,
                  const Tensors& dy, const Forward& forward) {
  Tensors points;
  std::vector<ConstTensor> views;
  for (size_t i = 0; i < inputs.size(); ++i) {
    points.push_back(cast(inputs[i].value.get(), Dtype::c128));
    const Tensor& x = points.back().get();
    for (int64_t n = 0; i == moved && n < x.numel(); ++n) {
      set(x, n, {at(x, n), kStep * at(d, n)});
    }
    views.push_back(x);
  }
  const Tensors outputs = forward(Dtype::c128, views);
  double sum = 0.0;
  for (size_t k = 0; k < dy.size(); ++k) {
    for (int64_t n = 0; n < dy[k]->numel(); ++n) {
      sum += at(dy[k].get(), n) * (complex_at(outputs[k].get(), n).imag() / kStep);
    }
  }
  return sum;
}

}  // namespace

Variable written(const std::string& name, OwnedTensor value) {
  const Shape shape = value->shape();
  return {name, std::move(value), poisoned(Dtype::f64, shape), zeros(Dtype::f64, shape)};
}

Variable added(const std::string& name, OwnedTensor value, Rng& rng) {
  OwnedTensor start = random(Dtype::f64, value->shape(), rng);
  OwnedTensor grad = cast(start.get(), Dtype::f64);
  return {name, std::move(value), std::move(grad), std::move(start)};
}

Tensors run_f64(const std::vector<Variable>& inputs, const Forward& forward) {
  std::vector<ConstTensor> views;
  for (const Variable& v : inputs) views.push_back(v.value.get());
  return forward(Dtype::f64, views);
}

void expect_gradients(const std::vector<Variable>& inputs, const Tensors& dy,
                      const Forward& forward, Rng& rng, double tolerance) {
  for (size_t i = 0; i < inputs.size(); ++i) {
    const Variable& v = inputs[i];
    for (int trial = 0; trial < 2; ++trial) {
      const OwnedTensor d = random(Dtype::f64, v.value->shape(), rng);
      const double expected = derivative(inputs, i, d.get(), dy, forward);
      double got = 0.0, norm = 0.0;
      for (int64_t n = 0; n < d->numel(); ++n) {
        const double g = at(v.grad.get(), n) - at(v.start.get(), n);
        got += g * at(d.get(), n);
        norm += g * g;
      }
      const double scale = std::max({std::abs(expected), std::sqrt(norm), 1e-3});
      EXPECT_LT(std::abs(got - expected), tolerance * scale)
          << v.name << " " << v.value->shape().str() << ": backward " << got << ", complex step "
          << expected;
    }
  }
}

double inner(const ConstTensor& a, const ConstTensor& b) {
  double sum = 0.0;
  for (int64_t n = 0; n < a.numel(); ++n) sum += at(a, n) * at(b, n);
  return sum;
}

Context ref_context() { return Context::make(Backend::ref); }

}  // namespace lapidary::test
