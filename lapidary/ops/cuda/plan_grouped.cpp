#include "lapidary/ops/cuda/cuda.h"

namespace lapidary::ops::cuda {

// The list of row tiles (grouped_tiles.cuh): a header and one entry of 16 bytes for every tile that
// there may be. Every expert can leave one tile unfilled. 64: the lowest tile of any kernel.
int64_t grouped_matmul_scratch_bytes(const GroupedMatmulArgs& a) {
  if (a.out.numel() == 0) return 0;
  return 16 * (1 + (a.out.dim(0) + 63) / 64 + a.b.dim(0));
}

int64_t grouped_matmul_wgrad_scratch_bytes(const GroupedMatmulWgradArgs&) { return 0; }

}  // namespace lapidary::ops::cuda
