#include "lapidary/nn/moe.h"

#include "lapidary/ops/glu.h"
#include "lapidary/ops/moe.h"

namespace lapidary::nn {

Gemma4Gate::Gemma4Gate(const std::string& name, int64_t experts, int64_t hidden, double epsilon)
    : proj{.name = name + ".proj.weight", .shape = {experts, hidden}},
      scale{.name = name + ".scale", .shape = {hidden}, .init = Init::ones},
      per_expert_scale{.name = name + ".per_expert_scale", .shape = {experts}, .init = Init::ones},
      eps(epsilon) {}

void Gemma4Gate::forward(Context& ctx, const ConstTensor& u, const Routing& routing) const {
  ops::router(ctx, {.u = u,
                    .scale = scale.value,
                    .proj = proj.value,
                    .per_expert_scale = per_expert_scale.value,
                    .rstd = routing.rstd,
                    .indices = routing.indices,
                    .shares = routing.shares,
                    .weights = routing.weights,
                    .eps = eps});
}

void Gemma4Gate::backward(Context& ctx, const ConstTensor& u, const Routing& routing,
                          const ConstTensor& drow_weight, const Tensor& du) const {
  ops::router_bwd(ctx, {.u = u,
                        .scale = scale.value,
                        .proj = proj.value,
                        .per_expert_scale = per_expert_scale.value,
                        .rstd = routing.rstd,
                        .indices = routing.indices,
                        .shares = routing.shares,
                        .pair_row = routing.pair_row,
                        .drow_weight = drow_weight,
                        .du = du,
                        .dscale = scale.grad,
                        .dproj = proj.grad,
                        .dper_expert_scale = per_expert_scale.grad});
}

GroupedExperts::GroupedExperts(const std::string& name, int64_t experts, int64_t hidden,
                               int64_t intermediate)
    : gate_up_proj{.name = name + ".gate_up_proj",
                   .shape = {experts, 2 * intermediate, hidden},
                   .placement = Placement::expert},
      down_proj{.name = name + ".down_proj",
                .shape = {experts, hidden, intermediate},
                .placement = Placement::expert} {}

void GroupedExperts::forward(Context& ctx, Recompute policy, const ConstTensor& x,
                             const Routing& routing, const Tensor& y, Saved& saved) const {
  const int64_t rows = routing.row_token.dim(0);
  const int64_t hidden = x.dim(1);
  const int64_t inner = down_proj.shape[2];
  const Dtype dtype = x.dtype();
  saved.gate_up = ctx.activations.alloc(dtype, {rows, 2 * inner});
  const ArenaScope scope(ctx.scratch);
  const Tensor h = alloc_light(ctx, policy, dtype, {rows, inner});
  saved.h = keep_light(policy, h);
  const Tensor sorted = ctx.scratch.alloc(dtype, {rows, hidden});  // inputs, then outputs

  ops::moe_gather(
      ctx, {.x = x, .row_token = routing.row_token, .offsets = routing.offsets, .out = sorted});
  ops::grouped_matmul(ctx, {.a = sorted,
                            .b = gate_up_proj.value,
                            .counts = routing.counts,
                            .offsets = routing.offsets,
                            .out = saved.gate_up,
                            .trans_b = true});
  ops::geglu(ctx, {.gate = saved.gate_up.slice(1, 0, inner),
                   .up = saved.gate_up.slice(1, inner, inner),
                   .row_weight = routing.row_weight,
                   .h = h});
  ops::grouped_matmul(ctx, {.a = h,
                            .b = down_proj.value,
                            .counts = routing.counts,
                            .offsets = routing.offsets,
                            .out = sorted,
                            .trans_b = true});
  ops::moe_combine(ctx, {.y = sorted, .pair_row = routing.pair_row, .out = y});
}

void GroupedExperts::backward(Context& ctx, const ConstTensor& x, const ConstTensor& dy,
                              const Routing& routing, const Tensor& dx, const Tensor& drow_weight,
                              const Saved& saved) const {
  const ArenaScope scope(ctx.scratch);
  const int64_t rows = routing.row_token.dim(0);
  const int64_t inner = down_proj.shape[2];
  const Dtype dtype = x.dtype();
  const Tensor gate = saved.gate_up.slice(1, 0, inner);
  const Tensor up = saved.gate_up.slice(1, inner, inner);
  const Tensor sorted = ctx.scratch.alloc(dtype, {rows, x.dim(1)});  // dy, then x, then dx
  const Tensor dh = ctx.scratch.alloc(dtype, {rows, inner});
  Tensor h = saved.h;
  if (!h.defined()) {
    h = ctx.scratch.alloc(dtype, {rows, inner});
    ops::geglu(ctx, {.gate = gate, .up = up, .row_weight = routing.row_weight, .h = h});
  }

  ops::moe_gather(
      ctx, {.x = dy, .row_token = routing.row_token, .offsets = routing.offsets, .out = sorted});
  ops::grouped_matmul(ctx, {.a = sorted,
                            .b = down_proj.value,
                            .counts = routing.counts,
                            .offsets = routing.offsets,
                            .out = dh});
  if (down_proj.grad.defined()) {
    ops::grouped_matmul_wgrad(ctx, {.dy = sorted,
                                    .x = h,
                                    .counts = routing.counts,
                                    .offsets = routing.offsets,
                                    .dw = down_proj.grad});
  }
  ops::geglu_bwd(ctx, {.dh = dh,
                       .gate = gate,
                       .up = up,
                       .row_weight = routing.row_weight,
                       .dgate = gate,
                       .dup = up,
                       .drow_weight = drow_weight});
  if (gate_up_proj.grad.defined()) {
    ops::moe_gather(
        ctx, {.x = x, .row_token = routing.row_token, .offsets = routing.offsets, .out = sorted});
    ops::grouped_matmul_wgrad(ctx, {.dy = saved.gate_up,
                                    .x = sorted,
                                    .counts = routing.counts,
                                    .offsets = routing.offsets,
                                    .dw = gate_up_proj.grad});
  }
  ops::grouped_matmul(ctx, {.a = saved.gate_up,
                            .b = gate_up_proj.value,
                            .counts = routing.counts,
                            .offsets = routing.offsets,
                            .out = sorted});
  ops::moe_combine(ctx, {.y = sorted, .pair_row = routing.pair_row, .out = dx});
}

Gemma4MoE::Gemma4MoE(const std::string& layer, const Options& options)
    : gate(layer + ".router", options.experts, options.hidden, options.eps),
      experts(layer + ".experts", options.experts, options.hidden, options.intermediate),
      top_k(options.top_k) {}

Routing Gemma4MoE::alloc_routing(Context& ctx, int64_t tokens, Dtype dtype) const {
  const int64_t n = gate.proj.shape[0];
  const int64_t rows = ops::max_sorted_rows(tokens, top_k, n, ops::row_alignment(ctx));
  const Dtype acc = accumulate_dtype(dtype);
  Arena& arena = ctx.activations;
  return {.rstd = arena.alloc(acc, {tokens}),
          .indices = arena.alloc(Dtype::i32, {tokens, top_k}),
          .shares = arena.alloc(acc, {tokens, top_k}),
          .weights = arena.alloc(acc, {tokens, top_k}),
          .counts = arena.alloc(Dtype::i32, {n}),
          .offsets = arena.alloc(Dtype::i32, {n + 1}),
          .row_token = arena.alloc(Dtype::i32, {rows}),
          .row_weight = arena.alloc(acc, {rows}),
          .pair_row = arena.alloc(Dtype::i32, {tokens, top_k})};
}

void Gemma4MoE::forward(Context& ctx, Recompute policy, const ForwardArgs& args, Routing& routing,
                        GroupedExperts::Saved& saved) const {
  if (!routing.decided) {
    gate.forward(ctx, args.u, routing);
    ops::moe_sort(ctx, {.indices = routing.indices,
                        .weights = routing.weights,
                        .token_valid = args.token_valid,
                        .align = ops::row_alignment(ctx),
                        .counts = routing.counts,
                        .offsets = routing.offsets,
                        .row_token = routing.row_token,
                        .row_weight = routing.row_weight,
                        .pair_row = routing.pair_row,
                        .loads = args.loads});
    routing.decided = true;
  }
  experts.forward(ctx, policy, args.x, routing, args.y, saved);
}

void Gemma4MoE::backward(Context& ctx, const BackwardArgs& args, const Routing& routing,
                         const GroupedExperts::Saved& saved) const {
  const ArenaScope scope(ctx.scratch);
  const Tensor drow_weight =
      ctx.scratch.alloc(routing.row_weight.dtype(), routing.row_weight.shape());
  experts.backward(ctx, args.x, args.dy, routing, args.dx, drow_weight, saved);
  gate.backward(ctx, args.u, routing, drow_weight, args.du);
}

}  // namespace lapidary::nn
