#include "lapidary/ops/attention.h"

#include "lapidary/ops/cpu/cpu.h"
#include "lapidary/ops/cuda/cuda.h"
#include "lapidary/ops/dispatch.h"
#include "lapidary/ops/ref/ref.h"

namespace lapidary::ops {
namespace {

void check_shapes(const Check& c, const ConstTensor& q, const ConstTensor& k,
                  const ConstTensor& v) {
  c.rank("q", q, 4);
  c.rank("k", k, 4);
  c.tensor("v", v, k.shape(), q.dtype());
  c.dtype("k", k, q.dtype());
  c.that(q.dim(0) == k.dim(0),
         "q has " + std::to_string(q.dim(0)) + " rows, k has " + std::to_string(k.dim(0)));
  c.that(q.dim(3) == k.dim(3), "q and k differ in head size");
  c.that(k.dim(2) > 0 && q.dim(2) % k.dim(2) == 0, std::to_string(q.dim(2)) +
                                                       " query heads are not a multiple of " +
                                                       std::to_string(k.dim(2)) + " key heads");
}

void check(const AttentionArgs& a) {
  const Check c("attention");
  check_shapes(c, a.q, a.k, a.v);
  check_mask(a.mask, a.q.dim(0), a.q.dim(1), a.k.dim(1));
  c.tensor("o", a.o, a.q.shape(), a.q.dtype());
  c.optional("lse", a.lse, {a.q.dim(0), a.q.dim(2), a.q.dim(1)}, accumulate_dtype(a.q.dtype()));
}

void check(const AttentionBwdArgs& a) {
  const Check c("attention_bwd");
  check_shapes(c, a.q, a.k, a.v);
  check_mask(a.mask, a.q.dim(0), a.q.dim(1), a.k.dim(1));
  const Dtype acc = accumulate_dtype(a.q.dtype());
  c.tensor("o", a.o, a.q.shape(), a.q.dtype());
  c.tensor("dout", a.dout, a.q.shape(), a.q.dtype());
  c.tensor("lse", a.lse, {a.q.dim(0), a.q.dim(2), a.q.dim(1)}, acc);
  c.tensor("dq", a.dq, a.q.shape(), a.q.dtype());
  c.tensor("dk", a.dk, a.k.shape(), acc);
  c.tensor("dv", a.dv, a.k.shape(), acc);
}

}  // namespace

void attention(Context& ctx, const AttentionArgs& a) {
  check(a);
  dispatch(ctx, "attention", a,
           {cpu::attention, ref::attention, cuda::attention, cpu::attention_scratch_bytes,
            cuda::attention_scratch_bytes});
}

void attention_bwd(Context& ctx, const AttentionBwdArgs& a) {
  check(a);
  dispatch(ctx, "attention_bwd", a,
           {cpu::attention_bwd, ref::attention_bwd, cuda::attention_bwd,
            cpu::attention_bwd_scratch_bytes, cuda::attention_bwd_scratch_bytes});
}

}  // namespace lapidary::ops
