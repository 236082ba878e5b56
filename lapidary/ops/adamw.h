#pragma once

#include "lapidary/core/context.h"

namespace lapidary::ops {

// One AdamW step (Loshchilov & Hutter 2019, as torch computes it), in accumulate_dtype:
//   g = grad_scale grad;  m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2
//   master = master (1 - lr wd) - lr / (1 - b1^t) m / (sqrt v / sqrt(1 - b2^t) + eps);  param =
//   master grad, m, v, master: accumulate_dtype of param. master undefined: param itself is the
//   master.
struct AdamWArgs {
  Tensor param;
  Tensor master = {};
  ConstTensor grad;
  Tensor m;
  Tensor v;
  double grad_scale = 1.0;
  double lr = 0.0;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 0.01;
  int64_t step = 1;  // t, from 1
};
void adamw(Context& ctx, const AdamWArgs& args);

// sum += the sum of squares of all elements of t, in double, in a fixed order.   sum [1] f64
struct SumOfSquaresArgs {
  ConstTensor t;
  Tensor sum;
};
void sum_of_squares(Context& ctx, const SumOfSquaresArgs& args);

}  // namespace lapidary::ops
