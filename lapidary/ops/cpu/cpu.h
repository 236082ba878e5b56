#pragma once

#include "lapidary/ops/adamw.h"
#include "lapidary/ops/attention.h"
#include "lapidary/ops/elementwise.h"
#include "lapidary/ops/embedding.h"
#include "lapidary/ops/glu.h"
#include "lapidary/ops/loss.h"
#include "lapidary/ops/matmul.h"
#include "lapidary/ops/moe.h"
#include "lapidary/ops/norm.h"
#include "lapidary/ops/random.h"
#include "lapidary/ops/rope.h"

// The host backend: oneDNN for products (plain loops where it is missing), OpenMP and vector loops
// for the rest; f32 and bf16. *_scratch_bytes: what the operation takes from ctx.scratch.
namespace lapidary::ops::cpu {

void matmul(Context& ctx, const MatmulArgs& a);
void rms_norm(Context& ctx, const RmsNormArgs& a);
void rms_norm_bwd(Context& ctx, const RmsNormBwdArgs& a);
void rope_table(Context& ctx, const RopeTableArgs& a);
void norm_rope(Context& ctx, const NormRopeArgs& a);
void norm_rope_bwd(Context& ctx, const NormRopeBwdArgs& a);
void attention(Context& ctx, const AttentionArgs& a);
void attention_bwd(Context& ctx, const AttentionBwdArgs& a);
void geglu(Context& ctx, const GegluArgs& a);
void geglu_bwd(Context& ctx, const GegluBwdArgs& a);
void router(Context& ctx, const RouterArgs& a);
void router_bwd(Context& ctx, const RouterBwdArgs& a);
void moe_sort(Context& ctx, const MoeSortArgs& a);
void moe_gather(Context& ctx, const MoeGatherArgs& a);
void moe_combine(Context& ctx, const MoeCombineArgs& a);
void grouped_matmul(Context& ctx, const GroupedMatmulArgs& a);
void grouped_matmul_wgrad(Context& ctx, const GroupedMatmulWgradArgs& a);
void embedding(Context& ctx, const EmbeddingArgs& a);
void embedding_bwd(Context& ctx, const EmbeddingBwdArgs& a);
void linear_cross_entropy(Context& ctx, const LinearCrossEntropyArgs& a);
void softcap(Context& ctx, const SoftcapArgs& a);
void axpby(Context& ctx, const AxpbyArgs& a);
void scale_by(Context& ctx, const ScaleByArgs& a);
void fill_zero(Context& ctx, const Tensor& t);
void fill_normal(Context& ctx, const FillNormalArgs& a);
void adamw(Context& ctx, const AdamWArgs& a);
void sum_of_squares(Context& ctx, const SumOfSquaresArgs& a);
void clip_scale(Context& ctx, const ClipScaleArgs& a);

int64_t matmul_scratch_bytes(const MatmulArgs& a);
int64_t rms_norm_scratch_bytes(const RmsNormArgs& a);
int64_t rms_norm_bwd_scratch_bytes(const RmsNormBwdArgs& a);
int64_t norm_rope_bwd_scratch_bytes(const NormRopeBwdArgs& a);
int64_t attention_scratch_bytes(const AttentionArgs& a);
int64_t attention_bwd_scratch_bytes(const AttentionBwdArgs& a);
int64_t router_scratch_bytes(const RouterArgs& a);
int64_t router_bwd_scratch_bytes(const RouterBwdArgs& a);
int64_t moe_sort_scratch_bytes(const MoeSortArgs& a);
int64_t grouped_matmul_scratch_bytes(const GroupedMatmulArgs& a);
int64_t grouped_matmul_wgrad_scratch_bytes(const GroupedMatmulWgradArgs& a);
int64_t linear_cross_entropy_scratch_bytes(const LinearCrossEntropyArgs& a);

}  // namespace lapidary::ops::cpu
