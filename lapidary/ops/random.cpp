#include "lapidary/ops/random.h"

#include "lapidary/ops/cpu/cpu.h"
#include "lapidary/ops/cuda/cuda.h"
#include "lapidary/ops/dispatch.h"
#include "lapidary/ops/ref/ref.h"

namespace lapidary::ops {

void fill_normal(Context& ctx, const FillNormalArgs& a) {
  Check("fill_normal").that(a.t.contiguous(), "tensor " + a.t.shape().str() + " is not contiguous");
  dispatch(ctx, "fill_normal", a, {cpu::fill_normal, ref::fill_normal, cuda::fill_normal});
}

}  // namespace lapidary::ops
