#pragma once

#include "lapidary/ops/cuda/grouped_ptx.cuh"

// Tiles in shared memory and the fragments of tensor core products.
namespace lapidary::ops::cuda::grouped {

// Which index of an operand runs along memory: the one that is summed over, or the other.
enum class Dense { depth, outer };

// One operand of a product, kOuter x kDepth bf16 elements in rows of 16-byte chunks. A chunk's
// place in its row is flipped by the row number, so that the 8 rows of a matrix lie in different
// banks.
template <Dense kDense, int kOuter, int kDepth>
struct OperandTile {
  static constexpr int kRows = kDense == Dense::depth ? kOuter : kDepth;
  static constexpr int kColumns = kDense == Dense::depth ? kDepth : kOuter;
  static constexpr int kChunks = kColumns / 8;
  static constexpr bool kTransposed = kDense == Dense::outer;  // fragments want the depth dense
  static constexpr int kRowBytes = kColumns * 2;
  static constexpr int kBytes = kRows * kRowBytes;
  static_assert(kChunks % 8 == 0, "flips stay within 8 chunks");

  __host__ __device__ static constexpr uint32_t offset(int row, int chunk) {
    return static_cast<uint32_t>(row * kRowBytes + (chunk ^ (row & 7)) * 16);
  }

  // Where a lane reads the fragments of 16 outer indices from `outer` on and of depth 0 to 15.
  // The left operand has its matrices in the order outer, depth; the right one depth, outer.
  __host__ __device__ static constexpr uint32_t lane_offset(int lane, int outer, bool left) {
    const int half = (lane >> 3) & 1, quarter = lane >> 4, row = lane & 7;
    const int outer_half = left ? half : quarter, depth_half = left ? quarter : half;
    return kDense == Dense::depth ? offset(outer + 8 * outer_half + row, depth_half)
                                  : offset(8 * depth_half + row, outer / 8 + outer_half);
  }
  // The same, 16 i outer indices and a depth of 16 k further: `outer` above is a multiple of
  // 16 times the power of two above i, the tile begins at a multiple of 128 bytes.
  __host__ __device__ static constexpr uint32_t fragment(uint32_t lane_address, int i, int k) {
    const int flips = kDense == Dense::depth ? k : i, rows = kDense == Dense::depth ? i : k;
    return (lane_address ^ static_cast<uint32_t>(32 * flips)) +
           static_cast<uint32_t>(16 * rows * kRowBytes);
  }

  // Starts the copy of rows x columns elements (multiples of 8 columns) from a matrix; zeros up to
  // the size of the tile. No branches: the compiler mixes the copies with what follows.
  template <int kThreads>
  __device__ static __forceinline__ void fill(uint32_t to, const device_bf16* from, int64_t stride,
                                              int rows, int columns) {
    constexpr int kStep = kThreads / kChunks;  // rows at a time
    static_assert(kStep % 8 == 0 && kRows % kStep == 0);
    const int row = static_cast<int>(threadIdx.x) / kChunks;
    const int chunk = static_cast<int>(threadIdx.x) % kChunks;
    const int valid_rows = chunk * 8 < columns ? rows : 0;
    from += row * stride + chunk * 8;
    to += offset(row, chunk);
#pragma unroll
    for (int i = 0; i < kRows / kStep; ++i) {
      start_copy(to + static_cast<uint32_t>(i * kStep * kRowBytes), from + i * kStep * stride,
                 row + i * kStep < valid_rows);
    }
  }
};

// What one warp multiplies at a time: 16 kA x 16 by 16 x 16 kB.
template <class A, class B, int kA, int kB>
struct Fragments {
  uint32_t a[kA][4], b[kB][4];

  __device__ __forceinline__ void load(uint32_t a_lane, uint32_t b_lane, int k) {
#pragma unroll
    for (int i = 0; i < kA; ++i) {
      load_matrices<A::kTransposed>(a[i], A::fragment(a_lane, i, k));
    }
#pragma unroll
    for (int j = 0; j < kB; ++j) {
      load_matrices<B::kTransposed>(b[j], B::fragment(b_lane, j, k));
    }
  }
  __device__ __forceinline__ void multiply(float (&sum)[kA][2 * kB][4]) const {
#pragma unroll
    for (int i = 0; i < kA; ++i) {
#pragma unroll
      for (int j = 0; j < kB; ++j) {
        multiply_add(sum[i][2 * j], a[i], b[j][0], b[j][1]);
        multiply_add(sum[i][2 * j + 1], a[i], b[j][2], b[j][3]);
      }
    }
  }
};

// Lane q of four holds v[i], the pair q of the columns of block i; afterwards v[i] is the pair i of
// block q.
__device__ __forceinline__ void transpose_in_quad(uint32_t (&v)[4]) {
  const bool odd = (threadIdx.x & 1) != 0, high = (threadIdx.x & 2) != 0;
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const uint32_t got = __shfl_xor_sync(0xffffffffU, odd ? v[i] : v[i + 1], 1);
    v[i] = odd ? got : v[i];
    v[i + 1] = odd ? v[i + 1] : got;
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint32_t got = __shfl_xor_sync(0xffffffffU, high ? v[i] : v[i + 2], 2);
    v[i] = high ? got : v[i];
    v[i + 2] = high ? v[i + 2] : got;
  }
}

}  // namespace lapidary::ops::cuda::grouped
