#include "lapidary/ops/loss.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "lapidary/ops/ref/ref.h"
#include "lapidary/ops/ref/scalar.h"

namespace lapidary::ops::ref {
namespace {

constexpr int64_t kIgnored = -100;

template <class T>
T capped(T logit, double cap) {
  return cap == 0.0 ? logit : cap * std::tanh(logit / cap);
}

// Gradient of token t from its capped logits z.
template <class T>
void token_bwd(const LinearCrossEntropyArgs& args, int64_t t, int64_t target, T lse,
               const std::vector<T>& z) {
  const int64_t hidden = args.x.dim(1);
  const T* x = row<T>(args.x, t);
  T* dx = row<T>(args.dx, t);
  for (int64_t v = 0; v < args.w.dim(0); ++v) {
    const T& zv = z[static_cast<size_t>(v)];
    T dl = args.grad_scale * (std::exp(zv - lse) - (v == target ? 1.0 : 0.0));
    if (args.softcap != 0.0) dl *= 1.0 - zv * zv / (args.softcap * args.softcap);
    const T* w = row<T>(args.w, v);
    for (int64_t j = 0; j < hidden; ++j) dx[j] += dl * w[j];
    if (!args.dw.defined()) continue;
    T* dw = row<T>(args.dw, v);
    for (int64_t j = 0; j < hidden; ++j) dw[j] += dl * x[j];
  }
}

template <class T>
void run(const LinearCrossEntropyArgs& args) {
  const int64_t vocabulary = args.w.dim(0), hidden = args.x.dim(1);
  T& loss = *args.loss.as<T>();
  std::vector<T> z(static_cast<size_t>(vocabulary));
  for (int64_t t = 0; t < args.x.dim(0); ++t) {
    if (args.dx.defined()) std::fill_n(row<T>(args.dx, t), hidden, T{});
    const int64_t target = args.targets.as<int64_t>()[t];
    if (target == kIgnored) continue;
    if (target < 0 || target >= vocabulary) {
      fail("linear_cross_entropy",
           "target " + std::to_string(target) + " at position " + std::to_string(t) +
               " is outside the vocabulary of " + std::to_string(vocabulary),
           "use -100 for tokens that do not count");
    }
    double top = -std::numeric_limits<double>::infinity();
    for (int64_t v = 0; v < vocabulary; ++v) {
      T& zv = z[static_cast<size_t>(v)];
      zv = capped(dot(row<T>(args.x, t), row<T>(args.w, v), hidden), args.softcap);
      top = std::max(top, real_part(zv));
    }
    T sum{};
    for (const T& zv : z) sum += std::exp(zv - top);
    const T lse = top + std::log(sum);
    loss += lse - z[static_cast<size_t>(target)];
    if (args.dx.defined()) token_bwd(args, t, target, lse, z);
  }
}

template <class T>
void run(const SoftcapArgs& args) {
  for (int64_t i = 0; i < args.logits.dim(0); ++i) {
    T* l = row<T>(args.logits, i);
    for (int64_t j = 0; j < args.logits.dim(1); ++j) l[j] = capped(l[j], args.softcap);
  }
}

}  // namespace

void linear_cross_entropy(Context&, const LinearCrossEntropyArgs& a) {
  with_scalar("linear_cross_entropy", a.x.dtype(), [&]<class T>(T) { run<T>(a); });
}

void softcap(Context&, const SoftcapArgs& a) {
  with_scalar("softcap", a.logits.dtype(), [&]<class T>(T) { run<T>(a); });
}

}  // namespace lapidary::ops::ref
