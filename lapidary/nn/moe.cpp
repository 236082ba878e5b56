#include "lapidary/nn/moe.h"

#include <algorithm>
#include <numeric>

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
                          const ConstTensor& pair_row, const ConstTensor& drow_weight,
                          const Tensor& du) const {
  ops::router_bwd(ctx, {.u = u,
                        .scale = scale.value,
                        .proj = proj.value,
                        .per_expert_scale = per_expert_scale.value,
                        .rstd = routing.rstd,
                        .indices = routing.indices,
                        .shares = routing.shares,
                        .pair_row = pair_row,
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
      top_k(options.top_k) {
  if (options.ep != nullptr) ep = ExpertParallel(*options.ep, options.experts);
}

Routing Gemma4MoE::alloc_routing(Context& ctx, int64_t tokens, int64_t max_received,
                                 Dtype dtype) const {
  const int64_t n = distributed() ? ep.experts().size() : gate.proj.shape[0];
  const int64_t rows =
      ops::max_sorted_rows(max_received, std::min(top_k, n), n, ops::row_alignment(ctx));
  const Dtype acc = accumulate_dtype(dtype);
  Arena& arena = ctx.activations;
  Routing routing{.rstd = arena.alloc(acc, {tokens}),
                  .indices = arena.alloc(Dtype::i32, {tokens, top_k}),
                  .shares = arena.alloc(acc, {tokens, top_k}),
                  .weights = arena.alloc(acc, {tokens, top_k}),
                  .counts = arena.alloc(Dtype::i32, {n}),
                  .offsets = arena.alloc(Dtype::i32, {n + 1}),
                  .row_token = arena.alloc(Dtype::i32, {rows}),
                  .row_weight = arena.alloc(acc, {rows}),
                  .pair_row = arena.alloc(Dtype::i32, {max_received, top_k}),
                  .route = {}};
  if (distributed()) routing.route = ep.alloc(ctx, tokens, max_received, top_k, acc);
  return routing;
}

// ---- forward -----------------------------------------------------------------------------------

void Gemma4MoE::sort(Context& ctx, const ForwardArgs& args, Routing& routing) const {
  ops::MoeSortArgs sort{.indices = routing.indices,
                        .weights = routing.weights,
                        .token_valid = args.token_valid,
                        .align = ops::row_alignment(ctx),
                        .counts = routing.counts,
                        .offsets = routing.offsets,
                        .row_token = routing.row_token,
                        .row_weight = routing.row_weight,
                        .pair_row = routing.pair_row,
                        .loads = args.loads};
  if (distributed()) {
    ep.plan(ctx, {routing.indices, routing.weights, args.token_valid}, routing.route);
    const int64_t received = routing.route.received, n = ep.experts().size();
    const int64_t rows = ops::max_sorted_rows(received, std::min(top_k, n), n, sort.align);
    routing.pair_row = routing.pair_row.slice(0, 0, received);
    routing.row_token = routing.row_token.slice(0, 0, rows);
    routing.row_weight = routing.row_weight.slice(0, 0, rows);
    sort.indices = routing.route.indices;
    sort.weights = routing.route.weights;
    sort.token_valid = {};  // padding did not travel
    sort.row_token = routing.row_token;
    sort.row_weight = routing.row_weight;
    sort.pair_row = routing.pair_row;
    if (args.loads.defined()) sort.loads = args.loads.slice(0, ep.experts().begin, n);
  }
  ops::moe_sort(ctx, sort);
}

void Gemma4MoE::begin_forward(Context& ctx, const ForwardArgs& args, Routing& routing, Saved& saved,
                              Travel& travel) const {
  if (!routing.decided) {
    gate.forward(ctx, args.u, routing);
    sort(ctx, args, routing);
    routing.decided = true;
  }
  if (!distributed()) return;
  const ExpertRoute& route = routing.route;
  saved.received = ctx.activations.alloc(args.x.dtype(), {route.received, args.x.dim(1)});
  travel.sent = ctx.scratch.alloc(args.x.dtype(), {route.sent, args.x.dim(1)});
  travel.pending = ep.dispatch(ctx, route, args.x, travel.sent, saved.received);
}

void Gemma4MoE::finish_forward(Context& ctx, Recompute policy, const ForwardArgs& args,
                               const Routing& routing, Saved& saved, Travel& travel) const {
  if (!distributed()) return experts.forward(ctx, policy, args.x, routing, args.y, saved.experts);
  travel.pending.wait();
  const ArenaScope scope(ctx.scratch);
  const Tensor y = ctx.scratch.alloc(args.x.dtype(), saved.received.shape());
  experts.forward(ctx, policy, saved.received, routing, y, saved.experts);
  ep.combine(ctx, routing.route, y, args.y);
}

void Gemma4MoE::forward(Context& ctx, Recompute policy, const ForwardArgs& args, Routing& routing,
                        Saved& saved) const {
  const ArenaScope scope(ctx.scratch);
  Travel travel;
  begin_forward(ctx, args, routing, saved, travel);
  finish_forward(ctx, policy, args, routing, saved, travel);
}

// ---- backward ----------------------------------------------------------------------------------

void Gemma4MoE::begin_backward(Context& ctx, const BackwardArgs& args, const Routing& routing,
                               Travel& travel) const {
  if (!distributed()) return;
  const ExpertRoute& route = routing.route;
  travel.sent = ctx.scratch.alloc(args.dy.dtype(), {route.sent, args.dy.dim(1)});
  travel.arrived = ctx.scratch.alloc(args.dy.dtype(), {route.received, args.dy.dim(1)});
  travel.pending = ep.dispatch(ctx, route, args.dy, travel.sent, travel.arrived);
}

void Gemma4MoE::finish_backward(Context& ctx, const BackwardArgs& args, const Routing& routing,
                                const Saved& saved, Travel& travel) const {
  travel.pending.wait();
  const ArenaScope scope(ctx.scratch);
  if (distributed())
    backward_travelled(ctx, args, routing, saved, travel);
  else
    backward_here(ctx, args, routing, saved);
}

void Gemma4MoE::backward_here(Context& ctx, const BackwardArgs& args, const Routing& routing,
                              const Saved& saved) const {
  const Tensor drow_weight =
      ctx.scratch.alloc(routing.row_weight.dtype(), routing.row_weight.shape());
  experts.backward(ctx, args.x, args.dy, routing, args.dx, drow_weight, saved.experts);
  gate.backward(ctx, args.u, routing, routing.pair_row, drow_weight, args.du);
}

void Gemma4MoE::backward_travelled(Context& ctx, const BackwardArgs& args, const Routing& routing,
                                   const Saved& saved, const Travel& travel) const {
  const Dtype acc = routing.row_weight.dtype();
  const int64_t tokens = args.dx.dim(0), received = routing.route.received;
  const Tensor drow_weight = ctx.scratch.alloc(acc, routing.row_weight.shape());
  const Tensor dx = ctx.scratch.alloc(args.dx.dtype(), saved.received.shape());
  experts.backward(ctx, saved.received, travel.arrived, routing, dx, drow_weight, saved.experts);
  ep.combine(ctx, routing.route, dx, args.dx);

  // The gradients of the weights, from the layout of the experts to that of the tokens.
  const Tensor here = ctx.scratch.alloc(acc, {received, top_k});
  const Tensor dweights = ctx.scratch.alloc(acc, {tokens, top_k});
  const Tensor pairs = ctx.scratch.alloc(Dtype::i32, {tokens, top_k});
  const Tensor end = ctx.scratch.alloc(Dtype::i32, {1});
  if (ctx.backend != Backend::meta) {
    end.as<int32_t>()[0] = static_cast<int32_t>(received * top_k);
    std::iota(pairs.as<int32_t>(), pairs.as<int32_t>() + pairs.numel(), 0);
  }
  ops::moe_gather(ctx, {.x = drow_weight.view({drow_weight.numel(), 1}),
                        .row_token = routing.pair_row.view({received * top_k}),
                        .offsets = end,
                        .out = here.view({received * top_k, 1})});
  ep.combine(ctx, routing.route, here, dweights);
  gate.backward(ctx, args.u, routing, pairs, dweights.view({dweights.numel()}), args.du);
}

void Gemma4MoE::backward(Context& ctx, const BackwardArgs& args, const Routing& routing,
                         const Saved& saved) const {
  const ArenaScope scope(ctx.scratch);
  Travel travel;
  begin_backward(ctx, args, routing, travel);
  finish_backward(ctx, args, routing, saved, travel);
}

}  // namespace lapidary::nn
