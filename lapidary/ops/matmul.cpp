#include "lapidary/ops/matmul.h"

#include "lapidary/ops/cpu/cpu.h"
#include "lapidary/ops/cuda/cuda.h"
#include "lapidary/ops/dispatch.h"
#include "lapidary/ops/ref/ref.h"

namespace lapidary::ops {
namespace {

void check(const MatmulArgs& a) {
  const Check c("matmul");
  c.rank("a", a.a, 2);
  c.rank("b", a.b, 2);
  const int64_t m = a.a.dim(a.trans_a ? 1 : 0);
  const int64_t k = a.a.dim(a.trans_a ? 0 : 1);
  const int64_t n = a.b.dim(a.trans_b ? 0 : 1);
  c.that(a.b.dim(a.trans_b ? 1 : 0) == k, "a " + a.a.shape().str() + " and b " + a.b.shape().str() +
                                              " have no common inner dimension");
  c.shape("out", a.out, {m, n});
  c.dtype("b", a.b, a.a.dtype());
  c.that(
      a.out.dtype() == a.a.dtype() || a.out.dtype() == accumulate_dtype(a.a.dtype()),
      std::string("out is ") + name_of(a.out.dtype()) + " for operands of " + name_of(a.a.dtype()));
}

}  // namespace

void matmul(Context& ctx, const MatmulArgs& a) {
  check(a);
  dispatch(ctx, "matmul", a,
           {cpu::matmul, ref::matmul, cuda::matmul, cpu::matmul_scratch_bytes,
            cuda::matmul_scratch_bytes});
}

}  // namespace lapidary::ops
