#include "lapidary/nn/linear.h"

#include "lapidary/ops/matmul.h"

namespace lapidary::nn {

void Linear::forward(Context& ctx, const ConstTensor& x, const Tensor& y) const {
  ops::matmul(ctx, {.a = x, .b = weight.value, .out = y, .trans_b = true});
}

void Linear::backward(Context& ctx, const BackwardArgs& args) const {
  if (args.dx.defined()) {
    ops::matmul(
        ctx, {.a = args.dy, .b = weight.value, .out = args.dx, .accumulate = args.accumulate_dx});
  }
  if (weight.grad.defined()) {
    ops::matmul(
        ctx, {.a = args.dy, .b = args.x, .out = weight.grad, .trans_a = true, .accumulate = true});
  }
}

}  // namespace lapidary::nn
