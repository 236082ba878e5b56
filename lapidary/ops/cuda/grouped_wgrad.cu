#include "lapidary/ops/cuda/cuda.h"
#include "lapidary/ops/cuda/grouped_mma.cuh"
#include "lapidary/ops/cuda/grouped_plain.cuh"

namespace lapidary::ops::cuda {
namespace grouped {
namespace {

constexpr char kOp[] = "grouped_matmul_wgrad";
constexpr int kTile = 128;  // rows and columns of a block's product
constexpr int kDepth = 32;  // expert rows of a stage
constexpr int kThreads = 256;
constexpr int kStages = 4;
constexpr int kWarpRows = 64, kWarpColumns = 32;

using OperandRows = OperandTile<Dense::outer, kTile, kDepth>;
constexpr int kStageBytes = 2 * OperandRows::kBytes;

template <class T>
struct Gradient {
  const T* dy;
  const T* x;
  float* dw;
  int64_t dy_stride, x_stride, dw_stride, dw_expert;
  const int32_t* counts;
  const int32_t* offsets;
  int rows;  // of dy and x
  int64_t n, k;
  int row_tiles, column_tiles;  // of one expert's dw
};

// A block's part of dw. count = 0: nothing to add.
struct Work {
  int first, count;  // expert rows
  int64_t expert, row, column;
};
template <class T>
__device__ Work work_of(const Gradient<T>& g, int64_t tile_size) {
  const int of_expert = g.row_tiles * g.column_tiles;
  const int expert = static_cast<int>(blockIdx.x) / of_expert;
  const int tile = static_cast<int>(blockIdx.x) % of_expert;
  const int first = g.offsets[expert], count = g.counts[expert];
  const bool inside = first >= 0 && first <= g.rows;
  return {first, inside ? min(count, g.rows - first) : 0, expert, tile / g.column_tiles * tile_size,
          tile % g.column_tiles * tile_size};
}

// dw += sums, 16 bytes per lane: the even lanes of a pair take the first of two blocks of 8
// columns, the odd ones the second.
__device__ __forceinline__ void add_to(const Gradient<device_bf16>& g, const Work& work,
                                       int warp_row, int warp_column, float (&sum)[4][4][4]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const bool odd = lane % 2 != 0;
  const int64_t column = work.column + warp_column + lane % 4 / 2 * 4 + (odd ? 8 : 0);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    float4 old[2][2];
    const int64_t row = work.row + warp_row + 16 * i + lane / 4;
    float* to = g.dw + work.expert * g.dw_expert + row * g.dw_stride + column;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        if (row + 8 * half >= g.n || column + 16 * j >= g.k) continue;
        old[half][j] =
            __ldcs(reinterpret_cast<const float4*>(to + 8 * half * g.dw_stride + 16 * j));
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const float* first = &sum[i][2 * j][2 * half];
        const float* second = &sum[i][2 * j + 1][2 * half];
        const float x = __shfl_xor_sync(0xffffffffU, odd ? first[0] : second[0], 1);
        const float y = __shfl_xor_sync(0xffffffffU, odd ? first[1] : second[1], 1);
        if (row + 8 * half >= g.n || column + 16 * j >= g.k) continue;
        const float4 o = old[half][j];
        const float4 add =
            odd ? float4{x, y, second[0], second[1]} : float4{first[0], first[1], x, y};
        __stcs(reinterpret_cast<float4*>(to + 8 * half * g.dw_stride + 16 * j),
               float4{o.x + add.x, o.y + add.y, o.z + add.z, o.w + add.w});
      }
    }
  }
}

// The old values are wanted only at the end: they come from memory while the tile is multiplied.
__device__ __forceinline__ void prefetch_old(const Gradient<device_bf16>& g, const Work& work) {
  const float* tile = g.dw + work.expert * g.dw_expert;
#pragma unroll
  for (int i = static_cast<int>(threadIdx.x); i < kTile * 4; i += kThreads) {
    const int64_t row = work.row + i / 4, column = work.column + i % 4 * 32;
    if (row < g.n && column < g.k) prefetch(tile + row * g.dw_stride + column);
  }
}

__device__ __forceinline__ void load_stage(const Gradient<device_bf16>& g, const Work& work,
                                           uint32_t stages, int step) {
  const int done = step * kDepth, left = work.count - done;
  if (left > 0) {
    const uint32_t to = stages + static_cast<uint32_t>(step % kStages * kStageBytes);
    const int64_t row = work.first + done;
    OperandRows::fill<kThreads>(to, g.dy + row * g.dy_stride + work.row, g.dy_stride, left,
                                static_cast<int>(min(g.n - work.row, int64_t{kTile})));
    OperandRows::fill<kThreads>(to + OperandRows::kBytes, g.x + row * g.x_stride + work.column,
                                g.x_stride, left,
                                static_cast<int>(min(g.k - work.column, int64_t{kTile})));
  }
  commit_copies();
}

