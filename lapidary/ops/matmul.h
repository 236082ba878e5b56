#pragma once

#include "lapidary/core/context.h"

namespace lapidary::ops {

// out = a' b'  (+ out when accumulate), where a' = a or aᵀ and b' = b or bᵀ.
//   a [M, K] ([K, M] when trans_a)   b [K, N] ([N, K] when trans_b)   out [M, N]
// Any row stride; rank 2. a and b share one dtype. out has that dtype or accumulate_dtype of it.
// Products are summed in accumulate_dtype and rounded once. M, N, K may be 0 (out = 0 for K = 0).
// A linear layer y = x Wᵀ is {.a = x, .b = W, .out = y, .trans_b = true}.
struct MatmulArgs {
  ConstTensor a;
  ConstTensor b;
  Tensor out;
  bool trans_a = false;
  bool trans_b = false;
  bool accumulate = false;
};
void matmul(Context& ctx, const MatmulArgs& args);

}  // namespace lapidary::ops
