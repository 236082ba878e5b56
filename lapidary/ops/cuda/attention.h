#pragma once

#include "lapidary/ops/attention.h"

// The two ways to attend on a GPU; cuda::attention and cuda::attention_bwd choose. None of them
// takes scratch memory. delta [B, Q, S] f32, dense: dO . O of every query.
namespace lapidary::ops::cuda {

// Exact f32 arithmetic for f32 and bf16; any strides, any mask, head sizes up to 512. dk and dv are
// complete before dq is written, which may therefore lie over dout.
void attention_plain(Context& ctx, const AttentionArgs& a);
void attention_plain_bwd(Context& ctx, const AttentionBwdArgs& a, const float* delta);

// bf16 tensor cores. *_fits: shapes, dtypes, strides and alignment are those that it takes; null
// data counts as aligned.
bool attention_mma_fits(const AttentionArgs& a);
bool attention_mma_bwd_fits(const AttentionBwdArgs& a);
void attention_mma(Context& ctx, const AttentionArgs& a);
void attention_mma_bwd(Context& ctx, const AttentionBwdArgs& a, const float* delta);

}  // namespace lapidary::ops::cuda
