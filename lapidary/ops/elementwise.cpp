#include "lapidary/ops/elementwise.h"

#include "lapidary/ops/cpu/cpu.h"
#include "lapidary/ops/cuda/cuda.h"
#include "lapidary/ops/dispatch.h"
#include "lapidary/ops/ref/ref.h"

namespace lapidary::ops {
namespace {

void check(const AxpbyArgs& a) {
  const Check c("axpby");
  c.rank("a", a.a, 2);
  c.shape("out", a.out, a.a.shape());
  if (a.b.defined()) c.shape("b", a.b, a.a.shape());
}

void check(const ScaleByArgs& a) {
  const Check c("scale_by");
  c.rank("a", a.a, 2);
  c.shape("s", a.s, {1});
  c.that(accumulate_dtype(a.s.dtype()) == accumulate_dtype(a.a.dtype()), "s has a foreign type");
  c.tensor("out", a.out, a.a.shape(), a.a.dtype());
}

}  // namespace

void axpby(Context& ctx, const AxpbyArgs& a) {
  check(a);
  dispatch(ctx, "axpby", a, {cpu::axpby, ref::axpby, cuda::axpby});
}

void scale_by(Context& ctx, const ScaleByArgs& a) {
  check(a);
  dispatch(ctx, "scale_by", a, {cpu::scale_by, ref::scale_by, cuda::scale_by});
}

void fill_zero(Context& ctx, const Tensor& t) {
  if (!t.contiguous()) fail("fill_zero", "tensor " + t.shape().str() + " is not contiguous");
  dispatch(ctx, "fill_zero", t, {cpu::fill_zero, ref::fill_zero, cuda::fill_zero});
}

}  // namespace lapidary::ops
