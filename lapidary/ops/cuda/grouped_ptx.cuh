#pragma once

#include "lapidary/ops/cuda/tensor_core.cuh"

// Instructions of the grouped products beside tensor_core.cuh.
namespace lapidary::ops::cuda::grouped {

using mma::commit_copies;
using mma::load_matrices;
using mma::multiply_add;
using mma::shared_address;
using mma::wait_copies;

// Starts a copy of 16 bytes into shared memory; zeros, and `from` unread, unless valid. The L2
// cache takes the whole line: neighbours read the rest of it.
__device__ inline void start_copy(uint32_t to, const void* from, bool valid) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
               "r"(valid ? 16 : 0)
               : "memory");
}

// Brings a line of 128 bytes into the L2 cache.
__device__ inline void prefetch(const void* line) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(line));
}

}  // namespace lapidary::ops::cuda::grouped
