#pragma once

#include "lapidary/core/context.h"
#include "lapidary/ops/quantize.h"

namespace lapidary::ops {

// One AdamW step (Loshchilov & Hutter 2019, as torch computes it), in accumulate_dtype:
//   g = grad_scale scale[0] grad;  m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2
//   master = master (1 - lr wd) - lr / (1 - b1^t) m / (sqrt v / sqrt(1 - b2^t) + eps)
//   param = master
// grad, master: accumulate_dtype of param.   scale: [1] f64, undefined = 1
// A product grad_scale scale[0] that is not finite (in f32) changes nothing at all.
// master undefined: param itself is the master. A 16-bit param then needs stochastic_rounding: the
// new value, computed in f32, goes up or down to a neighbour with probability proportional to its
// distance from the other one, by rounding_bits() of quantize.h: they depend on seed, stream, step
// and the element's index in the whole parameter, of which this tensor begins at first_element (a
// multiple of kQuantBlock).
// m, v, both: accumulate_dtype; or bf16 (param f32 or bf16); or u8, then in codes of quantize.h
// over blocks of kQuantBlock consecutive elements, with m_scale, v_scale [ceil(n / kQuantBlock)] in
// accumulate_dtype. The step uses the moments before they are rounded. All bytes zero: all moments
// zero.
struct AdamWArgs {
  Tensor param;
  Tensor master = {};
  ConstTensor grad;
  Tensor m;
  Tensor v;
  Tensor m_scale = {};
  Tensor v_scale = {};
  ConstTensor scale = {};
  double grad_scale = 1.0;
  double lr = 0.0;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 0.01;
  int64_t step = 1;  // t, from 1
  bool stochastic_rounding = false;
  uint64_t seed = 0;
  uint64_t stream = 0;
  int64_t first_element = 0;
};
void adamw(Context& ctx, const AdamWArgs& args);

// sum += the sum of squares of all elements of t, in double, in a fixed order.   sum [1] f64
struct SumOfSquaresArgs {
  ConstTensor t;
  Tensor sum;
};
void sum_of_squares(Context& ctx, const SumOfSquaresArgs& args);

// What gradients are multiplied by so that their norm is at most max_norm:
//   norm = sqrt(sum of sum[i], in order);  scale = min(1, max_norm / (norm + 1e-6)), or 1 when
//   max_norm <= 0
// scale is NaN when the norm is not finite, so that adamw() then leaves everything as it is.
//   sum [n], norm, scale [1]: f64
struct ClipScaleArgs {
  ConstTensor sum;
  double max_norm = 0.0;
  Tensor norm;
  Tensor scale;
};
void clip_scale(Context& ctx, const ClipScaleArgs& args);

}  // namespace lapidary::ops
