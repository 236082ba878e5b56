#pragma once

#include "lapidary/ops/cuda/tensor_core.cuh"

// Instructions of tensor-core attention beside tensor_core.cuh.
namespace lapidary::ops::cuda::mma {

// Two floats as bf16, `low` in the lower half.
__device__ inline uint32_t pack(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

// Copies from global to shared memory; zeros, and `from` unread, unless valid.
__device__ inline void copy_async16(uint32_t to, const void* from, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
               "r"(valid ? 16 : 0)
               : "memory");
}
__device__ inline void copy_async4(uint32_t to, const void* from, bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from),
               "r"(valid ? 4 : 0)
               : "memory");
}

// A barrier of two warps; `pair` in [0, 15).
__device__ inline void pair_barrier(int pair) {
  asm volatile("bar.sync %0, 64;" ::"r"(pair + 1) : "memory");
}

}  // namespace lapidary::ops::cuda::mma
