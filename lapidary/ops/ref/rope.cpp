#include "lapidary/ops/rope.h"

#include <cmath>
#include <vector>

#include "lapidary/ops/ref/ref.h"
#include "lapidary/ops/ref/scalar.h"

namespace lapidary::ops::ref {
namespace {

template <class T>
void run(const RopeTableArgs& args) {
  const int64_t* positions = args.positions.as<int64_t>();
  const double* inv_freq = args.inv_freq.as<double>();
  for (int64_t i = 0; i < args.cos.dim(0); ++i) {
    T* cos = row<T>(args.cos, i);
    T* sin = row<T>(args.sin, i);
    for (int64_t j = 0; j < args.cos.dim(1); ++j) {
      const double angle = static_cast<double>(positions[i]) * inv_freq[j];
      cos[j] = std::cos(angle);
      sin[j] = std::sin(angle);
    }
  }
}

template <class T>
void run(const NormRopeArgs& args) {
  const int64_t heads = args.x.dim(1), d = args.x.dim(2), half = d / 2;
  const T* w = args.w.as<T>();
  T* rstd = elements<T>(args.rstd);
  for (int64_t i = 0; i < args.x.dim(0); ++i) {
    const T* cos = row<T>(args.cos, i);
    const T* sin = row<T>(args.sin, i);
    for (int64_t h = 0; h < heads; ++h) {
      const T* x = row<T>(args.x, i, h);
      T* y = row<T>(args.y, i, h);
      const T r = 1.0 / std::sqrt(dot(x, x, d) / static_cast<double>(d) + args.eps);
      for (int64_t j = 0; j < half; ++j) {
        const T first = x[j] * r * w[j];
        const T second = x[j + half] * r * w[j + half];
        y[j] = first * cos[j] - second * sin[j];
        y[j + half] = second * cos[j] + first * sin[j];
      }
      if (rstd != nullptr) rstd[i * heads + h] = r;
    }
  }
}

template <class T>
void run(const NormRopeBwdArgs& args) {
  const int64_t heads = args.x.dim(1), d = args.x.dim(2), half = d / 2;
  const T* w = args.w.as<T>();
  const T* rstd = args.rstd.as<T>();
  T* dw = elements<T>(args.dw);
  std::vector<T> du(static_cast<size_t>(d));
  for (int64_t i = 0; i < args.x.dim(0); ++i) {
    const T* cos = row<T>(args.cos, i);
    const T* sin = row<T>(args.sin, i);
    for (int64_t h = 0; h < heads; ++h) {
      const T* x = row<T>(args.x, i, h);
      const T* dy = row<T>(args.dy, i, h);
      T* dx = row<T>(args.dx, i, h);
      for (int64_t j = 0; j < half; ++j) {
        du[static_cast<size_t>(j)] = dy[j] * cos[j] + dy[j + half] * sin[j];
        du[static_cast<size_t>(j + half)] = dy[j + half] * cos[j] - dy[j] * sin[j];
      }
      const T r = rstd[i * heads + h];
      T mean{};
      for (int64_t j = 0; j < d; ++j) {
        const T g = du[static_cast<size_t>(j)], n = x[j] * r;
        mean += g * w[j] * n;
        if (dw != nullptr) dw[j] += g * n;
      }
      mean /= static_cast<double>(d);
      for (int64_t j = 0; j < d; ++j) {
        const T value = r * (du[static_cast<size_t>(j)] * w[j] - x[j] * r * mean);
        dx[j] = args.accumulate_dx ? dx[j] + value : value;
      }
    }
  }
}

}  // namespace

void rope_table(Context&, const RopeTableArgs& a) {
  with_scalar("rope_table", a.cos.dtype(), [&]<class T>(T) { run<T>(a); });
}

void norm_rope(Context&, const NormRopeArgs& a) {
  with_scalar("norm_rope", a.x.dtype(), [&]<class T>(T) { run<T>(a); });
}

void norm_rope_bwd(Context&, const NormRopeBwdArgs& a) {
  with_scalar("norm_rope_bwd", a.x.dtype(), [&]<class T>(T) { run<T>(a); });
}

}  // namespace lapidary::ops::ref
