#include "lapidary/ops/cpu/kernels.h"
#include "lapidary/ops/cpu/simd.h"

namespace lapidary::ops::cpu {
namespace {

template <class X>
LAPIDARY_INLINE float squares(const X* x, int64_t n) {
  float sum = 0.0F;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < n; ++j) sum += load(x, j) * load(x, j);
  return sum;
}

template <bool kWeight, bool kResidual, class X, class Y>
LAPIDARY_INLINE void apply(const X* x, const float* w, const Y* residual, Y* y, int64_t n,
                           float r) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    float value = load(x, j) * r;
    if (kWeight) value *= w[j];
    if (kResidual) value += load(residual, j);
    store(y, j, value);
  }
}

template <class X, class Y>
LAPIDARY_INLINE void norm(const X* x, const float* w, const Y* residual, Y* y, int64_t n, float r) {
  if (w != nullptr && residual != nullptr) return apply<true, true>(x, w, residual, y, n, r);
  if (w != nullptr) return apply<true, false>(x, w, residual, y, n, r);
  if (residual != nullptr) return apply<false, true>(x, w, residual, y, n, r);
  apply<false, false>(x, w, residual, y, n, r);
}

template <bool kWeight, bool kGradient, class X, class Y>
LAPIDARY_INLINE float sums(const Y* dy, const X* x, const float* w, float* dw, int64_t n, float r) {
  float sum = 0.0F;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < n; ++j) {
    const float product = load(dy, j) * load(x, j);
    sum += kWeight ? product * w[j] : product;
    if (kGradient) dw[j] += product * r;
  }
  return sum;
}

template <class X, class Y>
LAPIDARY_INLINE float bwd_sums(const Y* dy, const X* x, const float* w, float* dw, int64_t n,
                               float r) {
  if (w != nullptr && dw != nullptr) return sums<true, true>(dy, x, w, dw, n, r);
  if (w != nullptr) return sums<true, false>(dy, x, w, dw, n, r);
  return sums<false, false>(dy, x, w, dw, n, r);
}

template <bool kWeight, bool kAccumulate, class X, class Y, class G>
LAPIDARY_INLINE void bwd_apply(const Y* dy, const X* x, const float* w, G* dx, int64_t n, float r,
                               float mean) {
  const float slope = r * mean;
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    float g = load(dy, j);
    if (kWeight) g *= w[j];
    float value = r * (g - load(x, j) * slope);
    if (kAccumulate) value += load(dx, j);
    store(dx, j, value);
  }
}

template <class X, class Y, class G>
LAPIDARY_INLINE void bwd(const Y* dy, const X* x, const float* w, G* dx, int64_t n, float r,
                         float mean, bool accumulate) {
  if (w != nullptr && accumulate) return bwd_apply<true, true>(dy, x, w, dx, n, r, mean);
  if (w != nullptr) return bwd_apply<true, false>(dy, x, w, dx, n, r, mean);
  if (accumulate) return bwd_apply<false, true>(dy, x, w, dx, n, r, mean);
  bwd_apply<false, false>(dy, x, w, dx, n, r, mean);
}

}  // namespace

template <>
LAPIDARY_CLONES float sum_squares<float>(const float* x, int64_t n) {
  return squares(x, n);
}
template <>
LAPIDARY_CLONES float sum_squares<bf16>(const bf16* x, int64_t n) {
  return squares(x, n);
}

// Every combination of element types, spelled out: an indirect function can't be a template.
#define LAPIDARY_NORM_ROW(X, Y)                                                            \
  template <>                                                                              \
  LAPIDARY_CLONES void norm_row<X, Y>(const X* x, const float* w, const Y* residual, Y* y, \
                                      int64_t n, float r) {                                \
    norm(x, w, residual, y, n, r);                                                         \
  }
#define LAPIDARY_NORM_BWD_SUMS(X, Y)                                                            \
  template <>                                                                                   \
  LAPIDARY_CLONES float norm_bwd_sums<X, Y>(const Y* dy, const X* x, const float* w, float* dw, \
                                            int64_t n, float r) {                               \
    return bwd_sums(dy, x, w, dw, n, r);                                                        \
  }
#define LAPIDARY_NORM_BWD_ROW(X, Y, G)                                                          \
  template <>                                                                                   \
  LAPIDARY_CLONES void norm_bwd_row<X, Y, G>(const Y* dy, const X* x, const float* w, G* dx,    \
                                             int64_t n, float r, float mean, bool accumulate) { \
    bwd(dy, x, w, dx, n, r, mean, accumulate);                                                  \
  }
#define LAPIDARY_NORM(X, Y)          \
  LAPIDARY_NORM_ROW(X, Y)            \
  LAPIDARY_NORM_BWD_SUMS(X, Y)       \
  LAPIDARY_NORM_BWD_ROW(X, Y, float) \
  LAPIDARY_NORM_BWD_ROW(X, Y, bf16)

LAPIDARY_NORM(float, float)
LAPIDARY_NORM(float, bf16)
LAPIDARY_NORM(bf16, float)
LAPIDARY_NORM(bf16, bf16)

}  // namespace lapidary::ops::cpu
