#pragma once

#include "lapidary/core/context.h"
#include "lapidary/ops/mask.h"

namespace lapidary::ops {

// Grouped-query attention with an online softmax; no [S, T] matrix exists.
//   s_ij = scale q_i . k_j     p = softmax over the visible j (accumulate_dtype)     o_i = sum_j
//   p_ij v_j q, o [B, S, Q, D]   k, v [B, T, G, D]   lse [B, Q, S] in accumulate_dtype (written;
//   may be undefined in inference).  Query head h reads key head h G / Q.  Head and row strides are
//   free.
// A query that sees no key gets o = 0 and lse = +inf.
struct AttentionArgs {
  ConstTensor q;
  ConstTensor k;
  ConstTensor v;
  MaskSpec mask = {};
  double scale = 1.0;
  Tensor o;
  Tensor lse = {};
};
void attention(Context& ctx, const AttentionArgs& args);

// P_ij = exp(s_ij - lse_i); delta_i = dO_i . O_i; dS = P (dO V^T - delta);
//   dq = scale dS K (written)    dk += scale dS^T Q    dv += P^T dO
// dq [B, S, Q, D] in the dtype of q, may alias dout. dk, dv [B, T, G, D] in accumulate_dtype: the
// accumulators that layers with shared keys and values add to. Blind rows contribute nothing.
struct AttentionBwdArgs {
  ConstTensor dout;
  ConstTensor q;
  ConstTensor k;
  ConstTensor v;
  ConstTensor o;
  ConstTensor lse;
  MaskSpec mask = {};
  double scale = 1.0;
  Tensor dq;
  Tensor dk;
  Tensor dv;
};
void attention_bwd(Context& ctx, const AttentionBwdArgs& args);

}  // namespace lapidary::ops
