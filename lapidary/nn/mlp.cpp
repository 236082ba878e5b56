#include "lapidary/nn/mlp.h"

#include "lapidary/ops/glu.h"

namespace lapidary::nn {

void Mlp::forward(Context& ctx, Recompute policy, const ConstTensor& x, const Tensor& y,
                  Saved& saved) const {
  const Shape inner{x.dim(0), gate_proj.weight.shape[0]};
  saved.gate = ctx.activations.alloc(x.dtype(), inner);
  saved.up = ctx.activations.alloc(x.dtype(), inner);
  const ArenaScope scope(ctx.scratch);
  const Tensor h = alloc_light(ctx, policy, x.dtype(), inner);
  saved.h = keep_light(policy, h);
  gate_proj.forward(ctx, x, saved.gate);
  up_proj.forward(ctx, x, saved.up);
  ops::geglu(ctx, {.gate = saved.gate, .up = saved.up, .h = h});
  down_proj.forward(ctx, h, y);
}

void Mlp::backward(Context& ctx, const ConstTensor& x, const ConstTensor& dy, const Tensor& dx,
                   const Saved& saved) const {
  const ArenaScope scope(ctx.scratch);
  const Tensor dh = ctx.scratch.alloc(x.dtype(), saved.gate.shape());
  Tensor h = saved.h;
  if (!h.defined()) {
    h = ctx.scratch.alloc(x.dtype(), saved.gate.shape());
    ops::geglu(ctx, {.gate = saved.gate, .up = saved.up, .h = h});
  }
  down_proj.backward(ctx, {.x = h, .dy = dy, .dx = dh});
  ops::geglu_bwd(
      ctx, {.dh = dh, .gate = saved.gate, .up = saved.up, .dgate = saved.gate, .dup = saved.up});
  gate_proj.backward(ctx, {.x = x, .dy = saved.gate, .dx = dx});
  up_proj.backward(ctx, {.x = x, .dy = saved.up, .dx = dx, .accumulate_dx = true});
}

}  // namespace lapidary::nn
