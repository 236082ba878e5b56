#include "lapidary/nn/norm.h"

#include "lapidary/ops/norm.h"

namespace lapidary::nn {

void RmsNorm::forward(Context& ctx, const ForwardArgs& args) const {
  ops::rms_norm(ctx, {.x = args.x,
                      .w = weight.value,
                      .residual = args.residual,
                      .y = args.y,
                      .rstd = args.rstd,
                      .eps = eps});
}

void RmsNorm::backward(Context& ctx, const BackwardArgs& args) const {
  ops::rms_norm_bwd(ctx, {.dy = args.dy,
                          .x = args.x,
                          .w = weight.value,
                          .rstd = args.rstd,
                          .dx = args.dx,
                          .accumulate_dx = args.accumulate_dx,
                          .dw = weight.grad});
}

ConstTensor RmsNorm::output(Context& ctx, const ConstTensor& saved, const ConstTensor& x,
                            Dtype dtype) const {
  if (saved.defined()) return saved;
  const Tensor y = ctx.scratch.alloc(dtype, x.shape());
  forward(ctx, {.x = x, .y = y});
  return y;
}

}  // namespace lapidary::nn
