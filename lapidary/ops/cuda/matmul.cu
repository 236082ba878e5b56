#include "lapidary/ops/cuda/cublaslt.h"
#include "lapidary/ops/cuda/cuda.h"
#include "lapidary/ops/cuda/device.cuh"

namespace lapidary::ops::cuda {
namespace {

// Our own product: any shape and stride, f32 arithmetic, each element summed along k in order. A
// block computes kTile x kTile elements, a thread 4 x 4 of them, kDepth products at a time.
constexpr int kTile = 64, kDepth = 16, kThreads = 256;

// Element (i, k) of an operand lies at data[i * outer + k * inner].
struct Side {
  const void* data;
  int64_t count;  // of i
  int64_t outer, inner;
};
struct Plain {
  Side a, b;
  void* out;
  int64_t k, ld;
  int64_t tiles_across;
  bool accumulate;
};

// Rows [i0, i0 + kTile) and columns [k0, k0 + kDepth) of an operand, k first; zeros beyond its
// ends. Neighbouring threads read neighbouring addresses.
template <class In>
__device__ void load_tile(float (&tile)[kDepth][kTile + 4], const Side& side, int64_t i0,
                          int64_t k0, int64_t depth) {
  const In* from = static_cast<const In*>(side.data);
#pragma unroll
  for (int step = 0; step < kTile * kDepth / kThreads; ++step) {
    const int at = step * kThreads + static_cast<int>(threadIdx.x);
    const int k = side.inner == 1 ? at % kDepth : at / kTile;
    const int i = side.inner == 1 ? at / kDepth : at % kTile;
    const bool inside = i0 + i < side.count && k0 + k < depth;
    tile[k][i] = inside ? to_float(from[(i0 + i) * side.outer + (k0 + k) * side.inner]) : 0.0F;
  }
}

template <class In, class Out>
__global__ void __launch_bounds__(kThreads, 2) plain_matmul(const Plain p) {
  // Four more per row: 16-byte reads stay aligned, and fewer writes meet in one bank.
  __shared__ __align__(16) float a_tile[kDepth][kTile + 4];
  __shared__ __align__(16) float b_tile[kDepth][kTile + 4];
  const int64_t m0 = blockIdx.x / p.tiles_across * kTile, n0 = blockIdx.x % p.tiles_across * kTile;
  const int row = static_cast<int>(threadIdx.x) / 16 * 4;
  const int column = static_cast<int>(threadIdx.x) % 16 * 4;
  float sum[4][4] = {};
  for (int64_t k0 = 0; k0 < p.k; k0 += kDepth) {
    load_tile<In>(a_tile, p.a, m0, k0, p.k);
    load_tile<In>(b_tile, p.b, n0, k0, p.k);
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kDepth; ++k) {
      const float4 a = *reinterpret_cast<const float4*>(&a_tile[k][row]);
      const float4 b = *reinterpret_cast<const float4*>(&b_tile[k][column]);
      const float left[4] = {a.x, a.y, a.z, a.w}, right[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) sum[i][j] += left[i] * right[j];
      }
    }
    __syncthreads();
  }
  Out* out = static_cast<Out*>(p.out);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int64_t m = m0 + row + i, n = n0 + column + j;
      if (m >= p.a.count || n >= p.b.count) continue;
      Out& to = out[m * p.ld + n];
      to = from_float<Out>(p.accumulate ? to_float(to) + sum[i][j] : sum[i][j]);
    }
  }
}

void run_plain(Context& ctx, const MatmulArgs& a) {
  const int64_t m = a.out.dim(0), n = a.out.dim(1);
  const int64_t across = ceil_div(n, kTile), blocks = ceil_div(m, kTile) * across;
  const Plain p{.a = {a.a.data(), m, a.trans_a ? 1 : a.a.stride(0), a.trans_a ? a.a.stride(0) : 1},
                .b = {a.b.data(), n, a.trans_b ? a.b.stride(0) : 1, a.trans_b ? 1 : a.b.stride(0)},
                .out = a.out.data(),
                .k = a.a.dim(a.trans_a ? 0 : 1),
                .ld = a.out.stride(0),
                .tiles_across = across,
                .accumulate = a.accumulate};
  by_dtype("matmul", a.a.dtype(), [&]<class In>(In) {
    by_dtype("matmul", a.out.dtype(), [&]<class Out>(Out) {
      plain_matmul<In, Out><<<static_cast<unsigned>(blocks), kThreads, 0, ctx.stream>>>(p);
    });
  });
  check_launch("matmul");
}

}  // namespace

void matmul(Context& ctx, const MatmulArgs& a) {
  if (a.out.numel() == 0) return;
  if (worth_cublaslt(a)) {
    const ArenaScope scope(ctx.scratch);
    const auto start =
        reinterpret_cast<uintptr_t>(ctx.scratch.alloc(Dtype::u8, {kWorkspaceScratch}).data());
    const uintptr_t aligned =
        (start + kWorkspaceAlignment - 1) & ~uintptr_t{kWorkspaceAlignment - 1};
    if (cublaslt_matmul(a, reinterpret_cast<void*>(aligned), ctx.stream)) return;
  }
  run_plain(ctx, a);
}

}  // namespace lapidary::ops::cuda
