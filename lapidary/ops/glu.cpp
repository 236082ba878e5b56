#include "lapidary/ops/glu.h"

#include "lapidary/ops/cpu/cpu.h"
#include "lapidary/ops/cuda/cuda.h"
#include "lapidary/ops/dispatch.h"
#include "lapidary/ops/ref/ref.h"

namespace lapidary::ops {
namespace {

void check(const GegluArgs& a) {
  const Check c("geglu");
  c.rank("gate", a.gate, 2);
  c.tensor("up", a.up, a.gate.shape(), a.gate.dtype());
  c.tensor("h", a.h, a.gate.shape(), a.gate.dtype());
  c.optional("row_weight", a.row_weight, {a.gate.dim(0)}, accumulate_dtype(a.gate.dtype()));
}

void check(const GegluBwdArgs& a) {
  const Check c("geglu_bwd");
  c.rank("gate", a.gate, 2);
  const Dtype d = a.gate.dtype();
  const Dtype acc = accumulate_dtype(d);
  c.tensor("up", a.up, a.gate.shape(), d);
  c.tensor("dh", a.dh, a.gate.shape(), d);
  c.tensor("dgate", a.dgate, a.gate.shape(), d);
  c.tensor("dup", a.dup, a.gate.shape(), d);
  c.optional("row_weight", a.row_weight, {a.gate.dim(0)}, acc);
  c.optional("drow_weight", a.drow_weight, {a.gate.dim(0)}, acc);
}

}  // namespace

void geglu(Context& ctx, const GegluArgs& a) {
  check(a);
  dispatch(ctx, "geglu", a, {cpu::geglu, ref::geglu, cuda::geglu});
}

void geglu_bwd(Context& ctx, const GegluBwdArgs& a) {
  check(a);
  dispatch(
      ctx, "geglu_bwd", a,
      {cpu::geglu_bwd, ref::geglu_bwd, cuda::geglu_bwd, nullptr, cuda::geglu_bwd_scratch_bytes});
}

}  // namespace lapidary::ops
