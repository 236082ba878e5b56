#include "lapidary/nn/moe.h"

#include <numeric>
#include <utility>

#include "lapidary/ops/glu.h"
#include "lapidary/ops/moe.h"

namespace lapidary::nn {
namespace {

// What the profile shows of a journey is the time that nothing else covered.
void wait(Context& ctx, Pending& pending) {
  const ProfileScope profile(ctx.profiler, "ep_wait");
  pending.wait();
}

}  // namespace

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
                        .pair_row = routing.weight_row,
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
      parallel(options.ep, options.experts),
      top_k(options.top_k) {}

Routing Gemma4MoE::alloc_routing(Context& ctx, int64_t tokens, Dtype dtype) const {
  const int64_t n = parallel.experts().size();
  const Dtype acc = accumulate_dtype(dtype);
  Arena& arena = ctx.activations;
  Routing r{.rstd = arena.alloc(acc, {tokens}),
            .indices = arena.alloc(Dtype::i32, {tokens, top_k}),
            .shares = arena.alloc(acc, {tokens, top_k}),
            .weights = arena.alloc(acc, {tokens, top_k}),
            .counts = arena.alloc(Dtype::i32, {n}),
            .offsets = arena.alloc(Dtype::i32, {n + 1})};
  int64_t seen = tokens;
  if (parallel.active()) {
    r.plan = parallel.alloc(ctx, tokens, top_k, acc);
    r.weight_row = arena.alloc(Dtype::i32, {tokens, top_k});
    seen = r.plan.received();
  }
  const int64_t rows =
      ops::max_sorted_rows(seen, parallel.top_k_here(top_k), n, ops::row_alignment(ctx));
  r.row_token = arena.alloc(Dtype::i32, {rows});
  r.row_weight = arena.alloc(acc, {rows});
  r.pair_row = arena.alloc(Dtype::i32, {seen, top_k});
  if (!parallel.active()) r.weight_row = r.pair_row;
  return r;
}

void Gemma4MoE::decide(Context& ctx, const ForwardArgs& args, Routing& routing) const {
  gate.forward(ctx, args.u, routing);
  if (parallel.active()) {
    parallel.plan(
        ctx,
        {.indices = routing.indices, .weights = routing.weights, .token_valid = args.token_valid},
        routing.plan);
    const int64_t rows =
        routing.plan.pairs + parallel.experts().size() * (ops::row_alignment(ctx) - 1);
    routing.row_token = routing.row_token.slice(0, 0, rows);
    routing.row_weight = routing.row_weight.slice(0, 0, rows);
    routing.pair_row = routing.pair_row.slice(0, 0, routing.plan.received());
    if (ctx.backend != Backend::meta) {  // return_weights() puts the gradients in pair order
      int32_t* at = routing.weight_row.as<int32_t>();
      std::iota(at, at + routing.weight_row.numel(), 0);
    }
  }
  sort(ctx, args, routing);
  routing.decided = true;
}

void Gemma4MoE::sort(Context& ctx, const ForwardArgs& args, Routing& routing) const {
  const bool travelled = parallel.active();
  const Interval here = parallel.experts();
  ops::moe_sort(ctx, {.indices = travelled ? routing.plan.ids : routing.indices,
                      .weights = travelled ? routing.plan.weights : routing.weights,
                      .token_valid = travelled ? ConstTensor() : args.token_valid,
                      .align = ops::row_alignment(ctx),
                      .counts = routing.counts,
                      .offsets = routing.offsets,
                      .row_token = routing.row_token,
                      .row_weight = routing.row_weight,
                      .pair_row = routing.pair_row,
                      .loads = args.loads.defined() ? args.loads.slice(0, here.begin, here.size())
                                                    : Tensor()});
}

// ---- forward -----------------------------------------------------------------------------------

Gemma4MoE::Journey Gemma4MoE::begin_forward(Context& ctx, const ForwardArgs& args, Routing& routing,
                                            Saved& saved) const {
  if (!routing.decided) decide(ctx, args, routing);
  Journey journey;
  if (!parallel.active()) return journey;
  const int64_t hidden = args.x.dim(1);
  saved.x = ctx.activations.alloc(args.x.dtype(), {routing.plan.received(), hidden});
  journey.rows = saved.x;
  journey.sent = ctx.scratch.alloc(args.x.dtype(), {routing.plan.sent(), hidden});
  journey.pending = parallel.start_dispatch(ctx, routing.plan, args.x, journey.sent, journey.rows);
  return journey;
}

void Gemma4MoE::finish_forward(Context& ctx, Recompute policy, const ForwardArgs& args,
                               const Routing& routing, Journey journey, Saved& saved) const {
  if (!parallel.active()) {
    experts.forward(ctx, policy, args.x, routing, args.y, saved.experts);
    return;
  }
  wait(ctx, journey.pending);
  const ArenaScope scope(ctx.scratch);
  const Tensor y = ctx.scratch.alloc(journey.rows.dtype(), journey.rows.shape());
  experts.forward(ctx, policy, journey.rows, routing, y, saved.experts);
  parallel.combine(ctx, routing.plan, y, journey.sent, args.y);
}

void Gemma4MoE::forward(Context& ctx, Recompute policy, const ForwardArgs& args, Routing& routing,
                        Saved& saved) const {
  const ArenaScope scope(ctx.scratch);
  Journey journey = begin_forward(ctx, args, routing, saved);
  finish_forward(ctx, policy, args, routing, std::move(journey), saved);
}

// ---- backward ----------------------------------------------------------------------------------

Gemma4MoE::Journey Gemma4MoE::begin_backward(Context& ctx, const ConstTensor& dy,
                                             const Routing& routing) const {
  Journey journey;
  if (!parallel.active()) return journey;
  journey.rows = ctx.scratch.alloc(dy.dtype(), {routing.plan.received(), dy.dim(1)});
  journey.sent = ctx.scratch.alloc(dy.dtype(), {routing.plan.sent(), dy.dim(1)});
  journey.pending = parallel.start_dispatch(ctx, routing.plan, dy, journey.sent, journey.rows);
  return journey;
}

void Gemma4MoE::return_weights(Context& ctx, const Routing& routing, const ConstTensor& drow_weight,
                               const Tensor& dweights) const {
  const ArenaScope scope(ctx.scratch);
  const int64_t pairs = routing.pair_row.numel();
  const Tensor all = ctx.scratch.alloc(Dtype::i32, {1});
  const Tensor received = ctx.scratch.alloc(drow_weight.dtype(), {pairs, 1});
  const Tensor sent = ctx.scratch.alloc(drow_weight.dtype(), {routing.plan.sent(), top_k});
  if (ctx.backend != Backend::meta) *all.as<int32_t>() = static_cast<int32_t>(pairs);
  ops::moe_gather(ctx, {.x = drow_weight.view({drow_weight.dim(0), 1}),
                        .row_token = routing.pair_row.view({pairs}),
                        .offsets = all,
                        .out = received});
  parallel.combine(ctx, routing.plan, received.view(routing.pair_row.shape()), sent, dweights);
}

void Gemma4MoE::finish_backward(Context& ctx, const BackwardArgs& args, const Routing& routing,
                                Journey journey, const Saved& saved) const {
  const ArenaScope scope(ctx.scratch);
  const Dtype acc = routing.row_weight.dtype();
  const Tensor drow_weight = ctx.scratch.alloc(acc, routing.row_weight.shape());
  if (!parallel.active()) {
    experts.backward(ctx, args.x, args.dy, routing, args.dx, drow_weight, saved.experts);
    gate.backward(ctx, args.u, routing, drow_weight, args.du);
    return;
  }
  wait(ctx, journey.pending);
  const Tensor dweights = ctx.scratch.alloc(acc, routing.weights.shape());
  experts.backward(ctx, saved.x, journey.rows, routing, journey.rows, drow_weight, saved.experts);
  return_weights(ctx, routing, drow_weight, dweights);
  parallel.combine(ctx, routing.plan, journey.rows, journey.sent, args.dx);
  gate.backward(ctx, args.u, routing, dweights.view({dweights.numel()}), args.du);
}

void Gemma4MoE::backward(Context& ctx, const BackwardArgs& args, const Routing& routing,
                         const Saved& saved) const {
  const ArenaScope scope(ctx.scratch);
  finish_backward(ctx, args, routing, begin_backward(ctx, args.dy, routing), saved);
}

}  // namespace lapidary::nn
