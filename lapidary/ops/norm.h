#pragma once

#include "lapidary/core/context.h"

namespace lapidary::ops {

// RMS normalisation (Zhang & Sennrich 2019), computed in accumulate_dtype, rounded once:
//   r = (mean_j x_j^2 + eps)^-1/2      y = [residual +] x r [w]
//   x, y, residual [N, D] (any row stride)   w [D]   rstd [N] in accumulate_dtype (written)
//   x, w and y each in the model's dtype or in accumulate_dtype; residual in the dtype of y
// w undefined: no weight. residual undefined: none. y may alias residual, and x where their dtypes
// agree. rstd may be undefined in inference. When the residual is set, the sum is formed before the
// one rounding.
struct RmsNormArgs {
  ConstTensor x;
  ConstTensor w = {};
  ConstTensor residual = {};
  Tensor y;
  Tensor rstd = {};
  double eps = 1e-6;
};
void rms_norm(Context& ctx, const RmsNormArgs& args);

// With n = x r and g = dy w (or dy):  dx = r (g - n mean(g n))     dw += sum_rows dy n
//   dy, x, w, dx each in the model's dtype or in accumulate_dtype.
//   dx is added to when accumulate_dx, else written. dw [D] in accumulate_dtype; undefined =
//   frozen. dx undefined: only dw. dx may alias dy where their dtypes agree. The residual's
//   gradient is dy itself: the caller's.
struct RmsNormBwdArgs {
  ConstTensor dy;
  ConstTensor x;
  ConstTensor w = {};
  ConstTensor rstd;
  Tensor dx = {};
  bool accumulate_dx = false;
  Tensor dw = {};
};
void rms_norm_bwd(Context& ctx, const RmsNormBwdArgs& args);

}  // namespace lapidary::ops