__global__ void __launch_bounds__(kThreads, 2)
    tiles_kernel(const __grid_constant__ Gradient<device_bf16> g) {
  extern __shared__ __align__(1024) unsigned char memory[];
  const Work work = work_of(g, kTile);
  if (work.count <= 0) return;
  const uint32_t stages = shared_address(memory);
#pragma unroll
  for (int s = 0; s < kStages - 1; ++s) load_stage(g, work, stages, s);
  prefetch_old(g, work);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int warp_row = warp / 4 * kWarpRows, warp_column = warp % 4 * kWarpColumns;
  const uint32_t a_lane = stages + OperandRows::lane_offset(lane, warp_row, true);
  const uint32_t b_lane =
      stages + OperandRows::kBytes + OperandRows::lane_offset(lane, warp_column, false);
  float sum[4][4][4] = {};
  const int steps = (work.count + kDepth - 1) / kDepth;
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    wait_copies<kStages - 2>();
    __syncthreads();
    // Into the stage before this one, which nobody reads any more since the threads met.
    load_stage(g, work, stages, step + kStages - 1);
    const auto stage = static_cast<uint32_t>(step % kStages * kStageBytes);
#pragma unroll
    for (int k = 0; k < kDepth / 16; ++k) {
      Fragments<OperandRows, OperandRows, kWarpRows / 16, kWarpColumns / 16> fragments;
      fragments.load(a_lane + stage, b_lane + stage, k);
      fragments.multiply(sum);
    }
  }
  add_to(g, work, warp_row, warp_column, sum);
}

template <class T>
__global__ void __launch_bounds__(kPlainThreads)
    plain_kernel(const __grid_constant__ Gradient<T> g) {
  const Work work = work_of(g, kPlainTile);
  if (work.count <= 0) return;
  float sum[4][4] = {};
  plain_product<false, false>(
      PlainOperand<T>{g.dy + work.first * g.dy_stride + work.row, 1, g.dy_stride, g.n - work.row},
      PlainOperand<T>{g.x + work.first * g.x_stride + work.column, 1, g.x_stride,
                      g.k - work.column},
      work.count, sum);
  const int64_t row = work.row + static_cast<int>(threadIdx.x) / 16 * 4;
  const int64_t column = work.column + static_cast<int>(threadIdx.x) % 16 * 4;
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < 4; ++j) {
      if (row + i >= g.n || column + j >= g.k) continue;
      g.dw[work.expert * g.dw_expert + (row + i) * g.dw_stride + column + j] += sum[i][j];
    }
  }
}

bool fits_tensor_cores(const GroupedMatmulWgradArgs& a) {
  const auto rows_fit = [](const ConstTensor& t) {
    return aligned16(t.data()) && t.dim(-1) % 8 == 0 && t.stride(0) % 8 == 0;
  };
  return a.dy.dtype() == Dtype::bf16 && rows_fit(a.dy) && rows_fit(a.x) && rows_fit(a.dw) &&
         a.dw.stride(1) % 4 == 0;
}

template <class T>
Gradient<T> gradient(const GroupedMatmulWgradArgs& a, int64_t tile) {
  return {.dy = data<T>(a.dy),
          .x = data<T>(a.x),
          .dw = data<float>(a.dw),
          .dy_stride = a.dy.stride(0),
          .x_stride = a.x.stride(0),
          .dw_stride = a.dw.stride(1),
          .dw_expert = a.dw.stride(0),
          .counts = data<int32_t>(a.counts),
          .offsets = data<int32_t>(a.offsets),
          .rows = static_cast<int>(a.x.dim(0)),
          .n = a.dw.dim(1),
          .k = a.dw.dim(2),
          .row_tiles = static_cast<int>(ceil_div(a.dw.dim(1), tile)),
          .column_tiles = static_cast<int>(ceil_div(a.dw.dim(2), tile))};
}

template <class T>
unsigned blocks_for(const GroupedMatmulWgradArgs& a, const Gradient<T>& g) {
  return static_cast<unsigned>(a.dw.dim(0) * g.row_tiles * g.column_tiles);
}

}  // namespace
}  // namespace grouped

void grouped_matmul_wgrad(Context& ctx, const GroupedMatmulWgradArgs& a) {
  using namespace grouped;
  if (a.dw.numel() == 0 || a.x.dim(0) == 0) return;
  if (fits_tensor_cores(a)) {
    const auto g = gradient<device_bf16>(a, kTile);
    constexpr int kBytes = kStages * kStageBytes;
    cudaFuncSetAttribute(tiles_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
    tiles_kernel<<<blocks_for(a, g), kThreads, kBytes, ctx.stream>>>(g);
    return check_launch(kOp);
  }
  by_dtype(kOp, a.dy.dtype(), [&]<class T>(T) {
    const auto g = gradient<T>(a, kPlainTile);
    plain_kernel<T><<<blocks_for(a, g), kPlainThreads, 0, ctx.stream>>>(g);
    check_launch(kOp);
  });
}

}  // namespace lapidary::ops::cuda
