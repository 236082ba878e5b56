#include "lapidary/ops/cuda/cublaslt.h"
#include "lapidary/ops/cuda/cuda.h"

namespace lapidary::ops::cuda {
namespace {

constexpr int64_t kSmall = int64_t{1} << 16;  // multiplications

// Rows that overlap (a broadcast row, say) have no leading dimension.
bool overlaps(const ConstTensor& t) { return t.dim(0) > 1 && t.stride(0) < t.dim(1); }

}  // namespace

bool worth_cublaslt(const MatmulArgs& a) {
  const int64_t k = a.a.dim(a.trans_a ? 0 : 1);
  if (a.out.dim(0) * a.out.dim(1) * k <= kSmall) return false;
  return !overlaps(a.a) && !overlaps(a.b) && !overlaps(a.out);
}

int64_t matmul_scratch_bytes(const MatmulArgs& a) {
  return worth_cublaslt(a) ? kWorkspaceScratch : 0;
}

}  // namespace lapidary::ops::cuda
