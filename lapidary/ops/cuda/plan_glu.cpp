#include "lapidary/ops/cuda/cuda.h"

namespace lapidary::ops::cuda {

int64_t geglu_bwd_scratch_bytes(const GegluBwdArgs&) { return 0; }

}  // namespace lapidary::ops::cuda
