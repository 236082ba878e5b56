#include "lapidary/ops/adamw.h"

#include <cmath>

#include "lapidary/ops/ref/ref.h"
#include "lapidary/ops/ref/scalar.h"

namespace lapidary::ops::ref {
namespace {

template <class T>
T* flat(const Tensor& t) {
  return t.view({t.numel()}).as<T>();
}

template <class T>
void run(const AdamWArgs& args) {
  T* param = flat<T>(args.param);
  T* master = args.master.defined() ? flat<T>(args.master) : param;
  const T* grad = args.grad.view({args.grad.numel()}).as<T>();
  T* m = flat<T>(args.m);
  T* v = flat<T>(args.v);
  const double t = static_cast<double>(args.step);
  const double correction1 = 1.0 - std::pow(args.beta1, t);
  const double correction2 = std::sqrt(1.0 - std::pow(args.beta2, t));
  for (int64_t i = 0; i < args.param.numel(); ++i) {
    const T g = args.grad_scale * grad[i];
    m[i] = args.beta1 * m[i] + (1.0 - args.beta1) * g;
    v[i] = args.beta2 * v[i] + (1.0 - args.beta2) * g * g;
    const T step = args.lr / correction1 * m[i] / (std::sqrt(v[i]) / correction2 + args.eps);
    master[i] = master[i] * (1.0 - args.lr * args.weight_decay) - step;
    param[i] = master[i];
  }
}

}  // namespace

void adamw(Context&, const AdamWArgs& a) {
  with_scalar("adamw", a.param.dtype(), [&]<class T>(T) { run<T>(a); });
}

void sum_of_squares(Context&, const SumOfSquaresArgs& a) {
  const ConstTensor& t = a.t;
  double sum = 0.0;
  with_scalar("sum_of_squares", t.dtype(), [&]<class T>(T) {
    const T* x = t.view({t.numel()}).as<T>();
    for (int64_t i = 0; i < t.numel(); ++i) sum += real_part(x[i] * x[i]);
  });
  a.sum.as<double>()[0] += sum;
}

}  // namespace lapidary::ops::ref
