#include "lapidary/ops/adamw.h"

#include "lapidary/ops/cpu/cpu.h"
#include "lapidary/ops/cuda/cuda.h"
#include "lapidary/ops/dispatch.h"
#include "lapidary/ops/ref/ref.h"

namespace lapidary::ops {
namespace {

void check(const AdamWArgs& a) {
  const Check c("adamw");
  const Dtype acc = accumulate_dtype(a.param.dtype());
  c.optional("master", a.master, a.param.shape(), acc);
  c.that(a.master.defined() || a.param.dtype() == acc, "a 16-bit parameter needs a master copy");
  c.tensor("grad", a.grad, a.param.shape(), acc);
  c.tensor("m", a.m, a.param.shape(), acc);
  c.tensor("v", a.v, a.param.shape(), acc);
  c.that(a.step >= 1, "step counts from 1");
}

}  // namespace

void adamw(Context& ctx, const AdamWArgs& a) {
  check(a);
  dispatch(ctx, "adamw", a, {cpu::adamw, ref::adamw, cuda::adamw});
}

void sum_of_squares(Context& ctx, const SumOfSquaresArgs& a) {
  const Check c("sum_of_squares");
  c.tensor("sum", a.sum, {1}, Dtype::f64);
  dispatch(ctx, "sum_of_squares", a,
           {cpu::sum_of_squares, ref::sum_of_squares, cuda::sum_of_squares, nullptr,
            cuda::sum_of_squares_scratch_bytes});
}

}  // namespace lapidary::ops
