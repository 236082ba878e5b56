#include <cmath>

#include "lapidary/ops/cpu/by_dtype.h"
#include "lapidary/ops/cpu/column_sums.h"
#include "lapidary/ops/cpu/cpu.h"
#include "lapidary/ops/cpu/kernels.h"
#include "lapidary/ops/cpu/parallel.h"
#include "lapidary/ops/cpu/scratch.h"

namespace lapidary::ops::cpu {

void rope_table(Context&, const RopeTableArgs& a) {
  const int64_t half = a.inv_freq.dim(0);
  const int64_t* positions = a.positions.as<int64_t>();
  const double* inv_freq = a.inv_freq.as<double>();
  float* cos = a.cos.as<float>();
  float* sin = a.sin.as<float>();
  parallel_for(a.positions.dim(0), [&](int64_t i) {
    const auto position = static_cast<float>(positions[i]);
    float* cos_row = cos + i * a.cos.stride(0);
    float* sin_row = sin + i * a.sin.stride(0);
    for (int64_t j = 0; j < half; ++j) {
      // The product is rounded to float, as the reference has it; its cosine is then exact.
      const float product = position * static_cast<float>(inv_freq[j]);
      const auto angle = static_cast<double>(product);
      cos_row[j] = product == 0.0F ? 1.0F : static_cast<float>(std::cos(angle));
      sin_row[j] = product == 0.0F ? 0.0F : static_cast<float>(std::sin(angle));
    }
  });
}

void norm_rope(Context&, const NormRopeArgs& a) {
  const int64_t rows = a.x.dim(0), heads = a.x.dim(1), n = a.x.dim(2);
  const float* cos = a.cos.as<float>();
  const float* sin = a.sin.as<float>();
  float* rstd = data_or_null<float>(a.rstd);
  by_dtype("norm_rope", a.x.dtype(), [&]<class T>(T) {
    const T* x = a.x.as<T>();
    const T* w = a.w.as<T>();
    T* y = a.y.as<T>();
    parallel_for(rows, [&](int64_t i) {
      for (int64_t h = 0; h < heads; ++h) {
        const T* row = x + i * a.x.stride(0) + h * a.x.stride(1);
        T* out = y + i * a.y.stride(0) + h * a.y.stride(1);
        const float r = rms_reciprocal(sum_squares(row, n), n, a.eps);
        norm_rope_row(row, w, cos + i * a.cos.stride(0), sin + i * a.sin.stride(0), out, n / 2, r);
        if (rstd != nullptr) rstd[i * heads + h] = r;
      }
    });
  });
}

int64_t norm_rope_bwd_scratch_bytes(const NormRopeBwdArgs& a) {
  return a.dw.defined() ? column_sums_bytes(a.x.dim(0), a.x.dim(2)) : 0;
}

namespace {

template <class T, class Y>
void backward(const NormRopeBwdArgs& a, float* partial) {
  const int64_t heads = a.x.dim(1), n = a.x.dim(2);
  const T* x = a.x.as<T>();
  const T* w = a.w.as<T>();
  const Y* dy = a.dy.as<Y>();
  const float* rstd = a.rstd.as<float>();
  T* dx = a.dx.as<T>();
  float* dw = data_or_null<float>(a.dw);
  column_sums(a.x.dim(0), n, partial, dw, [&](int64_t i, float* sums) {
    const float* cos = a.cos.as<float>() + i * a.cos.stride(0);
    const float* sin = a.sin.as<float>() + i * a.sin.stride(0);
    for (int64_t h = 0; h < heads; ++h) {
      const T* x_row = x + i * a.x.stride(0) + h * a.x.stride(1);
      const Y* dy_row = dy + i * a.dy.stride(0) + h * a.dy.stride(1);
      T* dx_row = dx + i * a.dx.stride(0) + h * a.dx.stride(1);
      const float r = rstd[i * heads + h];
      const float sum = norm_rope_bwd_sums(dy_row, x_row, w, cos, sin, sums, n / 2, r);
      const float mean = r * sum / static_cast<float>(n);
      norm_rope_bwd_row(dy_row, x_row, w, cos, sin, dx_row, n / 2, r, mean, a.accumulate_dx);
    }
  });
}

}  // namespace

void norm_rope_bwd(Context& ctx, const NormRopeBwdArgs& a) {
  const ArenaScope scope(ctx.scratch);
  auto* partial = static_cast<float*>(scratch_block(ctx, norm_rope_bwd_scratch_bytes(a)));
  by_dtype("norm_rope_bwd", a.x.dtype(), [&]<class T>(T) {
    if (a.dy.dtype() == a.x.dtype()) return backward<T, T>(a, partial);
    backward<T, float>(a, partial);
  });
}

}  // namespace lapidary::ops::cpu
