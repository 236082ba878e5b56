#include "lapidary/ops/cuda/cuda.h"
#include "lapidary/ops/cuda/rows.cuh"

namespace lapidary::ops::cuda {
namespace {

constexpr float kTwoC = 1.5957691216057308F;  // 2 sqrt(2 / pi)
constexpr float kCubic = 0.044715F;

// (1 + tanh u) / 2 = sigmoid(2u), so that g(x) = x sigmoid(2u): one exponential, no cancellation.
// Beyond |x| = 12 the sigmoid is 0 or 1 in float; the clamps keep the exponential finite, and a NaN
// a NaN.
struct Gelu {
  float value;
  float slope;
};

__device__ inline Gelu gelu(float x) {
  const float low = x < -12.0F ? -12.0F : x;
  const float c = low > 12.0F ? 12.0F : low;
  const float square = c * c;
  const float two_u = kTwoC * c * (1.0F + kCubic * square);
  const float e = expf(two_u < -40.0F ? 40.0F : -two_u);
  const float s = 1.0F / (1.0F + e);
  const float two_du = kTwoC * (1.0F + 3.0F * kCubic * square);
  return {low * s, s + c * two_du * s * (e * s)};
}

template <class T>
struct Forward {
  Rows<const T> gate, up;
  Rows<T> h;
  const float* row_weight = nullptr;
  int64_t chunks = 0, per_row = 1;
};

template <class T, int kVec>
__global__ void __launch_bounds__(kFlatThreads) geglu_kernel(Forward<T> p) {
  constexpr int kUnroll = 2;
  Chunk<T, kVec> gate[kUnroll], up[kUnroll];
  int64_t row[kUnroll], column[kUnroll];
  float weight[kUnroll];
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
    const int64_t chunk = flat_chunk<kUnroll>(u);
    row[u] = quotient(chunk, p.per_row);
    column[u] = (chunk - row[u] * p.per_row) * kVec;
    weight[u] = 1.0F;
    if (chunk >= p.chunks) continue;
    gate[u].load(p.gate.row(row[u]) + column[u]);
    up[u].load(p.up.row(row[u]) + column[u]);
    if (p.row_weight != nullptr) weight[u] = p.row_weight[row[u]];
  }
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
    if (flat_chunk<kUnroll>(u) >= p.chunks) continue;
    float h[kVec];
#pragma unroll
    for (int i = 0; i < kVec; ++i) h[i] = weight[u] * gelu(gate[u][i]).value * up[u][i];
    store_chunk(p.h.row(row[u]) + column[u], h);
  }
}

template <class T>
struct Backward {
  Rows<const T> dh, gate, up;
  Rows<T> dgate, dup;
  const float* row_weight = nullptr;
  float* drow_weight = nullptr;
  bool accumulate_dup = false;
  int64_t rows = 0, chunks = 0, per_row = 1;
};

// One chunk of a row: read whole before it is written, since outputs may lie on inputs.
template <class T, int kVec>
struct BackwardChunk {
  Chunk<T, kVec> dh, gate, up, dup;

  __device__ void load(const Backward<T>& p, int64_t row, int64_t column) {
    dh.load(p.dh.row(row) + column);
    gate.load(p.gate.row(row) + column);
    up.load(p.up.row(row) + column);
    if (p.accumulate_dup) dup.load(p.dup.row(row) + column);
  }
  // Returns the chunk's part of drow_weight.
  __device__ float finish(const Backward<T>& p, int64_t row, int64_t column, float weight) const {
    float sum = 0.0F, dgate_out[kVec], dup_out[kVec];
#pragma unroll
    for (int i = 0; i < kVec; ++i) {
      const Gelu g = gelu(gate[i]);
      const float d = dh[i], u = up[i];
      sum += d * g.value * u;
      dgate_out[i] = weight * d * u * g.slope;
      dup_out[i] = weight * d * g.value;
      if (p.accumulate_dup) dup_out[i] += dup[i];
    }
    store_chunk(p.dgate.row(row) + column, dgate_out);
    store_chunk(p.dup.row(row) + column, dup_out);
    return sum;
  }
};

