#include "lapidary/ops/loss.h"

#include "lapidary/ops/cpu/cpu.h"
#include "lapidary/ops/cuda/cuda.h"
#include "lapidary/ops/dispatch.h"
#include "lapidary/ops/ref/ref.h"

namespace lapidary::ops {
namespace {

void check(const LinearCrossEntropyArgs& a) {
  const Check c("linear_cross_entropy");
  c.rank("x", a.x, 2);
  c.rank("w", a.w, 2);
  const Dtype d = a.x.dtype();
  c.tensor("w", a.w, {a.w.dim(0), a.x.dim(1)}, d);
  c.tensor("targets", a.targets, {a.x.dim(0)}, Dtype::i64);
  c.tensor("loss", a.loss, {1}, d == Dtype::c128 ? Dtype::c128 : Dtype::f64);
  c.optional("dx", a.dx, a.x.shape(), d);
  c.optional("dw", a.dw, a.w.shape(), accumulate_dtype(d));
  c.that(a.dx.defined() || !a.dw.defined(), "dw without dx");
}

void check(const SoftcapArgs& a) { Check("softcap").rank("logits", a.logits, 2); }

}  // namespace

void linear_cross_entropy(Context& ctx, const LinearCrossEntropyArgs& a) {
  check(a);
  dispatch(ctx, "linear_cross_entropy", a,
           {cpu::linear_cross_entropy, ref::linear_cross_entropy, cuda::linear_cross_entropy,
            cpu::linear_cross_entropy_scratch_bytes, cuda::linear_cross_entropy_scratch_bytes});
}

void softcap(Context& ctx, const SoftcapArgs& a) {
  check(a);
  dispatch(ctx, "softcap", a, {cpu::softcap, ref::softcap, cuda::softcap});
}

}  // namespace lapidary::ops
