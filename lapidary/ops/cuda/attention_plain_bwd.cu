#include "lapidary/ops/cuda/attention_plain.cuh"

namespace lapidary::ops::cuda {
namespace plain {
namespace {

// Queries of a tile of the dk and dv kernel, which streams two tensors.
constexpr int kStreamRows = kTileRows / 2;

template <class T>
struct BackwardArgs {
  Sizes n;
  DeviceMask mask;
  float scale;
  Rows<const T> dout, q, k, v;
  const float* lse;
  int64_t lse_batch, lse_head;
  const float* delta;  // [B, Q, S]
  Rows<T> dq;
  Rows<float> dk, dv;

  __device__ float lse_of(int b, int h, int s) const {
    return lse[b * lse_batch + h * lse_head + s];
  }
  __device__ float delta_of(int b, int h, int s) const {
    return delta[(static_cast<int64_t>(b) * n.heads + h) * n.queries + s];
  }
};

// Probability and scaled gradient of a visible score. A blind row's lse is infinite: both are 0.
struct Weight {
  float p, ds;
  __device__ Weight(float score, float dp, float scale, float lse, float delta)
      : p(expf(fmaf(scale, score, -lse))), ds(scale * p * (dp - delta)) {}
};

template <class T, int C>
__global__ void __launch_bounds__(kThreads, C <= 2 ? 2 : 1)
    backward_dq(const __grid_constant__ BackwardArgs<T> a) {
  extern __shared__ float4 memory[];
  auto* q = reinterpret_cast<float*>(memory);
  float* dout = q + a.n.tile();
  float* stream = dout + a.n.tile();  // values, then keys
  const Lane l;
  float* weights = stream + a.n.tile() + kWarpWeights * l.warp;
  const int b = static_cast<int>(blockIdx.x) / a.n.heads;
  const int h = static_cast<int>(blockIdx.x) % a.n.heads;
  const int g = h / (a.n.heads / a.n.groups);
  // Late queries see the most keys: they start first.
  const int s0 = static_cast<int>(gridDim.y - 1 - blockIdx.y) * kTileRows;
  const int s1 = min(s0 + kTileRows, a.n.queries);

  load_tile<C, kTileRows>(q, a.n, a.q, b, s0, h, s1 - s0);
  load_tile<C, kTileRows>(dout, a.n, a.dout, b, s0, h, s1 - s0);
  const int row = s0 + 4 * l.warp;
  const bool exists = row + l.part < s1;
  const float lse = exists ? a.lse_of(b, h, row + l.part) : 0.0F;
  const float delta = exists ? a.delta_of(b, h, row + l.part) : 0.0F;
  float4 dq[4][C] = {};
  __syncthreads();  // dq may lie over dout, which is read entirely by now
  const DeviceMask::Range keys = a.mask.key_range(b, s0, s1);
  for (int t0 = keys.first; t0 < keys.last; t0 += kTileRows) {
    const int t1 = min(t0 + kTileRows, keys.last);
    const unsigned bits = visible_bits<4, false>(a.mask, b, s0, s1, t0, t1);
    // Also waits until every warp is done with the keys before.
    if (__syncthreads_or(static_cast<int>(bits)) == 0) continue;
    const bool any = __any_sync(kAllLanes, static_cast<int>(bits)) != 0;
    load_tile<C, kTileRows>(stream, a.n, a.v, b, t0, g, t1 - t0);
    __syncthreads();
    float dp[4];
    if (any) dot_rows(dout, stream, a.n, dp);
    __syncthreads();
    load_tile<C, kTileRows>(stream, a.n, a.k, b, t0, g, t1 - t0);
    __syncthreads();
    if (!any) continue;
    float scores[4];
    dot_rows(q, stream, a.n, scores);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      weights[weight_at(j)] =
          (bits >> j & 1U) != 0 ? Weight(scores[j], dp[j], a.scale, lse, delta).ds : 0.0F;
    }
    __syncwarp();
    add_rows<C, kTileRows>(dq, weights, stream, a.n);
  }

#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (row + i >= s1) continue;
#pragma unroll
    for (int c = 0; c < C; ++c) {
      store_row4(a.dq.at(b, row + i, h), 4 * (l.lane + 32 * c), a.n.size, a.dq.wide, dq[i][c]);
    }
  }
}

// Adds the warp's own rows [row, row + 4) below `end` to a gradient.
template <int C>
__device__ void add_to(const Rows<float>& t, const Sizes& n, int b, int row, int end, int g,
                       const float4 (&sum)[4][C]) {
  const Lane l;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (row + i >= end) continue;
    float* to = t.at(b, row + i, g);
#pragma unroll
    for (int c = 0; c < C; ++c) {
      const int column = 4 * (l.lane + 32 * c);
      float4 x =
          t.wide ? load_row4<true>(to, column, n.size) : load_row4<false>(to, column, n.size);
      add4(x, 1.0F, sum[i][c]);
      store_row4(to, column, n.size, t.wide, x);
    }
  }
}

