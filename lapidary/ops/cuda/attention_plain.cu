#include "lapidary/ops/cuda/attention_plain.cuh"

namespace lapidary::ops::cuda {
namespace plain {
namespace {

template <class T>
struct ForwardArgs {
  Sizes n;
  DeviceMask mask;
  float scale;
  Rows<const T> q, k, v;
  Rows<T> o;
  float* lse;  // may be null
  int64_t lse_batch, lse_head;
};

// Maximum and sum over the eight lanes that hold scores of one row.
__device__ float row_max(float x) {
#pragma unroll
  for (int distance = 4; distance < 32; distance *= 2) {
    x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, distance));
  }
  return x;
}
__device__ float row_sum(float x) {
#pragma unroll
  for (int distance = 4; distance < 32; distance *= 2) {
    x += __shfl_xor_sync(kAllLanes, x, distance);
  }
  return x;
}

// Of the lane's row of scores.
struct Softmax {
  float top = -FLT_MAX;  // largest score so far
  float sum = 0.0F;      // of exp(score - top)

  // Scores that `bits` shows become exp(score - top), the others 0; returns what the sums so far
  // shrink by.
  __device__ float add(float (&p)[4], unsigned bits, float scale) {
    float best = top;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      p[j] *= scale;
      if ((bits >> j & 1U) != 0) best = fmaxf(best, p[j]);
    }
    best = row_max(best);
    float here = 0.0F;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      p[j] = (bits >> j & 1U) != 0 ? expf(p[j] - best) : 0.0F;
      here += p[j];
    }
    const float shrink = expf(top - best);
    sum = fmaf(sum, shrink, row_sum(here));
    top = best;
    return shrink;
  }
};

// sum[i] *= the factor of own row i, which the lanes of that row hold.
template <int C>
__device__ void scale_rows(float4 (&sum)[4][C], float factor) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float f = __shfl_sync(kAllLanes, factor, i);
#pragma unroll
    for (int c = 0; c < C; ++c) {
      sum[i][c] = {f * sum[i][c].x, f * sum[i][c].y, f * sum[i][c].z, f * sum[i][c].w};
    }
  }
}

template <class T, int C>
__global__ void __launch_bounds__(kThreads, C <= 2 ? 2 : 1)
    forward(const __grid_constant__ ForwardArgs<T> a) {
  extern __shared__ float4 memory[];
  auto* q = reinterpret_cast<float*>(memory);
  float* k = q + a.n.tile();
  float* v = k + a.n.tile();
  const Lane l;
  float* p = v + a.n.tile() + kWarpWeights * l.warp;
  const int b = static_cast<int>(blockIdx.x) / a.n.heads;
  const int h = static_cast<int>(blockIdx.x) % a.n.heads;
  const int g = h / (a.n.heads / a.n.groups);
  // Late queries see the most keys: they start first.
  const int s0 = static_cast<int>(gridDim.y - 1 - blockIdx.y) * kTileRows;
  const int s1 = min(s0 + kTileRows, a.n.queries);

  load_tile<C, kTileRows>(q, a.n, a.q, b, s0, h, s1 - s0);
  float4 o[4][C] = {};
  Softmax softmax;
  const DeviceMask::Range keys = a.mask.key_range(b, s0, s1);
  for (int t0 = keys.first; t0 < keys.last; t0 += kTileRows) {
    const int t1 = min(t0 + kTileRows, keys.last);
    const unsigned bits = visible_bits<4, false>(a.mask, b, s0, s1, t0, t1);
    // Also waits until every warp is done with the tiles before.
    if (__syncthreads_or(static_cast<int>(bits)) == 0) continue;
    load_tile<C, kTileRows>(k, a.n, a.k, b, t0, g, t1 - t0);
    load_tile<C, kTileRows>(v, a.n, a.v, b, t0, g, t1 - t0);
    __syncthreads();
    if (__any_sync(kAllLanes, static_cast<int>(bits)) == 0) continue;
    float scores[4];
    dot_rows(q, k, a.n, scores);
    const float shrink = softmax.add(scores, bits, a.scale);
#pragma unroll
    for (int j = 0; j < 4; ++j) p[weight_at(j)] = scores[j];
    scale_rows(o, shrink);
    __syncwarp();
    add_rows<C, kTileRows>(o, p, v, a.n);
  }

  const bool blind = softmax.sum == 0.0F;
  scale_rows(o, blind ? 0.0F : 1.0F / softmax.sum);
  const int row = s0 + 4 * l.warp;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (row + i >= s1) continue;
#pragma unroll
    for (int c = 0; c < C; ++c) {
      store_row4(a.o.at(b, row + i, h), 4 * (l.lane + 32 * c), a.n.size, a.o.wide, o[i][c]);
    }
  }
  if (a.lse != nullptr && l.first == 0 && row + l.part < s1) {
    a.lse[b * a.lse_batch + h * a.lse_head + row + l.part] =
        blind ? INFINITY : softmax.top + logf(softmax.sum);
  }
}

template <class T>
void attend(Context& ctx, const AttentionArgs& a) {
  const bool lse = a.lse.defined();
  const ForwardArgs<T> args = {.n = Sizes(a.q, a.k),
                               .mask = DeviceMask::of(a.mask, a.k.dim(1)),
                               .scale = static_cast<float>(a.scale),
                               .q = Rows<const T>(a.q),
                               .k = Rows<const T>(a.k),
                               .v = Rows<const T>(a.v),
                               .o = Rows<T>(a.o),
                               .lse = lse ? data<float>(a.lse) : nullptr,
                               .lse_batch = lse ? a.lse.stride(0) : 0,
                               .lse_head = lse ? a.lse.stride(1) : 0};
  by_columns("attention", a.q.dim(3), [&]<int C>(std::integral_constant<int, C>) {
    launch("attention", forward<T, C>, a.q.dim(0) * a.q.dim(2), a.q.dim(1), ctx.stream, args);
  });
}

}  // namespace
}  // namespace plain

void attention_plain(Context& ctx, const AttentionArgs& a) {
  by_dtype("attention", a.q.dtype(), [&]<class T>(T) { plain::attend<T>(ctx, a); });
}

}  // namespace lapidary::ops::cuda
