#include "lapidary/ops/adamw.h"

#include <cmath>

#include "lapidary/ops/adamw_step.h"
#include "lapidary/ops/cpu/cpu.h"
#include "lapidary/ops/cuda/cuda.h"
#include "lapidary/ops/dispatch.h"
#include "lapidary/ops/ref/ref.h"

namespace lapidary::ops {
namespace {

void check_moments(const Check& c, const AdamWArgs& a, Dtype acc) {
  const Dtype kind = a.m.dtype();
  const bool half = kind == Dtype::bf16 && acc == Dtype::f32;
  c.that(kind == acc || half || kind == Dtype::u8,
         std::string("cannot keep moments in ") + name_of(kind));
  c.tensor("m", a.m, a.param.shape(), kind);
  c.tensor("v", a.v, a.param.shape(), kind);
  if (kind != Dtype::u8) return;
  const Shape blocks{(a.param.numel() + kQuantBlock - 1) / kQuantBlock};
  c.tensor("m_scale", a.m_scale, blocks, acc);
  c.tensor("v_scale", a.v_scale, blocks, acc);
}

void check(const AdamWArgs& a) {
  const Check c("adamw");
  const Dtype acc = accumulate_dtype(a.param.dtype());
  c.optional("master", a.master, a.param.shape(), acc);
  c.that(a.master.defined() || a.param.dtype() == acc || a.stochastic_rounding,
         "a 16-bit parameter needs a master copy or stochastic rounding");
  c.that(!a.master.defined() || !a.stochastic_rounding,
         "stochastic rounding is for a parameter without a master copy");
  c.that(a.first_element >= 0 && a.first_element % kQuantBlock == 0,
         "first_element is not a multiple of " + std::to_string(kQuantBlock));
  c.tensor("grad", a.grad, a.param.shape(), acc);
  check_moments(c, a, acc);
  c.optional("scale", a.scale, {1}, Dtype::f64);
  c.that(a.step >= 1, "step counts from 1");
}

}  // namespace

AdamWStep adamw_step(const AdamWArgs& a, double grad_scale) {
  const auto t = static_cast<double>(a.step);
  return {.grad_scale = static_cast<float>(grad_scale),
          .beta1 = static_cast<float>(a.beta1),
          .one_minus_beta1 = static_cast<float>(1.0 - a.beta1),
          .beta2 = static_cast<float>(a.beta2),
          .one_minus_beta2 = static_cast<float>(1.0 - a.beta2),
          .decay = static_cast<float>(1.0 - a.lr * a.weight_decay),
          .rate = static_cast<float>(a.lr / (1.0 - std::pow(a.beta1, t))),
          .v_factor = static_cast<float>(1.0 / std::sqrt(1.0 - std::pow(a.beta2, t))),
          .eps = static_cast<float>(a.eps)};
}

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

void clip_scale(Context& ctx, const ClipScaleArgs& a) {
  const Check c("clip_scale");
  c.tensor("sum", a.sum, {a.sum.numel()}, Dtype::f64);
  c.tensor("norm", a.norm, {1}, Dtype::f64);
  c.tensor("scale", a.scale, {1}, Dtype::f64);
  dispatch(ctx, "clip_scale", a, {cpu::clip_scale, ref::clip_scale, cuda::clip_scale});
}

}  // namespace lapidary::ops
