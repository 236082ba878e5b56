#include "lapidary/ops/norm.h"

#include "lapidary/ops/cpu/cpu.h"
#include "lapidary/ops/dispatch.h"
#include "lapidary/ops/ref/ref.h"

namespace lapidary::ops {
namespace {

void check(const RmsNormArgs& a) {
  const Check c("rms_norm");
  c.rank("x", a.x, 2);
  const Dtype d = a.x.dtype();
  c.optional("w", a.w, {a.x.dim(1)}, d);
  c.optional("residual", a.residual, a.x.shape(), d);
  c.tensor("y", a.y, a.x.shape(), d);
  c.optional("rstd", a.rstd, {a.x.dim(0)}, accumulate_dtype(d));
}

void check(const RmsNormBwdArgs& a) {
  const Check c("rms_norm_bwd");
  c.rank("x", a.x, 2);
  const Dtype d = a.x.dtype();
  c.tensor("dy", a.dy, a.x.shape(), d);
  c.optional("w", a.w, {a.x.dim(1)}, d);
  c.tensor("rstd", a.rstd, {a.x.dim(0)}, accumulate_dtype(d));
  c.optional("dx", a.dx, a.x.shape(), d);
  c.optional("dw", a.dw, {a.x.dim(1)}, accumulate_dtype(d));
  c.that(!a.dw.defined() || a.w.defined(), "dw without w");
}

}  // namespace

void rms_norm(Context& ctx, const RmsNormArgs& a) {
  check(a);
  dispatch(
      ctx, "rms_norm", [&] { cpu::rms_norm(ctx, a); }, [&] { ref::rms_norm(ctx, a); });
}

void rms_norm_bwd(Context& ctx, const RmsNormBwdArgs& a) {
  check(a);
  dispatch(
      ctx, "rms_norm_bwd", [&] { cpu::rms_norm_bwd(ctx, a); }, [&] { ref::rms_norm_bwd(ctx, a); },
      [&] { count_scratch(ctx, cpu::rms_norm_bwd_scratch_bytes(a)); });
}

}  // namespace lapidary::ops
