#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "lapidary/core/context.h"
#include "lapidary/core/error.h"

// What every kernel file starts from.
namespace lapidary::ops::cuda {

using device_bf16 = __nv_bfloat16;  // same bits as lapidary::bf16

// Throws when the launch just made was refused.
inline void check_launch(const char* op) {
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) fail(op, std::string("CUDA: ") + cudaGetErrorString(error));
}

// The element pointer of a tensor as kernels want it; null where it is undefined.
template <class T>
const T* data(const ConstTensor& t) {
  return static_cast<const T*>(t.data());
}
template <class T>
T* data(const Tensor& t) {
  return static_cast<T*>(t.data());
}

// f(T{}) with T = float or device_bf16.
template <class F>
void by_dtype(const char* op, Dtype dtype, F&& f) {
  switch (dtype) {
    case Dtype::f32: return f(float{});
    case Dtype::bf16: return f(device_bf16{});
    default:
      fail(op, std::string("cannot compute in ") + name_of(dtype) + " on the GPU",
           "use fp32 or bf16");
  }
}

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(device_bf16 x) { return __bfloat162float(x); }
template <class T>
__device__ T from_float(float x);
template <>
__device__ inline float from_float<float>(float x) {
  return x;
}
template <>
__device__ inline device_bf16 from_float<device_bf16>(float x) {
  return __float2bfloat16_rn(x);
}

// Sum over the warp, the same in every lane; a fixed tree.
template <class T>
__device__ T warp_sum(T x) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    x += __shfl_xor_sync(0xffffffffU, x, distance);
  }
  return x;
}
__device__ inline float warp_max(float x) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffU, x, distance));
  }
  return x;
}

// Sum over a block of up to 1024 threads (a multiple of 32), the same in every thread. Every thread
// calls it; two calls in a row are safe.
template <class T>
__device__ T block_sum(T x) {
  __shared__ T of_warp[32];
  x = warp_sum(x);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int warps = (static_cast<int>(blockDim.x) + 31) / 32;
  __syncthreads();
  if (lane == 0) of_warp[warp] = x;
  __syncthreads();
  return warp_sum(lane < warps ? of_warp[lane] : T(0));
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline bool aligned16(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

}  // namespace lapidary::ops::cuda
