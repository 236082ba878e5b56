#include <cmath>

#include "lapidary/ops/cpu/kernels.h"
#include "lapidary/ops/cpu/simd.h"

namespace lapidary::ops::cpu {
namespace {

constexpr float kTwoC = 1.5957691216057308F;  // 2 sqrt(2 / pi)
constexpr float kCubic = 0.044715F;

// (1 + tanh u) / 2 = sigmoid(2u), so that g(x) = x sigmoid(2u): one exponential, no cancellation.
// Beyond |x| = 12 the sigmoid is 0 or 1 in float; the clamps keep the exponential finite.
struct Gelu {
  float value;
  float slope;
};

LAPIDARY_INLINE Gelu gelu(float x) {
  const float low = x < -12.0F ? -12.0F : x;
  const float c = low > 12.0F ? 12.0F : low;
  const float square = c * c;
  const float two_u = kTwoC * c * (1.0F + kCubic * square);
  const float e = std::exp(two_u < -40.0F ? 40.0F : -two_u);
  const float s = 1.0F / (1.0F + e);
  const float two_du = kTwoC * (1.0F + 3.0F * kCubic * square);
  return {low * s, s + c * two_du * s * (e * s)};
}

template <class T>
LAPIDARY_INLINE void forward(const T* gate, const T* up, T* h, int64_t n, float weight) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) store(h, j, weight * gelu(load(gate, j)).value * load(up, j));
}

template <bool kAccumulate, class T>
LAPIDARY_INLINE float backward(const T* dh, const T* gate, const T* up, T* dgate, T* dup, int64_t n,
                               float weight) {
  float sum = 0.0F;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < n; ++j) {
    const Gelu g = gelu(load(gate, j));
    const float d = load(dh, j);
    const float u = load(up, j);
    sum += d * g.value * u;
    store(dgate, j, weight * d * u * g.slope);
    const float du = weight * d * g.value;
    store(dup, j, kAccumulate ? load(dup, j) + du : du);
  }
  return sum;
}

template <class T>
LAPIDARY_INLINE float any_backward(const T* dh, const T* gate, const T* up, T* dgate, T* dup,
                                   int64_t n, float weight, bool accumulate_dup) {
  return accumulate_dup ? backward<true>(dh, gate, up, dgate, dup, n, weight)
                        : backward<false>(dh, gate, up, dgate, dup, n, weight);
}

}  // namespace

template <>
LAPIDARY_CLONES void geglu_row<float>(const float* gate, const float* up, float* h, int64_t n,
                                      float weight) {
  forward(gate, up, h, n, weight);
}
template <>
LAPIDARY_CLONES void geglu_row<bf16>(const bf16* gate, const bf16* up, bf16* h, int64_t n,
                                     float weight) {
  forward(gate, up, h, n, weight);
}

template <>
LAPIDARY_CLONES float geglu_bwd_row<float>(const float* dh, const float* gate, const float* up,
                                           float* dgate, float* dup, int64_t n, float weight,
                                           bool accumulate_dup) {
  return any_backward(dh, gate, up, dgate, dup, n, weight, accumulate_dup);
}
template <>
LAPIDARY_CLONES float geglu_bwd_row<bf16>(const bf16* dh, const bf16* gate, const bf16* up,
                                          bf16* dgate, bf16* dup, int64_t n, float weight,
                                          bool accumulate_dup) {
  return any_backward(dh, gate, up, dgate, dup, n, weight, accumulate_dup);
}

}  // namespace lapidary::ops::cpu
