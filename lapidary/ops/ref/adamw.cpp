#include "lapidary/ops/adamw.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "lapidary/ops/ref/ref.h"
#include "lapidary/ops/ref/scalar.h"

namespace lapidary::ops::ref {
namespace {

template <class T>
T* flat(const Tensor& t) {
  return t.view({t.numel()}).as<T>();
}

// The code whose value is nearest to x by trying all of them; the lower one of two as near.
template <bool kSigned>
uint8_t nearest_code(double x) {
  const CodeTable table = code_table<kSigned>();
  int best = 0;
  for (int code = 1; code < 256; ++code) {
    const double distance = std::abs(static_cast<double>(table.value[code]) - x);
    if (distance < std::abs(static_cast<double>(table.value[best]) - x)) best = code;
  }
  return static_cast<uint8_t>(!kSigned && x > 0.0 && best == 0 ? 1 : best);
}

// One of the moments of a whole tensor, in full while a step uses it.
template <class T, bool kSigned>
class Moment {
 public:
  Moment(const Tensor& kept, const Tensor& scale) : kept_(kept), scale_(scale) {
    const int64_t n = kept.numel();
    if (kept.dtype() != Dtype::u8) {
      values_.assign(flat<T>(kept), flat<T>(kept) + n);
      return;
    }
    const CodeTable table = code_table<kSigned>();
    for (int64_t i = 0; i < n; ++i) {
      const double value = table.value[flat<uint8_t>(kept)[i]];
      values_.push_back(value * scale.as<T>()[i / kQuantBlock]);
    }
  }
  T& operator[](int64_t i) { return values_[static_cast<size_t>(i)]; }

  void store() {
    const int64_t n = kept_.numel();
    if (kept_.dtype() != Dtype::u8) {
      std::copy(values_.begin(), values_.end(), flat<T>(kept_));
      return;
    }
    for (int64_t first = 0; first < n; first += kQuantBlock) {
      const int64_t last = std::min(n, first + kQuantBlock);
      double largest = 0.0;
      for (int64_t i = first; i < last; ++i) {
        largest = std::max(largest, std::abs(real_part((*this)[i])));
      }
      if (largest < static_cast<double>(kSmallestScale)) largest = 0.0;
      scale_.as<T>()[first / kQuantBlock] = largest;
      for (int64_t i = first; i < last; ++i) {
        const double x = largest == 0.0 ? 0.0 : real_part((*this)[i]) / largest;
        flat<uint8_t>(kept_)[i] = nearest_code<kSigned>(x);
      }
    }
  }

 private:
  Tensor kept_, scale_;
  std::vector<T> values_;
};

template <class T>
void run(const AdamWArgs& args, double grad_scale) {
  T* param = flat<T>(args.param);
  T* master = args.master.defined() ? flat<T>(args.master) : param;
  const T* grad = args.grad.view({args.grad.numel()}).as<T>();
  Moment<T, true> m(args.m, args.m_scale);
  Moment<T, false> v(args.v, args.v_scale);
  const double t = static_cast<double>(args.step);
  const double correction1 = 1.0 - std::pow(args.beta1, t);
  const double correction2 = std::sqrt(1.0 - std::pow(args.beta2, t));
  for (int64_t i = 0; i < args.param.numel(); ++i) {
    const T g = grad_scale * grad[i];
    m[i] = args.beta1 * m[i] + (1.0 - args.beta1) * g;
    v[i] = args.beta2 * v[i] + (1.0 - args.beta2) * g * g;
    const T step = args.lr / correction1 * m[i] / (std::sqrt(v[i]) / correction2 + args.eps);
    master[i] = master[i] * (1.0 - args.lr * args.weight_decay) - step;
    param[i] = master[i];
  }
  m.store();
  v.store();
}

}  // namespace

void adamw(Context&, const AdamWArgs& a) {
  const double scale = a.grad_scale * (a.scale.defined() ? a.scale.as<double>()[0] : 1.0);
  if (!std::isfinite(static_cast<float>(scale))) return;
  with_scalar("adamw", a.param.dtype(), [&]<class T>(T) { run<T>(a, scale); });
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

void clip_scale(Context&, const ClipScaleArgs& a) {
  double squares = 0.0;
  for (int64_t i = 0; i < a.sum.numel(); ++i) squares += a.sum.as<double>()[i];
  const double norm = std::sqrt(squares);
  a.norm.as<double>()[0] = norm;
  double scale = a.max_norm > 0.0 ? std::min(1.0, a.max_norm / (norm + 1e-6)) : 1.0;
  if (!std::isfinite(norm)) scale = std::numeric_limits<double>::quiet_NaN();
  a.scale.as<double>()[0] = scale;
}

}  // namespace lapidary::ops::ref
