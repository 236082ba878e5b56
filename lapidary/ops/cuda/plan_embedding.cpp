#include "lapidary/ops/cuda/cuda.h"

namespace lapidary::ops::cuda {

// Three integers for each row of the table, one for each token and one more.
int64_t embedding_bwd_scratch_bytes(const EmbeddingBwdArgs& a) {
  if (a.dy.numel() == 0 || a.dtable.dim(0) == 0) return 0;
  constexpr int64_t kAlignment = 64;
  const int64_t integers = 3 * a.dtable.dim(0) + a.ids.dim(0) + 1;
  const int64_t bytes = integers * static_cast<int64_t>(sizeof(int32_t));
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

}  // namespace lapidary::ops::cuda
