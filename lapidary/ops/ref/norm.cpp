#include "lapidary/ops/norm.h"

#include <cmath>

#include "lapidary/ops/ref/ref.h"
#include "lapidary/ops/ref/scalar.h"

namespace lapidary::ops::ref {
namespace {

template <class T>
void run(const RmsNormArgs& args) {
  const int64_t d = args.x.dim(1);
  const T* w = elements<T>(args.w);
  T* rstd = elements<T>(args.rstd);
  for (int64_t i = 0; i < args.x.dim(0); ++i) {
    const T* x = row<T>(args.x, i);
    const T* residual = args.residual.defined() ? row<T>(args.residual, i) : nullptr;
    T* y = row<T>(args.y, i);
    const T r = 1.0 / std::sqrt(dot(x, x, d) / static_cast<double>(d) + args.eps);
    for (int64_t j = 0; j < d; ++j) {
      T value = x[j] * r;
      if (w != nullptr) value *= w[j];
      if (residual != nullptr) value += residual[j];
      y[j] = value;
    }
    if (rstd != nullptr) rstd[i] = r;
  }
}

template <class T>
void run(const RmsNormBwdArgs& args) {
  const int64_t d = args.x.dim(1);
  const T* w = elements<T>(args.w);
  const T* rstd = args.rstd.as<T>();
  T* dw = elements<T>(args.dw);
  for (int64_t i = 0; i < args.x.dim(0); ++i) {
    const T* x = row<T>(args.x, i);
    const T* dy = row<T>(args.dy, i);
    const T r = rstd[i];
    T mean{};
    for (int64_t j = 0; j < d; ++j) {
      const T n = x[j] * r;
      mean += (w != nullptr ? dy[j] * w[j] : dy[j]) * n;
      if (dw != nullptr) dw[j] += dy[j] * n;
    }
    mean /= static_cast<double>(d);
    if (!args.dx.defined()) continue;
    T* dx = row<T>(args.dx, i);
    for (int64_t j = 0; j < d; ++j) {
      const T g = w != nullptr ? dy[j] * w[j] : dy[j];
      const T value = r * (g - x[j] * r * mean);
      dx[j] = args.accumulate_dx ? dx[j] + value : value;
    }
  }
}

}  // namespace

void rms_norm(Context&, const RmsNormArgs& a) {
  with_scalar("rms_norm", a.x.dtype(), [&]<class T>(T) { run<T>(a); });
}

void rms_norm_bwd(Context&, const RmsNormBwdArgs& a) {
  with_scalar("rms_norm_bwd", a.x.dtype(), [&]<class T>(T) { run<T>(a); });
}

}  // namespace lapidary::ops::ref
