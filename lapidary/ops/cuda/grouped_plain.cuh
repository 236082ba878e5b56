#pragma once

#include "lapidary/ops/cuda/device.cuh"

// Products without tensor cores, for any size, stride and alignment.
namespace lapidary::ops::cuda::grouped {

constexpr int kPlainTile = 64;  // rows and columns of a block's product
constexpr int kPlainThreads = 256;

// Element (i, d) of an operand, d being summed over; `size` outer indices exist.
template <class T>
struct PlainOperand {
  const T* data;
  int64_t outer, depth;  // strides
  int64_t size;
};

// sum[i][j] = sum_d a(i0 + i, d) b(j0 + j, d), d ascending, where thread t has rows
// i0 = 4 (t / 16) and columns j0 = 4 (t % 16). kDenseA, kDenseB: the depth is what lies dense.
template <bool kDenseA, bool kDenseB, class T>
__device__ void plain_product(const PlainOperand<T>& a, const PlainOperand<T>& b, int64_t depth,
                              float (&sum)[4][4]) {
  constexpr int kDepth = 16, kStride = kPlainTile + 4;  // rows stay aligned to 16 bytes
  __shared__ __align__(16) float left[kDepth * kStride];
  __shared__ __align__(16) float right[kDepth * kStride];
  const int thread = static_cast<int>(threadIdx.x);
  const auto fetch = [&](float* to, const PlainOperand<T>& from, int64_t first, bool dense) {
#pragma unroll
    for (int n = thread; n < kDepth * kPlainTile; n += kPlainThreads) {
      const int i = dense ? n / kDepth : n % kPlainTile, d = dense ? n % kDepth : n / kPlainTile;
      const bool inside = i < from.size && first + d < depth;
      to[d * kStride + i] =
          inside ? to_float(from.data[i * from.outer + (first + d) * from.depth]) : 0.0F;
    }
  };
  for (int64_t first = 0; first < depth; first += kDepth) {
    fetch(left, a, first, kDenseA);
    fetch(right, b, first, kDenseB);
    __syncthreads();
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
      const float4 u = *reinterpret_cast<const float4*>(left + d * kStride + thread / 16 * 4);
      const float4 v = *reinterpret_cast<const float4*>(right + d * kStride + thread % 16 * 4);
      const float rows[4] = {u.x, u.y, u.z, u.w}, columns[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) sum[i][j] = fmaf(rows[i], columns[j], sum[i][j]);
      }
    }
    __syncthreads();
  }
}

}  // namespace lapidary::ops::cuda::grouped
