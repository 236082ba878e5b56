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

// The definition of truth: plain loops, templated on the scalar (f64, or c128 for complex-step
// derivatives). Every tensor of a call has that one scalar type, integers apart; loss is f64 or
// c128.
namespace lapidary::ops::ref {

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

}  // namespace lapidary::ops::ref
