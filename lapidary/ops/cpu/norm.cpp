#include <algorithm>
#include <cmath>

#include "lapidary/ops/cpu/by_dtype.h"
#include "lapidary/ops/cpu/column_sums.h"
#include "lapidary/ops/cpu/cpu.h"
#include "lapidary/ops/cpu/kernels.h"
#include "lapidary/ops/cpu/parallel.h"
#include "lapidary/ops/cpu/scratch.h"
#include "lapidary/ops/cpu/widen.h"

namespace lapidary::ops::cpu {
namespace {

struct Backward {
  float* weight;   // [D] in float
  float* partial;  // sums for dw
  int64_t bytes;
  Backward(void* base, const RmsNormBwdArgs& a) {
    Carver carver(base);
    weight = carver.take<float>(a.w.numel());
    const int64_t sums = a.dw.defined() ? column_sums_bytes(a.x.dim(0), a.x.dim(1)) : 0;
    partial = carver.take<float>(sums / static_cast<int64_t>(sizeof(float)));
    bytes = carver.bytes();
  }
};

template <class X, class Y>
void forward(const RmsNormArgs& a, const float* w) {
  const int64_t n = a.x.dim(1);
  const X* x = a.x.as<X>();
  const Y* residual = data_or_null<Y>(a.residual);
  Y* y = a.y.as<Y>();
  float* rstd = data_or_null<float>(a.rstd);
  parallel_for(a.x.dim(0), [&](int64_t i) {
    const X* row = x + i * a.x.stride(0);
    const float r = rms_reciprocal(sum_squares(row, n), n, a.eps);
    const Y* base = residual == nullptr ? nullptr : residual + i * a.residual.stride(0);
    norm_row(row, w, base, y + i * a.y.stride(0), n, r);
    if (rstd != nullptr) rstd[i] = r;
  });
}

template <class X, class Y, class G>
void backward(const RmsNormBwdArgs& a, const Backward& s, const float* w) {
  const int64_t n = a.x.dim(1);
  const X* x = a.x.as<X>();
  const Y* dy = a.dy.as<Y>();
  const float* rstd = a.rstd.as<float>();
  G* dx = data_or_null<G>(a.dx);
  column_sums(a.x.dim(0), n, s.partial, data_or_null<float>(a.dw), [&](int64_t i, float* sums) {
    const X* x_row = x + i * a.x.stride(0);
    const Y* dy_row = dy + i * a.dy.stride(0);
    const float r = rstd[i];
    const float sum = norm_bwd_sums(dy_row, x_row, w, sums, n, r);
    if (dx == nullptr) return;
    const float mean = r * sum / static_cast<float>(n);
    norm_bwd_row(dy_row, x_row, w, dx + i * a.dx.stride(0), n, r, mean, a.accumulate_dx);
  });
}

}  // namespace

int64_t rms_norm_scratch_bytes(const RmsNormArgs& a) {
  Carver carver;
  carver.take<float>(a.w.numel());
  return carver.bytes();
}

void rms_norm(Context& ctx, const RmsNormArgs& a) {
  const ArenaScope scope(ctx.scratch);
  auto* widened = static_cast<float*>(scratch_block(ctx, rms_norm_scratch_bytes(a)));
  const float* w = widen_vector("rms_norm", a.w, widened);
  by_dtype("rms_norm", a.x.dtype(), [&]<class X>(X) {
    by_dtype("rms_norm", a.y.dtype(), [&]<class Y>(Y) { forward<X, Y>(a, w); });
  });
}

int64_t rms_norm_bwd_scratch_bytes(const RmsNormBwdArgs& a) { return Backward(nullptr, a).bytes; }

void rms_norm_bwd(Context& ctx, const RmsNormBwdArgs& a) {
  const ArenaScope scope(ctx.scratch);
  const Backward scratch(scratch_block(ctx, rms_norm_bwd_scratch_bytes(a)), a);
  const float* w = widen_vector("rms_norm_bwd", a.w, scratch.weight);
  const Dtype dx_type = a.dx.defined() ? a.dx.dtype() : a.x.dtype();
  by_dtype("rms_norm_bwd", a.x.dtype(), [&]<class X>(X) {
    by_dtype("rms_norm_bwd", a.dy.dtype(), [&]<class Y>(Y) {
      by_dtype("rms_norm_bwd", dx_type, [&]<class G>(G) { backward<X, Y, G>(a, scratch, w); });
    });
  });
}

}  // namespace lapidary::ops::cpu
