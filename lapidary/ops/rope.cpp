#include "lapidary/ops/rope.h"

#include "lapidary/ops/cpu/cpu.h"
#include "lapidary/ops/cuda/cuda.h"
#include "lapidary/ops/dispatch.h"
#include "lapidary/ops/ref/ref.h"

namespace lapidary::ops {
namespace {

void check(const RopeTableArgs& a) {
  const Check c("rope_table");
  c.rank("positions", a.positions, 1);
  c.dtype("positions", a.positions, Dtype::i64);
  c.rank("inv_freq", a.inv_freq, 1);
  c.dtype("inv_freq", a.inv_freq, Dtype::f64);
  c.tensor("sin", a.sin, {a.positions.dim(0), a.inv_freq.dim(0)}, a.cos.dtype());
  c.shape("cos", a.cos, a.sin.shape());
}

void check(const NormRopeArgs& a) {
  const Check c("norm_rope");
  c.rank("x", a.x, 3);
  const Dtype d = a.x.dtype();
  const Dtype acc = accumulate_dtype(d);
  c.that(a.x.dim(2) % 2 == 0, "head size " + std::to_string(a.x.dim(2)) + " is odd");
  c.tensor("w", a.w, {a.x.dim(2)}, d);
  c.tensor("cos", a.cos, {a.x.dim(0), a.x.dim(2) / 2}, acc);
  c.tensor("sin", a.sin, {a.x.dim(0), a.x.dim(2) / 2}, acc);
  c.tensor("y", a.y, a.x.shape(), d);
  c.optional("rstd", a.rstd, {a.x.dim(0) * a.x.dim(1)}, acc);
}

void check(const NormRopeBwdArgs& a) {
  const Check c("norm_rope_bwd");
  c.rank("x", a.x, 3);
  const Dtype d = a.x.dtype();
  const Dtype acc = accumulate_dtype(d);
  c.that(a.x.dim(2) % 2 == 0, "head size " + std::to_string(a.x.dim(2)) + " is odd");
  c.shape("dy", a.dy, a.x.shape());
  c.that(a.dy.dtype() == d || a.dy.dtype() == acc, "dy has a foreign element type");
  c.tensor("w", a.w, {a.x.dim(2)}, d);
  c.tensor("cos", a.cos, {a.x.dim(0), a.x.dim(2) / 2}, acc);
  c.tensor("sin", a.sin, {a.x.dim(0), a.x.dim(2) / 2}, acc);
  c.tensor("rstd", a.rstd, {a.x.dim(0) * a.x.dim(1)}, acc);
  c.tensor("dx", a.dx, a.x.shape(), d);
  c.optional("dw", a.dw, {a.x.dim(2)}, acc);
}

}  // namespace

void rope_table(Context& ctx, const RopeTableArgs& a) {
  check(a);
  dispatch(ctx, "rope_table", a, {cpu::rope_table, ref::rope_table, cuda::rope_table});
}

void norm_rope(Context& ctx, const NormRopeArgs& a) {
  check(a);
  dispatch(ctx, "norm_rope", a, {cpu::norm_rope, ref::norm_rope, cuda::norm_rope});
}

void norm_rope_bwd(Context& ctx, const NormRopeBwdArgs& a) {
  check(a);
  dispatch(ctx, "norm_rope_bwd", a,
           {cpu::norm_rope_bwd, ref::norm_rope_bwd, cuda::norm_rope_bwd,
            cpu::norm_rope_bwd_scratch_bytes, cuda::norm_rope_bwd_scratch_bytes});
}

}  // namespace lapidary::ops
