#include "lapidary/models/gemma4/text_block.h"

#include <utility>

#include "lapidary/ops/elementwise.h"
#include "lapidary/ops/glu.h"

namespace lapidary::gemma4 {

using nn::Recompute;

Gemma4DecoderLayer::Gemma4DecoderLayer(const std::string& name, const TextConfig& config,
                                       int64_t index, ProcessGroup* ep) {
  const LayerConfig& layer = config.layers[static_cast<size_t>(index)];
  const int64_t hidden = config.hidden_size;
  const double eps = config.rms_norm_eps;
  const auto norm = [&](const char* suffix) { return nn::RmsNorm(name + suffix, hidden, eps); };

  self_attn_ = nn::Attention(name + ".self_attn", {.hidden = hidden,
                                                   .num_heads = config.num_attention_heads,
                                                   .num_kv_heads = layer.num_key_value_heads,
                                                   .head_dim = layer.head_dim,
                                                   .k_eq_v = layer.k_eq_v,
                                                   .kv_shared = layer.kv_shared,
                                                   .eps = eps});
  mlp_ = nn::Mlp(name + ".mlp", hidden, layer.intermediate_size);
  input_layernorm_ = norm(".input_layernorm");
  post_attention_layernorm_ = norm(".post_attention_layernorm");
  pre_feedforward_layernorm_ = norm(".pre_feedforward_layernorm");
  post_feedforward_layernorm_ = norm(".post_feedforward_layernorm");
  if (config.enable_moe_block) {
    moe_ = nn::Gemma4MoE(name, {.hidden = hidden,
                                .experts = config.num_experts,
                                .top_k = config.top_k_experts,
                                .intermediate = config.moe_intermediate_size,
                                .eps = eps,
                                .ep = ep});
    post_feedforward_layernorm_1_ = norm(".post_feedforward_layernorm_1");
    post_feedforward_layernorm_2_ = norm(".post_feedforward_layernorm_2");
    pre_feedforward_layernorm_2_ = norm(".pre_feedforward_layernorm_2");
  }
  if (const int64_t p = config.hidden_size_per_layer_input; p > 0) {
    per_layer_input_gate_ = nn::Linear(name + ".per_layer_input_gate", p, hidden);
    per_layer_projection_ = nn::Linear(name + ".per_layer_projection", hidden, p);
    post_per_layer_input_norm_ = norm(".post_per_layer_input_norm");
  }
  layer_scalar_ = {
      .name = name + ".layer_scalar", .shape = {1}, .init = Init::ones, .buffer = true};
}

// ---- forward -----------------------------------------------------------------------------------

void Gemma4DecoderLayer::forward(Context& ctx, Recompute policy, const Io& io, Saved& saved) const {
  forward_attention(ctx, policy, io, saved);
  forward_feedforward(ctx, policy, io, saved);
  saved.post_ff_rstd = ctx.activations.alloc(io.x.dtype(), {io.x.dim(0)});
  post_feedforward_layernorm_.forward(
      ctx, {.x = saved.c, .residual = saved.x1, .y = io.y, .rstd = saved.post_ff_rstd});
  if (per_layer_input_gate_.defined()) forward_ple(ctx, policy, io, saved);
  ops::scale_by(ctx, {.a = io.y, .s = layer_scalar_.value, .out = io.y});
}

void Gemma4DecoderLayer::forward_attention(Context& ctx, Recompute policy, const Io& io,
                                           Saved& saved) const {
  const ArenaScope scope(ctx.scratch);
  const Dtype dtype = io.dtype;
  const Dtype acc = io.x.dtype();
  Arena& arena = ctx.activations;
  const Tensor normed = nn::alloc_light(ctx, policy, dtype, io.x.shape());
  saved.normed = nn::keep_light(policy, normed);
  saved.in_rstd = arena.alloc(acc, {io.x.dim(0)});
  saved.attention_out = arena.alloc(dtype, io.x.shape());
  saved.post_attention_rstd = arena.alloc(acc, {io.x.dim(0)});
  saved.x1 = arena.alloc(acc, io.x.shape());

  input_layernorm_.forward(ctx, {.x = io.x, .y = normed, .rstd = saved.in_rstd});
  nn::KeyValues own;
  self_attn_.forward(ctx, policy, *io.plan, io.rows, normed, saved.attention_out,
                     io.shared != nullptr ? *io.shared : own, io.cache, saved.attention);
  post_attention_layernorm_.forward(ctx, {.x = saved.attention_out,
                                          .residual = io.x,
                                          .y = saved.x1,
                                          .rstd = saved.post_attention_rstd});
}

void Gemma4DecoderLayer::forward_feedforward(Context& ctx, Recompute policy, const Io& io,
                                             Saved& saved) const {
  // Alone, one branch after the other needs the least memory; with others, the MLP runs while rows
  // travel. The results are the same.
  if (!moe_.parallel.active()) forward_mlp(ctx, policy, io, saved);
  if (moe_.defined())
    forward_moe(ctx, policy, io, saved);
  else
    saved.c = saved.mlp_out;
}

void Gemma4DecoderLayer::forward_mlp(Context& ctx, Recompute policy, const Io& io,
                                     Saved& saved) const {
  const ArenaScope scope(ctx.scratch);
  const Dtype dtype = io.dtype;
  Arena& arena = ctx.activations;
  const Tensor normed = nn::alloc_light(ctx, policy, dtype, io.x.shape());
  saved.normed_mlp = nn::keep_light(policy, normed);
  saved.pre_ff_rstd = arena.alloc(io.x.dtype(), {io.x.dim(0)});
  saved.mlp_out = arena.alloc(dtype, io.x.shape());

  pre_feedforward_layernorm_.forward(ctx, {.x = saved.x1, .y = normed, .rstd = saved.pre_ff_rstd});
  mlp_.forward(ctx, policy, normed, saved.mlp_out, saved.mlp);
}

void Gemma4DecoderLayer::forward_moe(Context& ctx, Recompute policy, const Io& io,
                                     Saved& saved) const {
  const ArenaScope scope(ctx.scratch);
  const Dtype dtype = io.dtype;
  const Dtype acc = io.x.dtype();
  Arena& arena = ctx.activations;
  const Tensor normed = nn::alloc_light(ctx, policy, dtype, io.x.shape());
  saved.normed_moe = nn::keep_light(policy, normed);
  saved.pre_ff_2_rstd = arena.alloc(acc, {io.x.dim(0)});
  saved.moe_out = arena.alloc(dtype, io.x.shape());
  saved.post_ff_1_rstd = arena.alloc(acc, {io.x.dim(0)});
  saved.post_ff_2_rstd = arena.alloc(acc, {io.x.dim(0)});
  saved.c = arena.alloc(acc, io.x.shape());

  pre_feedforward_layernorm_2_.forward(ctx,
                                       {.x = saved.x1, .y = normed, .rstd = saved.pre_ff_2_rstd});
  // The router reads the residual itself, the experts its norm.
  const nn::Gemma4MoE::ForwardArgs args{.u = saved.x1,
                                        .x = normed,
                                        .token_valid = io.token_valid,
                                        .loads = io.expert_loads,
                                        .y = saved.moe_out};
  nn::Gemma4MoE::Journey journey = moe_.begin_forward(ctx, args, *io.routing, saved.moe);
  if (moe_.parallel.active()) forward_mlp(ctx, policy, io, saved);
  moe_.finish_forward(ctx, policy, args, *io.routing, std::move(journey), saved.moe);
  post_feedforward_layernorm_1_.forward(
      ctx, {.x = saved.mlp_out, .y = saved.c, .rstd = saved.post_ff_1_rstd});
  post_feedforward_layernorm_2_.forward(
      ctx, {.x = saved.moe_out, .residual = saved.c, .y = saved.c, .rstd = saved.post_ff_2_rstd});
}

void Gemma4DecoderLayer::forward_ple(Context& ctx, Recompute policy, const Io& io,
                                     Saved& saved) const {
  const ArenaScope scope(ctx.scratch);
  const Dtype dtype = io.dtype;
  Arena& arena = ctx.activations;
  const Shape inner{io.x.dim(0), io.ple.dim(1)};
  saved.x2_rounded = arena.alloc(dtype, io.x.shape());
  saved.ple_gate = arena.alloc(dtype, inner);
  const Tensor gated = nn::alloc_light(ctx, policy, dtype, inner);
  saved.ple_gated = nn::keep_light(policy, gated);
  saved.ple_out = arena.alloc(dtype, io.x.shape());
  saved.post_ple_rstd = arena.alloc(io.x.dtype(), {io.x.dim(0)});

  ops::axpby(ctx, {.a = io.y, .out = saved.x2_rounded});
  per_layer_input_gate_.forward(ctx, saved.x2_rounded, saved.ple_gate);
  ops::geglu(ctx, {.gate = saved.ple_gate, .up = io.ple, .h = gated});
  per_layer_projection_.forward(ctx, gated, saved.ple_out);
  post_per_layer_input_norm_.forward(
      ctx, {.x = saved.ple_out, .residual = io.y, .y = io.y, .rstd = saved.post_ple_rstd});
}

// ---- backward: the mirror image ----------------------------------------------------------------

void Gemma4DecoderLayer::backward(Context& ctx, const Io& io, const Gradients& grads,
                                  const Saved& saved) const {
  const ArenaScope scope(ctx.scratch);
  // The gradient of the residual stream: of x3, then x2, then x1, then x.
  const Tensor stream = grads.dx;
  ops::scale_by(ctx, {.a = grads.dy, .s = layer_scalar_.value, .out = stream});
  if (per_layer_input_gate_.defined()) backward_ple(ctx, io, grads, stream, saved);
  backward_feedforward(ctx, io, stream, saved);
  backward_attention(ctx, io, grads, stream, saved);
}

void Gemma4DecoderLayer::backward_ple(Context& ctx, const Io& io, const Gradients& grads,
                                      const Tensor& dx2, const Saved& saved) const {
  const ArenaScope scope(ctx.scratch);
  const Dtype dtype = io.dtype;
  const Tensor d_out = ctx.scratch.alloc(dtype, io.x.shape());
  const Tensor d_gated = ctx.scratch.alloc(dtype, saved.ple_gate.shape());
  Tensor gated = saved.ple_gated;
  if (!gated.defined()) {
    gated = ctx.scratch.alloc(dtype, saved.ple_gate.shape());
    ops::geglu(ctx, {.gate = saved.ple_gate, .up = io.ple, .h = gated});
  }
  post_per_layer_input_norm_.backward(
      ctx, {.dy = dx2, .x = saved.ple_out, .rstd = saved.post_ple_rstd, .dx = d_out});
  per_layer_projection_.backward(ctx, {.x = gated, .dy = d_out, .dx = d_gated});
  ops::geglu_bwd(ctx, {.dh = d_gated,
                       .gate = saved.ple_gate,
                       .up = io.ple,
                       .dgate = saved.ple_gate,
                       .dup = grads.dple});
  per_layer_input_gate_.backward(
      ctx, {.x = saved.x2_rounded, .dy = saved.ple_gate, .dx = dx2, .accumulate_dx = true});
}

void Gemma4DecoderLayer::backward_moe(Context& ctx, const ConstTensor& dc,
                                      const Tensor& d_normed_mlp, const Tensor& dx1, const Io& io,
                                      const Saved& saved) const {
  const ArenaScope scope(ctx.scratch);
  const Dtype dtype = io.dtype;
  ConstTensor normed;  // tokens that travelled were kept where they arrived
  if (!moe_.parallel.active()) {
    normed = pre_feedforward_layernorm_2_.output(ctx, saved.normed_moe, saved.x1, dtype);
  }
  const Tensor d_out = ctx.scratch.alloc(dtype, io.x.shape());
  const Tensor d_normed = ctx.scratch.alloc(dtype, io.x.shape());
  post_feedforward_layernorm_2_.backward(
      ctx, {.dy = dc, .x = saved.moe_out, .rstd = saved.post_ff_2_rstd, .dx = d_out});
  nn::Gemma4MoE::Journey journey = moe_.begin_backward(ctx, d_out, *io.routing);
  if (d_normed_mlp.defined()) backward_mlp(ctx, dc, d_normed_mlp, io, saved);
  moe_.finish_backward(ctx, {.u = saved.x1, .x = normed, .dy = d_out, .dx = d_normed, .du = dx1},
                       *io.routing, std::move(journey), saved.moe);
  pre_feedforward_layernorm_2_.backward(ctx, {.dy = d_normed,
                                              .x = saved.x1,
                                              .rstd = saved.pre_ff_2_rstd,
                                              .dx = dx1,
                                              .accumulate_dx = true});
}

void Gemma4DecoderLayer::backward_mlp(Context& ctx, const ConstTensor& dc, const Tensor& d_normed,
                                      const Io& io, const Saved& saved) const {
  const ArenaScope scope(ctx.scratch);
  ConstTensor d_out = dc;
  if (moe_.defined()) {
    const Tensor d_mlp = ctx.scratch.alloc(io.dtype, io.x.shape());
    post_feedforward_layernorm_1_.backward(
        ctx, {.dy = dc, .x = saved.mlp_out, .rstd = saved.post_ff_1_rstd, .dx = d_mlp});
    d_out = d_mlp;
  }
  const ConstTensor normed =
      pre_feedforward_layernorm_.output(ctx, saved.normed_mlp, saved.x1, io.dtype);
  mlp_.backward(ctx, normed, d_out, d_normed, saved.mlp);
}

void Gemma4DecoderLayer::backward_feedforward(Context& ctx, const Io& io, const Tensor& dx1,
                                              const Saved& saved) const {
  const ArenaScope scope(ctx.scratch);
  // Of c itself, a sum of two norms; or of the MLP's output, which goes into products.
  const Tensor dc = ctx.scratch.alloc(saved.c.dtype(), io.x.shape());
  post_feedforward_layernorm_.backward(
      ctx, {.dy = dx1, .x = saved.c, .rstd = saved.post_ff_rstd, .dx = dc});
  const bool overlapped = moe_.parallel.active();
  if (moe_.defined() && !overlapped) backward_moe(ctx, dc, {}, dx1, io, saved);
  const Tensor d_normed = ctx.scratch.alloc(io.dtype, io.x.shape());
  if (overlapped)
    backward_moe(ctx, dc, d_normed, dx1, io, saved);
  else
    backward_mlp(ctx, dc, d_normed, io, saved);
  pre_feedforward_layernorm_.backward(
      ctx,
      {.dy = d_normed, .x = saved.x1, .rstd = saved.pre_ff_rstd, .dx = dx1, .accumulate_dx = true});
}

void Gemma4DecoderLayer::backward_attention(Context& ctx, const Io& io, const Gradients& grads,
                                            const Tensor& dx1, const Saved& saved) const {
  const ArenaScope scope(ctx.scratch);
  const Dtype dtype = io.dtype;
  const Tensor d_out = ctx.scratch.alloc(dtype, io.x.shape());
  const Tensor d_normed = ctx.scratch.alloc(dtype, io.x.shape());
  const ConstTensor normed = input_layernorm_.output(ctx, saved.normed, io.x, dtype);
  post_attention_layernorm_.backward(
      ctx, {.dy = dx1, .x = saved.attention_out, .rstd = saved.post_attention_rstd, .dx = d_out});
  self_attn_.backward(ctx, *io.plan, io.rows,
                      {.x = normed,
                       .dy = d_out,
                       .dx = d_normed,
                       .shared = io.shared != nullptr ? *io.shared : nn::KeyValues{},
                       .d_shared = grads.d_shared},
                      saved.attention);
  input_layernorm_.backward(
      ctx, {.dy = d_normed, .x = io.x, .rstd = saved.in_rstd, .dx = dx1, .accumulate_dx = true});
}

}  // namespace lapidary::gemma4