template <class T, int C>
__global__ void __launch_bounds__(kThreads, C <= 2 ? 2 : 1)
    backward_dkv(const __grid_constant__ BackwardArgs<T> a) {
  extern __shared__ float4 memory[];
  auto* k = reinterpret_cast<float*>(memory);
  float* v = k + a.n.tile();
  float* q = v + a.n.tile();
  float* dout = q + a.n.tile() / 2;
  const Lane l;
  float* p = v + 2 * a.n.tile() + kWarpWeights * l.warp;
  float* ds = p + kWarpWeights / 2;
  const int b = static_cast<int>(blockIdx.x) / a.n.groups;
  const int g = static_cast<int>(blockIdx.x) % a.n.groups;
  const int ratio = a.n.heads / a.n.groups;
  const int t0 = static_cast<int>(blockIdx.y) * kTileRows;
  const int t1 = min(t0 + kTileRows, a.n.keys);

  load_tile<C, kTileRows>(k, a.n, a.k, b, t0, g, t1 - t0);
  load_tile<C, kTileRows>(v, a.n, a.v, b, t0, g, t1 - t0);
  float4 dk[4][C] = {}, dv[4][C] = {};
  const DeviceMask::Range queries = a.mask.query_range(b, t0, t1, a.n.queries);
  for (int s0 = queries.first; s0 < queries.last; s0 += kStreamRows) {
    const int s1 = min(s0 + kStreamRows, queries.last);
    const unsigned bits = visible_bits<2, true>(a.mask, b, t0, t1, s0, s1);
    if (__syncthreads_or(static_cast<int>(bits)) == 0) continue;
    const bool any = __any_sync(kAllLanes, static_cast<int>(bits)) != 0;
    for (int h = g * ratio; h < (g + 1) * ratio; ++h) {
      __syncthreads();  // every warp is done with the tiles before
      load_tile<C, kStreamRows>(q, a.n, a.q, b, s0, h, s1 - s0);
      load_tile<C, kStreamRows>(dout, a.n, a.dout, b, s0, h, s1 - s0);
      __syncthreads();
      if (!any) continue;
      float scores[2], dp[2];
      dot_rows(k, q, a.n, scores);
      dot_rows(v, dout, a.n, dp);
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const bool seen = (bits >> j & 1U) != 0;
        const int s = seen ? s0 + l.first + 8 * j : s0;
        const Weight w(scores[j], dp[j], a.scale, a.lse_of(b, h, s), a.delta_of(b, h, s));
        p[weight_at(j)] = seen ? w.p : 0.0F;
        ds[weight_at(j)] = seen ? w.ds : 0.0F;
      }
      __syncwarp();
      add_rows<C, kStreamRows>(dv, p, dout, a.n);
      add_rows<C, kStreamRows>(dk, ds, q, a.n);
    }
  }
  add_to(a.dk, a.n, b, t0 + 4 * l.warp, t1, g, dk);
  add_to(a.dv, a.n, b, t0 + 4 * l.warp, t1, g, dv);
}

template <class T>
void attend_bwd(Context& ctx, const AttentionBwdArgs& a, const float* delta) {
  const BackwardArgs<T> args = {.n = Sizes(a.q, a.k),
                                .mask = DeviceMask::of(a.mask, a.k.dim(1)),
                                .scale = static_cast<float>(a.scale),
                                .dout = Rows<const T>(a.dout),
                                .q = Rows<const T>(a.q),
                                .k = Rows<const T>(a.k),
                                .v = Rows<const T>(a.v),
                                .lse = data<float>(a.lse),
                                .lse_batch = a.lse.stride(0),
                                .lse_head = a.lse.stride(1),
                                .delta = delta,
                                .dq = Rows<T>(a.dq),
                                .dk = Rows<float>(a.dk),
                                .dv = Rows<float>(a.dv)};
  const int64_t batch = a.q.dim(0);
  by_columns("attention_bwd", a.q.dim(3), [&]<int C>(std::integral_constant<int, C>) {
    launch("attention_bwd", backward_dkv<T, C>, batch * a.k.dim(2), a.k.dim(1), ctx.stream, args);
    launch("attention_bwd", backward_dq<T, C>, batch * a.q.dim(2), a.q.dim(1), ctx.stream, args);
  });
}

}  // namespace
}  // namespace plain

void attention_plain_bwd(Context& ctx, const AttentionBwdArgs& a, const float* delta) {
  by_dtype("attention_bwd", a.q.dtype(), [&]<class T>(T) { plain::attend_bwd<T>(ctx, a, delta); });
}

}  // namespace lapidary::ops::cuda
