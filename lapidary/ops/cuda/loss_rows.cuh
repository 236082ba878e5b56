#pragma once

#include "lapidary/ops/cuda/device.cuh"

namespace lapidary::ops::cuda {

constexpr int64_t kIgnored = -100;

// z = cap tanh(l / cap), with what its derivative 1 - tanh^2 needs.
struct Capped {
  float z, slope;
};
template <bool capped>
__device__ Capped cap_of(float logit, float cap, float inverse_cap) {
  if constexpr (!capped) return {logit, 1.0F};
  const float t = tanhf(logit * inverse_cap);
  return {cap * t, fmaf(-t, t, 1.0F)};
}

// Rows of logits and what becomes of them: the loss of each, and with `gradient` its logits turn
// into dl, in the dtype of the model, from where the row begins. A row without target gets no loss
// and zeros; one whose target is no token at all gets a NaN loss, for the host, which cannot look,
// to find.
struct Rows {
  float* logits;
  int64_t stride, vocabulary;
  const int64_t* targets;  // one per row
  double* losses;
  float cap, inverse_cap;
  double grad_scale;
  int64_t count;
  Dtype dtype;
  bool gradient;
};
void loss_rows(Context& ctx, const Rows& p);

}  // namespace lapidary::ops::cuda
