#include "lapidary/ops/cuda/cuda.h"
#include "lapidary/ops/cuda/moe_scratch.h"

namespace lapidary::ops::cuda {

int64_t router_scratch_bytes(const RouterArgs& a) { return RouterScratch(nullptr, a).bytes; }
int64_t router_bwd_scratch_bytes(const RouterBwdArgs& a) {
  return RouterBwdScratch(nullptr, a).bytes;
}

}  // namespace lapidary::ops::cuda
