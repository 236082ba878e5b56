// The operations of a build without CUDA.
#include "lapidary/core/error.h"
#include "lapidary/ops/cuda/cuda.h"

namespace lapidary::ops::cuda {
namespace {

[[noreturn]] void absent() { fail("cuda", gpu::unavailable(), "use device cpu"); }

}  // namespace

void matmul(Context&, const MatmulArgs&) { absent(); }
void rms_norm(Context&, const RmsNormArgs&) { absent(); }
void rms_norm_bwd(Context&, const RmsNormBwdArgs&) { absent(); }
void rope_table(Context&, const RopeTableArgs&) { absent(); }
void norm_rope(Context&, const NormRopeArgs&) { absent(); }
void norm_rope_bwd(Context&, const NormRopeBwdArgs&) { absent(); }
void attention(Context&, const AttentionArgs&) { absent(); }
void attention_bwd(Context&, const AttentionBwdArgs&) { absent(); }
void geglu(Context&, const GegluArgs&) { absent(); }
void geglu_bwd(Context&, const GegluBwdArgs&) { absent(); }
void router(Context&, const RouterArgs&) { absent(); }
void router_bwd(Context&, const RouterBwdArgs&) { absent(); }
void moe_sort(Context&, const MoeSortArgs&) { absent(); }
void moe_gather(Context&, const MoeGatherArgs&) { absent(); }
void moe_combine(Context&, const MoeCombineArgs&) { absent(); }
void grouped_matmul(Context&, const GroupedMatmulArgs&) { absent(); }
void grouped_matmul_wgrad(Context&, const GroupedMatmulWgradArgs&) { absent(); }
void embedding(Context&, const EmbeddingArgs&) { absent(); }
void embedding_bwd(Context&, const EmbeddingBwdArgs&) { absent(); }
void linear_cross_entropy(Context&, const LinearCrossEntropyArgs&) { absent(); }
void softcap(Context&, const SoftcapArgs&) { absent(); }
void axpby(Context&, const AxpbyArgs&) { absent(); }
void scale_by(Context&, const ScaleByArgs&) { absent(); }
void fill_zero(Context&, const Tensor&) { absent(); }
void fill_normal(Context&, const FillNormalArgs&) { absent(); }
void adamw(Context&, const AdamWArgs&) { absent(); }
void sum_of_squares(Context&, const SumOfSquaresArgs&) { absent(); }
void clip_scale(Context&, const ClipScaleArgs&) { absent(); }

}  // namespace lapidary::ops::cuda
