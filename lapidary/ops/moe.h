#pragma once

#include "lapidary/core/context.h"

namespace lapidary::ops {

// Router of Gemma 4, in accumulate_dtype from its input on, whatever the model's dtype:
//   n = u r(u);  z = n scale H^-1/2;  l = z proj^T;  p = softmax(l);  top K of p (ties: lowest id);
//   share_k = p_k / sum of the selected p;  weight_k = share_k per_expert_scale[e_k]
//   u [T, H] raw residual, in the dtype of proj or in accumulate_dtype   scale [H]   proj [E, H]
//   per_expert_scale [E] rstd [T], shares, weights [T, K] in accumulate_dtype; indices [T, K] i32
//   (all written)
// select = false: indices are given (recomputation never re-routes) and only the rest is computed.
struct RouterArgs {
  ConstTensor u;
  ConstTensor scale;
  ConstTensor proj;
  ConstTensor per_expert_scale;
  Tensor rstd = {};
  Tensor indices;
  Tensor shares;
  Tensor weights;
  double eps = 1e-6;
  bool select = true;
};
void router(Context& ctx, const RouterArgs& args);

// Selection is constant. With dw[t,k] = drow_weight[pair_row[t,k]] (0 where pair_row is -1):
//   dper_expert_scale[e_k] += dw share;   dshare = dw per_expert_scale[e_k]
//   dl_{e_k} = share_k (dshare_k - sum_m dshare_m share_m), 0 for the other experts
//   dproj += dl^T z;  dz = dl proj H^-1/2;  dscale += dz n;  du += norm-bwd(dz scale)
//   du [T, H] in the dtype of u, added to. Parameter gradients: undefined = frozen.
struct RouterBwdArgs {
  ConstTensor u;
  ConstTensor scale;
  ConstTensor proj;
  ConstTensor per_expert_scale;
  ConstTensor rstd;
  ConstTensor indices;
  ConstTensor shares;
  ConstTensor pair_row;
  ConstTensor drow_weight;
  Tensor du;
  Tensor dscale = {};
  Tensor dproj = {};
  Tensor dper_expert_scale = {};
};
void router_bwd(Context& ctx, const RouterBwdArgs& args);

// Rows of the expert-sorted layout: experts ascending, tokens ascending within one. The segment of
// each expert starts at a multiple of `align` rows; rows between segments are gaps.
inline int64_t max_sorted_rows(int64_t tokens, int64_t top_k, int64_t experts, int64_t align) {
  return tokens * top_k + experts * (align - 1);
}
int64_t row_alignment(const Context& ctx);  // the backend's favourite

// Sorts (token, slot) pairs by expert.
//   indices [T, K] i32 (-1: no pair for this slot)   weights [T, K]
//   token_valid [T] u8 (0: no pair is made; undefined: all)
//   counts [E] i32, offsets [E + 1] i32 (segment starts; the last, a multiple of align
//   too, is the number of rows in use)
//   row_token [R] i32 (-1 in gaps and beyond)  row_weight [R] (0 there)  pair_row [T, K] i32 (-1:
//   none)   R: max_sorted_rows is always enough; on the host fewer will do where there are fewer
//   pairs, and Error where they don't.   loads [E] i64, if defined: += counts, for reports.
struct MoeSortArgs {
  ConstTensor indices;
  ConstTensor weights;
  ConstTensor token_valid = {};
  int64_t align = 1;
  Tensor counts;
  Tensor offsets;
  Tensor row_token;
  Tensor row_weight;
  Tensor pair_row;
  Tensor loads = {};
};
void moe_sort(Context& ctx, const MoeSortArgs& args);

// out[r] = x[row_token[r]], zeros where row_token is -1.   x [T, H]   out [R, H]
// Only the rows up to offsets[E] are written.
struct MoeGatherArgs {
  ConstTensor x;
  ConstTensor row_token;
  ConstTensor offsets;
  Tensor out;
};
void moe_gather(Context& ctx, const MoeGatherArgs& args);

// The adjoint: out[t] = sum_k y[pair_row[t,k]] in accumulate_dtype, rounded once; out is written
// (zeros for a token without pairs), or added to when accumulate.   y [R, H]   out [T, H]
struct MoeCombineArgs {
  ConstTensor y;
  ConstTensor pair_row;
  Tensor out;
  bool accumulate = false;
};
void moe_combine(Context& ctx, const MoeCombineArgs& args);

// One product per expert over its rows [offsets[e], offsets[e] + counts[e]), gaps included up to
// the next segment (they hold zeros):   out[rows] = a[rows] b_e'
//   a [R, K]   b [E, N, K] with trans_b (out = a b_e^T), [E, K, N] without   out [R, N] (written)
struct GroupedMatmulArgs {
  ConstTensor a;
  ConstTensor b;
  ConstTensor counts;
  ConstTensor offsets;
  Tensor out;
  bool trans_b = false;
};
void grouped_matmul(Context& ctx, const GroupedMatmulArgs& args);

// dw_e += dy[rows of e]^T x[rows of e].   dy [R, N]   x [R, K]   dw [E, N, K] in accumulate_dtype
struct GroupedMatmulWgradArgs {
  ConstTensor dy;
  ConstTensor x;
  ConstTensor counts;
  ConstTensor offsets;
  Tensor dw;
};
void grouped_matmul_wgrad(Context& ctx, const GroupedMatmulWgradArgs& args);

}  // namespace lapidary::ops
