#include "lapidary/ops/cpu/kernels.h"
#include "lapidary/ops/cpu/simd.h"

namespace lapidary::ops::cpu {
namespace {

template <class X>
LAPIDARY_INLINE void forward(const X* x, const X* w, const float* cos, const float* sin, X* y,
                             int64_t half, float r) {
#pragma omp simd
  for (int64_t j = 0; j < half; ++j) {
    const float a = load(x, j) * r * load(w, j);
    const float b = load(x, j + half) * r * load(w, j + half);
    store(y, j, a * cos[j] - b * sin[j]);
    store(y, j + half, b * cos[j] + a * sin[j]);
  }
}

template <bool kGradient, class X, class Y>
LAPIDARY_INLINE float sums(const Y* dy, const X* x, const X* w, const float* cos, const float* sin,
                           float* dw, int64_t half, float r) {
  float sum = 0.0F;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < half; ++j) {
    const float da = load(dy, j) * cos[j] + load(dy, j + half) * sin[j];
    const float db = load(dy, j + half) * cos[j] - load(dy, j) * sin[j];
    const float pa = da * load(x, j);
    const float pb = db * load(x, j + half);
    sum += pa * load(w, j) + pb * load(w, j + half);
    if (kGradient) {
      dw[j] += pa * r;
      dw[j + half] += pb * r;
    }
  }
  return sum;
}

template <bool kAccumulate, class X, class Y>
LAPIDARY_INLINE void backward(const Y* dy, const X* x, const X* w, const float* cos,
                              const float* sin, X* dx, int64_t half, float r, float mean) {
  const float slope = r * mean;
#pragma omp simd
  for (int64_t j = 0; j < half; ++j) {
    const float da = load(dy, j) * cos[j] + load(dy, j + half) * sin[j];
    const float db = load(dy, j + half) * cos[j] - load(dy, j) * sin[j];
    float a = r * (da * load(w, j) - load(x, j) * slope);
    float b = r * (db * load(w, j + half) - load(x, j + half) * slope);
    if (kAccumulate) {
      a += load(dx, j);
      b += load(dx, j + half);
    }
    store(dx, j, a);
    store(dx, j + half, b);
  }
}

template <class X, class Y>
LAPIDARY_INLINE float any_sums(const Y* dy, const X* x, const X* w, const float* cos,
                               const float* sin, float* dw, int64_t half, float r) {
  return dw != nullptr ? sums<true>(dy, x, w, cos, sin, dw, half, r)
                       : sums<false>(dy, x, w, cos, sin, dw, half, r);
}

template <class X, class Y>
LAPIDARY_INLINE void any_backward(const Y* dy, const X* x, const X* w, const float* cos,
                                  const float* sin, X* dx, int64_t half, float r, float mean,
                                  bool accumulate) {
  if (accumulate) return backward<true>(dy, x, w, cos, sin, dx, half, r, mean);
  backward<false>(dy, x, w, cos, sin, dx, half, r, mean);
}

}  // namespace

template <>
LAPIDARY_CLONES void norm_rope_row<float>(const float* x, const float* w, const float* cos,
                                          const float* sin, float* y, int64_t half, float r) {
  forward(x, w, cos, sin, y, half, r);
}
template <>
LAPIDARY_CLONES void norm_rope_row<bf16>(const bf16* x, const bf16* w, const float* cos,
                                         const float* sin, bf16* y, int64_t half, float r) {
  forward(x, w, cos, sin, y, half, r);
}

template <>
LAPIDARY_CLONES float norm_rope_bwd_sums<float, float>(const float* dy, const float* x,
                                                       const float* w, const float* cos,
                                                       const float* sin, float* dw, int64_t half,
                                                       float r) {
  return any_sums(dy, x, w, cos, sin, dw, half, r);
}
template <>
LAPIDARY_CLONES float norm_rope_bwd_sums<bf16, bf16>(const bf16* dy, const bf16* x, const bf16* w,
                                                     const float* cos, const float* sin, float* dw,
                                                     int64_t half, float r) {
  return any_sums(dy, x, w, cos, sin, dw, half, r);
}
template <>
LAPIDARY_CLONES float norm_rope_bwd_sums<bf16, float>(const float* dy, const bf16* x, const bf16* w,
                                                      const float* cos, const float* sin, float* dw,
                                                      int64_t half, float r) {
  return any_sums(dy, x, w, cos, sin, dw, half, r);
}

template <>
LAPIDARY_CLONES void norm_rope_bwd_row<float, float>(const float* dy, const float* x,
                                                     const float* w, const float* cos,
                                                     const float* sin, float* dx, int64_t half,
                                                     float r, float mean, bool accumulate) {
  any_backward(dy, x, w, cos, sin, dx, half, r, mean, accumulate);
}
template <>
LAPIDARY_CLONES void norm_rope_bwd_row<bf16, bf16>(const bf16* dy, const bf16* x, const bf16* w,
                                                   const float* cos, const float* sin, bf16* dx,
                                                   int64_t half, float r, float mean,
                                                   bool accumulate) {
  any_backward(dy, x, w, cos, sin, dx, half, r, mean, accumulate);
}
template <>
LAPIDARY_CLONES void norm_rope_bwd_row<bf16, float>(const float* dy, const bf16* x, const bf16* w,
                                                    const float* cos, const float* sin, bf16* dx,
                                                    int64_t half, float r, float mean,
                                                    bool accumulate) {
  any_backward(dy, x, w, cos, sin, dx, half, r, mean, accumulate);
}

}  // namespace lapidary::ops::cpu
