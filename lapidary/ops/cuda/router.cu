#include "lapidary/ops/cuda/router.cuh"

#include "lapidary/ops/cuda/cuda.h"
#include "lapidary/ops/cuda/moe_scratch.h"

namespace lapidary::ops::cuda {
namespace {

constexpr int kThreads = 256;
constexpr unsigned kWarp = 0xffffffffU;

// One block computes the logits of kTokens tokens for kExperts experts, kDepth columns at a time.
// Warp w takes 8 tokens, and of each step's columns the first half (w < 4) or the second, so that
// a thread has 8 x 4 sums: few enough reads of shared memory for each multiplication.
constexpr int kTokens = 32;
constexpr int kExperts = 128;
constexpr int kDepth = 64;
constexpr int kPitch = kDepth + 4;  // floats; rows of quads then start in different banks
constexpr int kRowTokens = 8, kRowExperts = 4;
constexpr int kRows = kThreads / (kDepth / 4);  // rows that the block loads at a time

template <class U, class T>
struct LogitArgs {
  Rows<const U> u;
  Rows<const T> scale, proj;
  int64_t tokens, hidden, experts;
  float factor, eps;
  float* logits;  // [T, E]
  float* rstd;    // or null
};

// The next step's tiles on their way from memory: nothing is computed with them until store(), so
// that the step before runs meanwhile. z stays without its factors rstd H^-1/2, which the logits
// get at the end.
template <class U, class T, bool kQuads>
struct Tiles {
  typename Quad<U>::Raw u[kTokens / kRows];
  typename Quad<T>::Raw proj[kExperts / kRows];
  typename Quad<T>::Raw scale;
  float squares[kTokens / kRows] = {};  // this thread's part of sum u^2

  __device__ void load(const LogitArgs<U, T>& a, int64_t token, int64_t expert, int64_t column) {
    const int64_t left = a.hidden - column;
    scale = load_raw<kQuads>(a.scale.at(0, column), left);
#pragma unroll
    for (int i = 0; i < kTokens / kRows; ++i) {
      const int64_t t = token + i * kRows;
      u[i] = load_raw<kQuads>(a.u.at(t, column), t < a.tokens ? left : 0);
    }
#pragma unroll
    for (int i = 0; i < kExperts / kRows; ++i) {
      const int64_t e = expert + i * kRows;
      proj[i] = load_raw<kQuads>(a.proj.at(e, column), e < a.experts ? left : 0);
    }
  }

