#include "lapidary/ops/moe.h"

#include <algorithm>

#include "lapidary/ops/cpu/cpu.h"
#include "lapidary/ops/cuda/cuda.h"
#include "lapidary/ops/dispatch.h"
#include "lapidary/ops/ref/ref.h"

namespace lapidary::ops {
int64_t row_alignment(const Context& ctx) {
  // 16 rows: few enough distinct products that their kernels stay cached (docs/adr/0004).
  return ctx.target == Backend::ref ? 1 : 16;
}

namespace {

void check(const RouterArgs& a) {
  const Check c("router");
  c.rank("u", a.u, 2);
  c.rank("indices", a.indices, 2);
  const Dtype d = a.proj.dtype();
  const Dtype acc = accumulate_dtype(d);
  const int64_t tokens = a.u.dim(0), hidden = a.u.dim(1), k = a.indices.dim(1);
  c.that(a.u.dtype() == d || a.u.dtype() == acc, "u has a foreign element type");
  c.tensor("scale", a.scale, {hidden}, d);
  c.rank("proj", a.proj, 2);
  c.tensor("proj", a.proj, {a.proj.dim(0), hidden}, d);
  c.tensor("per_expert_scale", a.per_expert_scale, {a.proj.dim(0)}, d);
  c.that(k >= 1 && k <= a.proj.dim(0),
         "top_k " + std::to_string(k) + " of " + std::to_string(a.proj.dim(0)) + " experts");
  c.optional("rstd", a.rstd, {tokens}, acc);
  c.tensor("indices", a.indices, {tokens, k}, Dtype::i32);
  c.tensor("shares", a.shares, {tokens, k}, acc);
  c.tensor("weights", a.weights, {tokens, k}, acc);
}

void check(const RouterBwdArgs& a) {
  const Check c("router_bwd");
  c.rank("u", a.u, 2);
  c.rank("indices", a.indices, 2);
  c.rank("drow_weight", a.drow_weight, 1);
  const Dtype d = a.proj.dtype();
  const Dtype acc = accumulate_dtype(d);
  const int64_t tokens = a.u.dim(0), hidden = a.u.dim(1), k = a.indices.dim(1);
  c.that(a.u.dtype() == d || a.u.dtype() == acc, "u has a foreign element type");
  c.tensor("scale", a.scale, {hidden}, d);
  c.rank("proj", a.proj, 2);
  c.tensor("proj", a.proj, {a.proj.dim(0), hidden}, d);
  c.tensor("per_expert_scale", a.per_expert_scale, {a.proj.dim(0)}, d);
  c.tensor("rstd", a.rstd, {tokens}, acc);
  c.tensor("indices", a.indices, {tokens, k}, Dtype::i32);
  c.tensor("shares", a.shares, {tokens, k}, acc);
  c.tensor("pair_row", a.pair_row, {tokens, k}, Dtype::i32);
  c.dtype("drow_weight", a.drow_weight, acc);
  c.tensor("du", a.du, a.u.shape(), a.u.dtype());
  c.optional("dscale", a.dscale, {hidden}, acc);
  c.optional("dproj", a.dproj, a.proj.shape(), acc);
  c.optional("dper_expert_scale", a.dper_expert_scale, {a.proj.dim(0)}, acc);
}

void check(const Context& ctx, const MoeSortArgs& a) {
  const Check c("moe_sort");
  c.rank("indices", a.indices, 2);
  c.rank("counts", a.counts, 1);
  c.rank("row_token", a.row_token, 1);
  const int64_t tokens = a.indices.dim(0), k = a.indices.dim(1), experts = a.counts.dim(0);
  const int64_t rows = a.row_token.dim(0), most = max_sorted_rows(tokens, k, experts, a.align);
  c.dtype("indices", a.indices, Dtype::i32);
  c.shape("weights", a.weights, {tokens, k});
  c.optional("token_valid", a.token_valid, {tokens}, Dtype::u8);
  c.dtype("counts", a.counts, Dtype::i32);
  c.tensor("offsets", a.offsets, {experts + 1}, Dtype::i32);
  c.tensor("row_token", a.row_token, {rows}, Dtype::i32);
  c.tensor("row_weight", a.row_weight, {rows}, a.weights.dtype());
  c.tensor("pair_row", a.pair_row, {tokens, k}, Dtype::i32);
  c.optional("loads", a.loads, {experts}, Dtype::i64);
  c.that(std::max(rows, most) < INT32_MAX, "more than 2^31 expert rows; use a smaller micro-batch");
  // The host counts the pairs and sees whether they fit; a GPU's counts stay there.
  c.that(ctx.target != Backend::cuda || rows >= most,
         std::to_string(rows) + " rows where up to " + std::to_string(most) + " may be needed");
}

void check(const MoeGatherArgs& a) {
  const Check c("moe_gather");
  c.rank("x", a.x, 2);
  c.rank("row_token", a.row_token, 1);
  c.dtype("row_token", a.row_token, Dtype::i32);
  c.dtype("offsets", a.offsets, Dtype::i32);
  c.tensor("out", a.out, {a.row_token.dim(0), a.x.dim(1)}, a.x.dtype());
}

void check(const MoeCombineArgs& a) {
  const Check c("moe_combine");
  c.rank("y", a.y, 2);
  c.rank("pair_row", a.pair_row, 2);
  c.dtype("pair_row", a.pair_row, Dtype::i32);
  c.tensor("out", a.out, {a.pair_row.dim(0), a.y.dim(1)}, a.y.dtype());
}

void check(const GroupedMatmulArgs& a) {
  const Check c("grouped_matmul");
  c.rank("a", a.a, 2);
  c.rank("b", a.b, 3);
  const int64_t experts = a.b.dim(0);
  c.that(
      a.b.dim(a.trans_b ? 2 : 1) == a.a.dim(1),
      "a " + a.a.shape().str() + " and b " + a.b.shape().str() + " have no common inner dimension");
  c.dtype("b", a.b, a.a.dtype());
  c.tensor("counts", a.counts, {experts}, Dtype::i32);
  c.tensor("offsets", a.offsets, {experts + 1}, Dtype::i32);
  c.tensor("out", a.out, {a.a.dim(0), a.b.dim(a.trans_b ? 1 : 2)}, a.a.dtype());
}

void check(const GroupedMatmulWgradArgs& a) {
  const Check c("grouped_matmul_wgrad");
  c.rank("dy", a.dy, 2);
  c.rank("x", a.x, 2);
  c.rank("dw", a.dw, 3);
  c.that(a.dy.dim(0) == a.x.dim(0), "dy and x differ in rows");
  c.dtype("x", a.x, a.dy.dtype());
  const int64_t experts = a.dw.dim(0);
  c.tensor("dw", a.dw, {experts, a.dy.dim(1), a.x.dim(1)}, accumulate_dtype(a.dy.dtype()));
  c.tensor("counts", a.counts, {experts}, Dtype::i32);
  c.tensor("offsets", a.offsets, {experts + 1}, Dtype::i32);
}

}  // namespace

void router(Context& ctx, const RouterArgs& a) {
  check(a);
  dispatch(ctx, "router", a,
           {cpu::router, ref::router, cuda::router, cpu::router_scratch_bytes,
            cuda::router_scratch_bytes});
}

void router_bwd(Context& ctx, const RouterBwdArgs& a) {
  check(a);
  dispatch(ctx, "router_bwd", a,
           {cpu::router_bwd, ref::router_bwd, cuda::router_bwd, cpu::router_bwd_scratch_bytes,
            cuda::router_bwd_scratch_bytes});
}

void moe_sort(Context& ctx, const MoeSortArgs& a) {
  check(ctx, a);
  dispatch(ctx, "moe_sort", a,
           {cpu::moe_sort, ref::moe_sort, cuda::moe_sort, cpu::moe_sort_scratch_bytes,
            cuda::moe_sort_scratch_bytes});
}

void moe_gather(Context& ctx, const MoeGatherArgs& a) {
  check(a);
  dispatch(ctx, "moe_gather", a, {cpu::moe_gather, ref::moe_gather, cuda::moe_gather});
}

void moe_combine(Context& ctx, const MoeCombineArgs& a) {
  check(a);
  dispatch(ctx, "moe_combine", a, {cpu::moe_combine, ref::moe_combine, cuda::moe_combine});
}

void grouped_matmul(Context& ctx, const GroupedMatmulArgs& a) {
  check(a);
  dispatch(ctx, "grouped_matmul", a,
           {cpu::grouped_matmul, ref::grouped_matmul, cuda::grouped_matmul,
            cpu::grouped_matmul_scratch_bytes, cuda::grouped_matmul_scratch_bytes});
}

void grouped_matmul_wgrad(Context& ctx, const GroupedMatmulWgradArgs& a) {
  check(a);
  dispatch(ctx, "grouped_matmul_wgrad", a,
           {cpu::grouped_matmul_wgrad, ref::grouped_matmul_wgrad, cuda::grouped_matmul_wgrad,
            cpu::grouped_matmul_wgrad_scratch_bytes, cuda::grouped_matmul_wgrad_scratch_bytes});
}

}  // namespace lapidary::ops
