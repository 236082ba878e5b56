#pragma once

#include "lapidary/core/context.h"

namespace lapidary::ops {

// cos and sin of pos * inv_freq, [N, D/2] in accumulate_dtype of the model.
//   positions [N] i64   inv_freq [D/2] f64, whose values are already rounded to f32.
// The angle is a float product in f32 tables (as the reference forms it) and a double product in
// f64 / c128 tables; cos and sin are accurate for large arguments.
struct RopeTableArgs {
  ConstTensor positions;
  ConstTensor inv_freq;
  Tensor cos;
  Tensor sin;
};
void rope_table(Context& ctx, const RopeTableArgs& args);

// RMS norm over each head, then rotation (Su et al. 2021) of channel j with channel j + D/2:
//   u = x r w;  y_j = u_j cos_j - u_{j+D/2} sin_j;  y_{j+D/2} = u_{j+D/2} cos_j + u_j sin_j
//   x, y [N, heads, D] (y may alias x)   w [D]   cos, sin [N, D/2]   rstd [N * heads] (written)
// One rounding at the end.
struct NormRopeArgs {
  ConstTensor x;
  ConstTensor w;
  ConstTensor cos;
  ConstTensor sin;
  Tensor y;
  Tensor rstd = {};
  double eps = 1e-6;
};
void norm_rope(Context& ctx, const NormRopeArgs& args);

// The inverse rotation of dy, then the backward of the norm; dx is written (may alias dy), or added
// to when accumulate_dx. dw [D] += , sums over tokens and heads; undefined = frozen.
struct NormRopeBwdArgs {
  ConstTensor dy;
  ConstTensor x;
  ConstTensor w;
  ConstTensor cos;
  ConstTensor sin;
  ConstTensor rstd;
  Tensor dx;
  bool accumulate_dx = false;
  Tensor dw = {};
};
void norm_rope_bwd(Context& ctx, const NormRopeBwdArgs& args);

}  // namespace lapidary::ops
