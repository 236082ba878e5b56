#include "lapidary/ops/cuda/cuda.h"

namespace lapidary::ops::cuda {

int64_t attention_scratch_bytes(const AttentionArgs&) { return 0; }

// dO . O of every query.
int64_t attention_bwd_scratch_bytes(const AttentionBwdArgs& a) {
  const int64_t bytes = a.q.dim(0) * a.q.dim(1) * a.q.dim(2) * static_cast<int64_t>(sizeof(float));
  return (bytes + 63) / 64 * 64;
}

}  // namespace lapidary::ops::cuda
