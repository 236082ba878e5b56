#include "lapidary/ops/norm.h"

#include "lapidary/ops/cpu/cpu.h"
#include "lapidary/ops/cuda/cuda.h"
#include "lapidary/ops/dispatch.h"
#include "lapidary/ops/ref/ref.h"

namespace lapidary::ops {
namespace {

// A model's weights have one type; the residual stream and its gradient are in its accumulate type.
void check_float(const Check& c, const char* name, const ConstTensor& t, Dtype acc) {
  c.that(!t.defined() || accumulate_dtype(t.dtype()) == acc,
         std::string(name) + " is " + name_of(t.dtype()) + ", foreign to the other tensors");
}

void check(const RmsNormArgs& a) {
  const Check c("rms_norm");
  c.rank("x", a.x, 2);
  const Dtype acc = accumulate_dtype(a.x.dtype());
  if (a.w.defined()) c.shape("w", a.w, {a.x.dim(1)});
  check_float(c, "w", a.w, acc);
  c.shape("y", a.y, a.x.shape());
  check_float(c, "y", a.y, acc);
  c.optional("residual", a.residual, a.x.shape(), a.y.dtype());
  c.optional("rstd", a.rstd, {a.x.dim(0)}, acc);
}

void check(const RmsNormBwdArgs& a) {
  const Check c("rms_norm_bwd");
  c.rank("x", a.x, 2);
  const Dtype acc = accumulate_dtype(a.x.dtype());
  c.shape("dy", a.dy, a.x.shape());
  check_float(c, "dy", a.dy, acc);
  if (a.w.defined()) c.shape("w", a.w, {a.x.dim(1)});
  check_float(c, "w", a.w, acc);
  c.tensor("rstd", a.rstd, {a.x.dim(0)}, acc);
  if (a.dx.defined()) c.shape("dx", a.dx, a.x.shape());
  check_float(c, "dx", a.dx, acc);
  c.optional("dw", a.dw, {a.x.dim(1)}, acc);
  c.that(!a.dw.defined() || a.w.defined(), "dw without w");
}

}  // namespace

void rms_norm(Context& ctx, const RmsNormArgs& a) {
  check(a);
  dispatch(ctx, "rms_norm", a,
           {cpu::rms_norm, ref::rms_norm, cuda::rms_norm, cpu::rms_norm_scratch_bytes,
            cuda::rms_norm_scratch_bytes});
}

void rms_norm_bwd(Context& ctx, const RmsNormBwdArgs& a) {
  check(a);
  dispatch(ctx, "rms_norm_bwd", a,
           {cpu::rms_norm_bwd, ref::rms_norm_bwd, cuda::rms_norm_bwd,
            cpu::rms_norm_bwd_scratch_bytes, cuda::rms_norm_bwd_scratch_bytes});
}

}  // namespace lapidary::ops
