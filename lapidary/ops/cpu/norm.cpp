#include <algorithm>
#include <cmath>

#include "lapidary/ops/cpu/by_dtype.h"
#include "lapidary/ops/cpu/column_sums.h"
#include "lapidary/ops/cpu/cpu.h"
#include "lapidary/ops/cpu/kernels.h"
#include "lapidary/ops/cpu/parallel.h"
#include "lapidary/ops/cpu/scratch.h"

namespace lapidary::ops::cpu {

void rms_norm(Context&, const RmsNormArgs& a) {
  const int64_t rows = a.x.dim(0), n = a.x.dim(1);
  by_dtype("rms_norm", a.x.dtype(), [&]<class T>(T) {
    const T* x = a.x.as<T>();
    const T* w = data_or_null<T>(a.w);
    const T* residual = data_or_null<T>(a.residual);
    T* y = a.y.as<T>();
    float* rstd = data_or_null<float>(a.rstd);
    parallel_for(rows, [&](int64_t i) {
      const T* row = x + i * a.x.stride(0);
      const float r = rms_reciprocal(sum_squares(row, n), n, a.eps);
      const T* base = residual == nullptr ? nullptr : residual + i * a.residual.stride(0);
      norm_row(row, w, base, y + i * a.y.stride(0), n, r);
      if (rstd != nullptr) rstd[i] = r;
    });
  });
}

int64_t rms_norm_bwd_scratch_bytes(const RmsNormBwdArgs& a) {
  return a.dw.defined() ? column_sums_bytes(a.x.dim(0), a.x.dim(1)) : 0;
}

void rms_norm_bwd(Context& ctx, const RmsNormBwdArgs& a) {
  const int64_t rows = a.x.dim(0), n = a.x.dim(1);
  const ArenaScope scope(ctx.scratch);
  auto* partial = static_cast<float*>(scratch_block(ctx, rms_norm_bwd_scratch_bytes(a)));
  by_dtype("rms_norm_bwd", a.x.dtype(), [&]<class T>(T) {
    const T* x = a.x.as<T>();
    const T* dy = a.dy.as<T>();
    const T* w = data_or_null<T>(a.w);
    const float* rstd = a.rstd.as<float>();
    T* dx = data_or_null<T>(a.dx);
    float* dw = data_or_null<float>(a.dw);
    column_sums(rows, n, partial, dw, [&](int64_t i, float* sums) {
      const T* x_row = x + i * a.x.stride(0);
      const T* dy_row = dy + i * a.dy.stride(0);
      const float r = rstd[i];
      const float sum = norm_bwd_sums(dy_row, x_row, w, sums, n, r);
      if (dx == nullptr) return;
      const float mean = r * sum / static_cast<float>(n);
      norm_bwd_row(dy_row, x_row, w, dx + i * a.dx.stride(0), n, r, mean, a.accumulate_dx);
    });
  });
}

}  // namespace lapidary::ops::cpu
