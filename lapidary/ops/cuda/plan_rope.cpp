#include "lapidary/ops/cuda/column_sums.h"
#include "lapidary/ops/cuda/cuda.h"

namespace lapidary::ops::cuda {

int64_t norm_rope_bwd_scratch_bytes(const NormRopeBwdArgs& a) {
  return a.dw.defined() ? column_sums_bytes(a.x.dim(0) * a.x.dim(1), a.x.dim(2)) : 0;
}

}  // namespace lapidary::ops::cuda
