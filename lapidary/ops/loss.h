#pragma once

#include "lapidary/core/context.h"

namespace lapidary::ops {

// The head without [T, V] logits: linear, softcap and cross entropy in chunks of tokens.
//   l = x W^T;  z = cap tanh(l / cap) (z = l when cap = 0);  loss += sum_t (logsumexp z_t - z_t,y)
//   x [T, H]   w [V, H]   targets [T] i64 (-100: not counted, its chunk row is never computed)
//   loss [1] in accumulate_dtype (f64 for f32 and bf16), added to: the sum over counted tokens
// With dx defined also the gradient, in the same pass; grad_scale is 1 / (counted tokens of the
// step):
//   dl = grad_scale (softmax z - onehot) (1 - (z / cap)^2);  dx = dl W (written, zeros for tokens
//   without target)   dw += dl^T x (accumulate_dtype; undefined = frozen)
struct LinearCrossEntropyArgs {
  ConstTensor x;
  ConstTensor w;
  ConstTensor targets;
  double softcap = 0.0;
  double grad_scale = 1.0;
  Tensor loss;
  Tensor dx = {};
  Tensor dw = {};
};
void linear_cross_entropy(Context& ctx, const LinearCrossEntropyArgs& args);

// z = cap tanh(l / cap), in place, for those who ask for logits.
struct SoftcapArgs {
  Tensor logits;
  double softcap = 0.0;
};
void softcap(Context& ctx, const SoftcapArgs& args);

}  // namespace lapidary::ops
