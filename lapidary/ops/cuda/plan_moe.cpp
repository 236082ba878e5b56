#include "lapidary/ops/cuda/cuda.h"
#include "lapidary/ops/cuda/moe_scratch.h"

namespace lapidary::ops::cuda {

int64_t moe_sort_scratch_bytes(const MoeSortArgs& a) { return SortScratch(nullptr, a).bytes; }

}  // namespace lapidary::ops::cuda
