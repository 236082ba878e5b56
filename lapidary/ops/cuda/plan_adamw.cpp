#include "lapidary/ops/cuda/cuda.h"

namespace lapidary::ops::cuda {

// A partial sum from each block of threads. 528 blocks, four for each multiprocessor of an H100,
// run at the same time; less work takes fewer.
int64_t sum_of_squares_scratch_bytes(const SumOfSquaresArgs& a) {
  constexpr int64_t kElements = 4096, kMost = 528;
  const int64_t blocks = (a.t.numel() + kElements - 1) / kElements;
  return (blocks < kMost ? blocks : kMost) * size_of(Dtype::f64);
}

}  // namespace lapidary::ops::cuda
