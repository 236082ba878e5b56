#include "lapidary/nn/attention.h"

#include "lapidary/ops/attention.h"
#include "lapidary/ops/elementwise.h"
#include "lapidary/ops/norm.h"
#include "lapidary/ops/rope.h"

namespace lapidary::nn {
namespace {

// [.., n, D] as rows of one head each.
Tensor head_rows(const Tensor& t) { return t.view({t.numel() / t.dim(-1), t.dim(-1)}); }

}  // namespace

Attention::Attention(const std::string& name, const Options& options)
    : num_heads(options.num_heads),
      num_kv_heads(options.num_kv_heads),
      head_dim(options.head_dim),
      k_eq_v(options.k_eq_v),
      kv_shared(options.kv_shared),
      q_proj(name + ".q_proj", num_heads * head_dim, options.hidden),
      o_proj(name + ".o_proj", options.hidden, num_heads * head_dim),
      q_norm(name + ".q_norm", head_dim, options.eps) {
  if (kv_shared) return;
  k_proj = Linear(name + ".k_proj", num_kv_heads * head_dim, options.hidden);
  k_norm = RmsNorm(name + ".k_norm", head_dim, options.eps);
  if (!k_eq_v) v_proj = Linear(name + ".v_proj", num_kv_heads * head_dim, options.hidden);
}

Tensor Attention::heads(const Tensor& t, int64_t rows, int64_t n) const {
  return t.view({rows, t.numel() / (rows * n * head_dim), n, head_dim});
}

void Attention::normalise_kv(Context& ctx, const AttentionPlan& plan, KeyValues kv,
                             const Saved& saved) const {
  const Shape heads_shape{plan.cos.dim(0), num_kv_heads, head_dim};
  ops::norm_rope(ctx, {.x = saved.k_raw,
                       .w = k_norm.weight.value,
                       .cos = plan.cos,
                       .sin = plan.sin,
                       .y = kv.k.view(heads_shape),
                       .rstd = saved.k_rstd,
                       .eps = k_norm.eps});
  ops::rms_norm(
      ctx,
      {.x = head_rows(saved.v_raw), .y = head_rows(kv.v), .rstd = saved.v_rstd, .eps = k_norm.eps});
}

void Attention::project_kv(Context& ctx, const AttentionPlan& plan, const ConstTensor& x,
                           KeyValues kv, Saved& saved) const {
  const int64_t tokens = x.dim(0);
  const Dtype acc = accumulate_dtype(x.dtype());
  const Shape flat{tokens, num_kv_heads * head_dim};
  const Shape by_head{tokens, num_kv_heads, head_dim};
  saved.k_raw = ctx.activations.alloc(x.dtype(), by_head);
  k_proj.forward(ctx, x, saved.k_raw.view(flat));
  saved.v_raw = saved.k_raw;
  if (!k_eq_v) {
    saved.v_raw = ctx.activations.alloc(x.dtype(), by_head);
    v_proj.forward(ctx, x, saved.v_raw.view(flat));
  }
  saved.k_rstd = ctx.activations.alloc(acc, {tokens * num_kv_heads});
  saved.v_rstd = ctx.activations.alloc(acc, {tokens * num_kv_heads});
  normalise_kv(ctx, plan, kv, saved);
}

void Attention::forward(Context& ctx, Recompute policy, const AttentionPlan& plan, int64_t rows,
                        const ConstTensor& x, const Tensor& y, KeyValues& shared,
                        KeyValueCache* cache, Saved& saved) const {
  const ArenaScope scope(ctx.scratch);
  const int64_t tokens = x.dim(0);
  const int64_t cols = tokens / rows;
  const Dtype dtype = x.dtype();
  const Dtype acc = accumulate_dtype(dtype);

  saved.q_raw = ctx.activations.alloc(dtype, {tokens, num_heads, head_dim});
  saved.q_rstd = ctx.activations.alloc(acc, {tokens * num_heads});
  const Tensor q = alloc_light(ctx, policy, dtype, {tokens, num_heads, head_dim});
  saved.q = keep_light(policy, q);
  q_proj.forward(ctx, x, saved.q_raw.view({tokens, num_heads * head_dim}));
  ops::norm_rope(ctx, {.x = saved.q_raw,
                       .w = q_norm.weight.value,
                       .cos = plan.cos,
                       .sin = plan.sin,
                       .y = q,
                       .rstd = saved.q_rstd,
                       .eps = q_norm.eps});

  KeyValues kv = shared;
  if (!kv_shared) {
    const bool caller_owns = shared.k.defined() && cache == nullptr;
    if (!caller_owns) {
      const Shape shape{rows, cols, num_kv_heads, head_dim};
      kv = {alloc_light(ctx, policy, dtype, shape), alloc_light(ctx, policy, dtype, shape)};
      saved.k = keep_light(policy, kv.k);
      saved.v = keep_light(policy, kv.v);
    }
    project_kv(ctx, plan, x, kv, saved);
    if (cache != nullptr) {
      kv = cache->append(ctx, kv);
      shared = kv;
    }
  }

  saved.o = ctx.activations.alloc(dtype, {tokens, num_heads, head_dim});
  saved.lse = ctx.activations.alloc(acc, {rows, num_heads, cols});
  ops::attention(ctx, {.q = heads(q, rows, num_heads),
                       .k = kv.k,
                       .v = kv.v,
                       .mask = plan.mask,
                       .o = heads(saved.o, rows, num_heads),
                       .lse = saved.lse});
  o_proj.forward(ctx, saved.o.view({tokens, num_heads * head_dim}), y);
}

void Attention::backward_kv(Context& ctx, const AttentionPlan& plan, const BackwardArgs& args,
                            const KeyValues& d_kv, const Saved& saved) const {
  const ArenaScope scope(ctx.scratch);
  const int64_t tokens = args.x.dim(0);
  const Dtype dtype = args.x.dtype();
  const Shape flat{tokens, num_kv_heads * head_dim};
  const Shape by_head{tokens, num_kv_heads, head_dim};
  const Tensor dk_raw = ctx.scratch.alloc(dtype, by_head);
  const Tensor dv = ctx.scratch.alloc(dtype, by_head);
  ops::norm_rope_bwd(ctx, {.dy = d_kv.k.view(by_head),
                           .x = saved.k_raw,
                           .w = k_norm.weight.value,
                           .cos = plan.cos,
                           .sin = plan.sin,
                           .rstd = saved.k_rstd,
                           .dx = dk_raw,
                           .dw = k_norm.weight.grad});
  ops::axpby(ctx, {.a = d_kv.v.view(flat), .out = dv.view(flat)});
  // K = V: one projection, two paths into it.
  const Tensor dv_raw = k_eq_v ? dk_raw : dv;
  ops::rms_norm_bwd(ctx, {.dy = head_rows(dv),
                          .x = head_rows(saved.v_raw),
                          .rstd = saved.v_rstd,
                          .dx = head_rows(dv_raw),
                          .accumulate_dx = k_eq_v});
  if (!k_eq_v) {
    v_proj.backward(ctx, {.x = args.x, .dy = dv.view(flat), .dx = args.dx, .accumulate_dx = true});
  }
  k_proj.backward(ctx,
                  {.x = args.x, .dy = dk_raw.view(flat), .dx = args.dx, .accumulate_dx = true});
}

void Attention::backward(Context& ctx, const AttentionPlan& plan, int64_t rows,
                         const BackwardArgs& args, const Saved& saved) const {
  const ArenaScope scope(ctx.scratch);
  const int64_t tokens = args.x.dim(0);
  const Dtype dtype = args.x.dtype();
  const Shape flat{tokens, num_heads * head_dim};
  const Shape kv_shape{rows, tokens / rows, num_kv_heads, head_dim};

  Tensor q = saved.q;
  if (!q.defined()) {
    q = ctx.scratch.alloc(dtype, saved.q_raw.shape());
    ops::norm_rope(ctx, {.x = saved.q_raw,
                         .w = q_norm.weight.value,
                         .cos = plan.cos,
                         .sin = plan.sin,
                         .y = q,
                         .rstd = saved.q_rstd,
                         .eps = q_norm.eps});
  }
  KeyValues kv = args.shared.k.defined() ? args.shared : KeyValues{saved.k, saved.v};
  if (!kv.k.defined()) {
    kv = {ctx.scratch.alloc(dtype, kv_shape), ctx.scratch.alloc(dtype, kv_shape)};
    normalise_kv(ctx, plan, kv, saved);
  }
  KeyValues d_kv = args.d_shared;
  if (!d_kv.k.defined()) {
    const Dtype acc = accumulate_dtype(dtype);
    d_kv = {ctx.scratch.alloc(acc, kv_shape), ctx.scratch.alloc(acc, kv_shape)};
    ops::fill_zero(ctx, d_kv.k);
    ops::fill_zero(ctx, d_kv.v);
  }

  const Tensor d_o = ctx.scratch.alloc(dtype, saved.o.shape());  // becomes dq, then dq_raw
  o_proj.backward(ctx, {.x = saved.o.view(flat), .dy = args.dy, .dx = d_o.view(flat)});
  ops::attention_bwd(ctx, {.dout = heads(d_o, rows, num_heads),
                           .q = heads(q, rows, num_heads),
                           .k = kv.k,
                           .v = kv.v,
                           .o = heads(saved.o, rows, num_heads),
                           .lse = saved.lse,
                           .mask = plan.mask,
                           .dq = heads(d_o, rows, num_heads),
                           .dk = d_kv.k,
                           .dv = d_kv.v});
  ops::norm_rope_bwd(ctx, {.dy = d_o,
                           .x = saved.q_raw,
                           .w = q_norm.weight.value,
                           .cos = plan.cos,
                           .sin = plan.sin,
                           .rstd = saved.q_rstd,
                           .dx = d_o,
                           .dw = q_norm.weight.grad});
  q_proj.backward(ctx, {.x = args.x, .dy = d_o.view(flat), .dx = args.dx});
  // A sharing layer is done: the source adds what waits in d_shared to its own.
  if (!kv_shared) backward_kv(ctx, plan, args, d_kv, saved);
}

}  // namespace lapidary::nn
