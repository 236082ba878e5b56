#pragma once

#include "lapidary/ops/cuda/attention_mma.cuh"

namespace lapidary::ops::cuda::mma {

struct BwdParams {
  Heads<const device_bf16> dout, q, k, v;
  Heads<device_bf16> dq;
  Heads<float> dk, dv;
  const float* lse;
  int64_t lse_row, lse_head;
  const float* delta;  // [B, heads, queries]
  DeviceMask mask;
  int rows, queries, heads, groups, ratio;
  float scale, scale_log2;  // scale_log2: times log2(e)

  __device__ const float* lse_of(int b, int head) const {
    return lse + b * lse_row + head * lse_head;
  }
  __device__ const float* delta_of(int b, int head) const {
    return delta + (static_cast<int64_t>(b) * heads + head) * queries;
  }
};

// dk and dv of every key, read and added to; then dq, which may lie over dout.
void launch_dkv(const BwdParams& p, int64_t size, int64_t keys, cudaStream_t stream);
void launch_dq(const BwdParams& p, int64_t size, cudaStream_t stream);

// A score to its probability p, and dp to dS. lse is infinite for queries that see nothing.
__device__ inline void probability(float& s, float& dp, float scale_log2, float lse, float delta,
                                   bool visible) {
  const float p = visible ? exp2f(fmaf(s, scale_log2, -lse * kLog2E)) : 0.0F;
  dp = p * (dp - delta);
  s = p;
}

}  // namespace lapidary::ops::cuda::mma
