#pragma once

#include <functional>
#include <string>
#include <vector>

#include "lapidary/core/context.h"
#include "tests/support/tensors.h"

// Complex-step derivatives: for an analytic f, Im f(x + i h d) / h is the derivative along d
// without cancellation, exact to rounding for h = 1e-30.
namespace lapidary::test {

using Tensors = std::vector<OwnedTensor>;

// A differentiable input (f64) and the tensor that a backward operation puts its gradient into.
struct Variable {
  std::string name;
  OwnedTensor value;
  OwnedTensor grad;
  OwnedTensor start;  // what grad held before
};
// For gradients that are written: grad starts as NaN.
Variable written(const std::string& name, OwnedTensor value);
// For gradients that are added to: grad starts at random.
Variable added(const std::string& name, OwnedTensor value, Rng& rng);

template <class... V>
std::vector<Variable> variables(V&&... v) {
  std::vector<Variable> list;
  (list.push_back(std::forward<V>(v)), ...);
  return list;
}

// The values of all inputs in f64 or c128 -> the outputs in that type; the first ones meet the
// cotangents, the others are what backward wants saved.
using Forward = std::function<Tensors(Dtype, const std::vector<ConstTensor>&)>;

Tensors run_f64(const std::vector<Variable>& inputs, const Forward& forward);

// Expects, for each input x and two random directions d, the derivative of sum_k <dy_k, f_k(x)>
// along d to equal <grad - start, d>, relative to the larger of itself and the gradient's norm.
void expect_gradients(const std::vector<Variable>& inputs, const Tensors& dy,
                      const Forward& forward, Rng& rng, double tolerance = 1e-12);

// sum a_i b_i
double inner(const ConstTensor& a, const ConstTensor& b);

Context ref_context();

}  // namespace lapidary::test