template <class T, int kVec>
__global__ void __launch_bounds__(kFlatThreads) geglu_bwd_kernel(Backward<T> p) {
  const int64_t chunk = flat_chunk<1>(0);
  if (chunk >= p.chunks) return;
  const int64_t row = quotient(chunk, p.per_row), column = (chunk - row * p.per_row) * kVec;
  BackwardChunk<T, kVec> c;
  c.load(p, row, column);
  c.finish(p, row, column, p.row_weight != nullptr ? p.row_weight[row] : 1.0F);
}

// A warp for each row, which it sums.
template <class T, int kVec>
__global__ void __launch_bounds__(kFlatThreads) geglu_bwd_rows_kernel(Backward<T> p) {
  constexpr int kUnroll = 3;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (kFlatThreads / 32) + warp;
  if (row >= p.rows) return;
  const float weight = p.row_weight != nullptr ? p.row_weight[row] : 1.0F;
  float sum = 0.0F;
  for (int64_t first = lane; first < p.per_row; first += 32 * kUnroll) {
    BackwardChunk<T, kVec> c[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t at = first + u * 32;
      if (at < p.per_row) c[u].load(p, row, at * kVec);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t at = first + u * 32;
      if (at < p.per_row) sum += c[u].finish(p, row, at * kVec, weight);
    }
  }
  sum = warp_sum(sum);
  if (lane == 0) p.drow_weight[row] = sum;
}

template <class T, int kVec>
void forward(Context& ctx, const GegluArgs& a) {
  const int64_t per_row = a.gate.dim(1) / kVec, chunks = a.gate.dim(0) * per_row;
  geglu_kernel<T, kVec><<<flat_blocks(chunks, 2), kFlatThreads, 0, ctx.stream>>>(
      {.gate = rows_of<T>(a.gate),
       .up = rows_of<T>(a.up),
       .h = rows_of<T>(a.h),
       .row_weight = data<float>(a.row_weight),
       .chunks = chunks,
       .per_row = per_row});
  check_launch("geglu");
}

template <class T, int kVec>
void backward(Context& ctx, const GegluBwdArgs& a) {
  const int64_t rows = a.gate.dim(0), per_row = a.gate.dim(1) / kVec;
  const Backward<T> p = {.dh = rows_of<T>(a.dh),
                         .gate = rows_of<T>(a.gate),
                         .up = rows_of<T>(a.up),
                         .dgate = rows_of<T>(a.dgate),
                         .dup = rows_of<T>(a.dup),
                         .row_weight = data<float>(a.row_weight),
                         .drow_weight = data<float>(a.drow_weight),
                         .accumulate_dup = a.accumulate_dup,
                         .rows = rows,
                         .chunks = rows * per_row,
                         .per_row = per_row};
  if (a.drow_weight.defined()) {
    const auto blocks = static_cast<unsigned>(ceil_div(rows, kFlatThreads / 32));
    geglu_bwd_rows_kernel<T, kVec><<<blocks, kFlatThreads, 0, ctx.stream>>>(p);
  } else if (p.chunks > 0) {
    geglu_bwd_kernel<T, kVec><<<flat_blocks(p.chunks, 1), kFlatThreads, 0, ctx.stream>>>(p);
  }
  check_launch("geglu_bwd");
}

}  // namespace

void geglu(Context& ctx, const GegluArgs& a) {
  if (a.gate.numel() == 0) return;
  by_dtype("geglu", a.gate.dtype(), [&]<class T>(T) {
    if (all_chunks_fit(kWide<T>, a.gate, a.up, a.h)) return forward<T, kWide<T>>(ctx, a);
    forward<T, 1>(ctx, a);
  });
}

void geglu_bwd(Context& ctx, const GegluBwdArgs& a) {
  if (a.gate.dim(0) == 0) return;
  by_dtype("geglu_bwd", a.gate.dtype(), [&]<class T>(T) {
    if (all_chunks_fit(kWide<T>, a.dh, a.gate, a.up, a.dgate, a.dup)) {
      return backward<T, kWide<T>>(ctx, a);
    }
    backward<T, 1>(ctx, a);
  });
}

}  // namespace lapidary::ops::cuda