  __device__ void store(float (*z)[kPitch], float (*p)[kPitch], int row, int column) {
#pragma unroll
    for (int i = 0; i < kTokens / kRows; ++i) {
      const float4 x = Quad<U>::widen(u[i]);
      squares[i] = dot(x, x, squares[i]);
      *reinterpret_cast<float4*>(&z[row + i * kRows][column]) = x * Quad<T>::widen(scale);
    }
#pragma unroll
    for (int i = 0; i < kExperts / kRows; ++i) {
      *reinterpret_cast<float4*>(&p[row + i * kRows][column]) = Quad<T>::widen(proj[i]);
    }
  }
};

// sums[i][j] += z of token i times proj of expert lane + 32 j, over half the depth of a step.
__device__ void multiply(const float (*z)[kPitch], const float (*proj)[kPitch], int lane,
                         float (&sums)[kRowTokens][kRowExperts]) {
#pragma unroll 4
  for (int k = 0; k < kDepth / 2; k += 4) {
    float4 p[kRowExperts];
#pragma unroll
    for (int j = 0; j < kRowExperts; ++j) {
      p[j] = *reinterpret_cast<const float4*>(&proj[lane + 32 * j][k]);
    }
#pragma unroll
    for (int i = 0; i < kRowTokens; ++i) {
      const float4 x = *reinterpret_cast<const float4*>(&z[i][k]);
#pragma unroll
      for (int j = 0; j < kRowExperts; ++j) sums[i][j] = dot(x, p[j], sums[i][j]);
    }
  }
}

template <class U, class T, bool kQuads>
__global__ void __launch_bounds__(kThreads) logits_kernel(LogitArgs<U, T> a) {
  __shared__ __align__(16) float z[kTokens][kPitch];
  __shared__ __align__(16) float proj[kExperts][kPitch];
  __shared__ float rstd[kTokens];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int half = warp / 4, first = warp % 4 * kRowTokens;  // token of this warp in the tile
  const int row = static_cast<int>(threadIdx.x) / (kDepth / 4);
  const int column = static_cast<int>(threadIdx.x) % (kDepth / 4) * 4;
  const int64_t token = static_cast<int64_t>(blockIdx.x) * kTokens;
  const int64_t expert = static_cast<int64_t>(blockIdx.y) * kExperts;
  float sums[kRowTokens][kRowExperts] = {};
  Tiles<U, T, kQuads> tiles;
  tiles.load(a, token + row, expert + row, column);
#pragma unroll 1
  for (int64_t depth = 0; depth < a.hidden; depth += kDepth) {
    __syncthreads();  // the last step has been multiplied
    tiles.store(z, proj, row, column);
    __syncthreads();
    if (depth + kDepth < a.hidden) {
      tiles.load(a, token + row, expert + row, depth + kDepth + column);
    }
    // Half a row further on; rows keep their pitch.
    multiply(reinterpret_cast<const float(*)[kPitch]>(&z[first][half * (kDepth / 2)]),
             reinterpret_cast<const float(*)[kPitch]>(&proj[0][half * (kDepth / 2)]), lane, sums);
  }
  // The 16 threads of a row hold its squares.
#pragma unroll
  for (int i = 0; i < kTokens / kRows; ++i) {
    float sum = tiles.squares[i];
#pragma unroll
    for (int distance = kDepth / 8; distance > 0; distance /= 2) {
      sum += __shfl_xor_sync(kWarp, sum, distance);
    }
    if (column == 0) {
      const float r = 1.0F / sqrtf(sum / static_cast<float>(a.hidden) + a.eps);
      const int64_t t = token + row + i * kRows;
      rstd[row + i * kRows] = r;
      if (blockIdx.y == 0 && a.rstd != nullptr && t < a.tokens) a.rstd[t] = r;
    }
  }
  // The second half's sums join the first's.
  __syncthreads();
  float* other = &proj[0][0];  // [kTokens, kExperts]
  if (half == 1) {
#pragma unroll
    for (int i = 0; i < kRowTokens; ++i) {
#pragma unroll
      for (int j = 0; j < kRowExperts; ++j) {
        other[(first + i) * kExperts + lane + 32 * j] = sums[i][j];
      }
    }
  }
  __syncthreads();
  if (half == 1) return;
#pragma unroll
  for (int i = 0; i < kRowTokens; ++i) {
    const int64_t t = token + first + i;
    if (t >= a.tokens) break;
    const float factor = rstd[first + i] * a.factor;
#pragma unroll
    for (int j = 0; j < kRowExperts; ++j) {
      const int64_t e = expert + lane + 32 * j;
      const float sum = sums[i][j] + other[(first + i) * kExperts + lane + 32 * j];
      if (e < a.experts) a.logits[t * a.experts + e] = sum * factor;
    }
  }
}

template <class T>
struct ShareArgs {
  const float* logits;  // [T, E]
  const T* per_expert_scale;
  int64_t tokens;
  int experts, top_k;
  bool select;
  int32_t* indices;
  int64_t index_stride;
  float* shares;
  int64_t share_stride;
  float* weights;
  int64_t weight_stride;
};

// Grows with x; equal for 0 and -0; below every number for NaN.
__device__ unsigned order_of(float x) {
  if (isnan(x)) return 0;
  const unsigned bits = __float_as_uint(x + 0.0F);
  return (bits >> 31) != 0 ? ~bits : bits | 0x80000000U;
}

// By one warp: the k largest logits, the lowest id first among equals. Experts are in a strict
// order, and each round takes the first one after the last round's: every id is valid and none
// comes twice, whatever the logits are.
__device__ void select_top(const float* logits, int experts, int top_k, int lane, int32_t* chosen) {
  unsigned last_order = 0;
  int last = -1;
  for (int k = 0; k < top_k; ++k) {
    unsigned best_order = 0;
    unsigned best = UINT32_MAX;
    for (int e = lane; e < experts; e += 32) {
      const unsigned order = order_of(logits[e]);
      const bool open = last < 0 || order < last_order || (order == last_order && e > last);
      if (open && (best == UINT32_MAX || order > best_order)) {
        best_order = order;
        best = static_cast<unsigned>(e);
      }
    }
    last_order = __reduce_max_sync(kWarp, best_order);
    // A lane that found nothing has best = UINT32_MAX, above every id.
    last = static_cast<int>(__reduce_min_sync(kWarp, best_order == last_order ? best : UINT32_MAX));
    if (lane == 0) chosen[k] = last;
  }
  __syncwarp();  // the others read them
}

// A warp per token. Shares are the softmax over the selected logits: the rest cancels. Foreign ids
// (given ones) get no share.
template <class T>
__global__ void __launch_bounds__(kThreads) shares_kernel(ShareArgs<T> a) {
  const int64_t t = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (t >= a.tokens) return;
  const float* logits = a.logits + t * a.experts;
  int32_t* chosen = a.indices + t * a.index_stride;
  if (a.select) select_top(logits, a.experts, a.top_k, lane, chosen);
  const auto known = [&](int e) { return e >= 0 && e < a.experts; };
  float top = -INFINITY;
  for (int k = lane; k < a.top_k; k += 32) {
    if (known(chosen[k])) top = fmaxf(top, logits[chosen[k]]);
  }
  top = warp_max(top);
  float* shares = a.shares + t * a.share_stride;
  float sum = 0.0F;
  for (int k = lane; k < a.top_k; k += 32) {
    const float share = known(chosen[k]) ? expf(logits[chosen[k]] - top) : 0.0F;
    shares[k] = share;
    sum += share;
  }
  sum = warp_sum(sum);
  for (int k = lane; k < a.top_k; k += 32) {
    const float share = shares[k] / sum;
    const float scale = known(chosen[k]) ? to_float(a.per_expert_scale[chosen[k]]) : 0.0F;
    shares[k] = share;
    a.weights[t * a.weight_stride + k] = share * scale;
  }
}

template <class U, class T>
void run(cudaStream_t stream, const RouterArgs& a, float* logits) {
  const int64_t tokens = a.u.dim(0), experts = a.proj.dim(0);
  const LogitArgs<U, T> args = {.u = Rows<const U>(a.u),
                                .scale = Rows<const T>(a.scale),
                                .proj = Rows<const T>(a.proj),
                                .tokens = tokens,
                                .hidden = a.u.dim(1),
                                .experts = experts,
                                .factor = root_reciprocal(a.u.dim(1)),
                                .eps = static_cast<float>(a.eps),
                                .logits = logits,
                                .rstd = data<float>(a.rstd)};
  const bool quads =
      args.hidden % 4 == 0 && args.u.quads() && args.scale.quads() && args.proj.quads();
  const dim3 grid(static_cast<unsigned>(ceil_div(tokens, kTokens)),
                  static_cast<unsigned>(ceil_div(experts, kExperts)));
  const auto kernel = quads ? logits_kernel<U, T, true> : logits_kernel<U, T, false>;
  kernel<<<grid, kThreads, 0, stream>>>(args);
  check_launch("router");
  const auto blocks = static_cast<unsigned>(ceil_div(tokens, kThreads / 32));
  shares_kernel<T>
      <<<blocks, kThreads, 0, stream>>>({.logits = logits,
                                         .per_expert_scale = data<T>(a.per_expert_scale),
                                         .tokens = tokens,
                                         .experts = static_cast<int>(experts),
                                         .top_k = static_cast<int>(a.indices.dim(1)),
                                         .select = a.select,
                                         .indices = data<int32_t>(a.indices),
                                         .index_stride = a.indices.stride(0),
                                         .shares = data<float>(a.shares),
                                         .share_stride = a.shares.stride(0),
                                         .weights = data<float>(a.weights),
                                         .weight_stride = a.weights.stride(0)});
  check_launch("router");
}

}  // namespace

void router(Context& ctx, const RouterArgs& a) {
  const ArenaScope scope(ctx.scratch);
  const RouterScratch scratch(cpu::scratch_block(ctx, router_scratch_bytes(a)), a);
  by_dtype("router", a.u.dtype(), [&]<class U>(U) {
    by_dtype("router", a.proj.dtype(), [&]<class T>(T) {
      if (a.u.dim(0) > 0) run<U, T>(ctx.stream, a, scratch.logits);
    });
  });
}

}  // namespace lapidary::ops::cuda
