#include <algorithm>
#include <cmath>
#include <cstring>

#include "lapidary/ops/cpu/kernels.h"
#include "lapidary/ops/cpu/simd.h"

namespace lapidary::ops::cpu {
namespace {

constexpr int64_t kBlock = 1024;  // elements summed in float before the sum goes to double

// exp without the slow path for results below the normal range: it stops at 1e-38.
LAPIDARY_INLINE float exp_of(float x) { return std::exp(x < -87.0F ? -87.0F : x); }

template <class T>
LAPIDARY_INLINE float exp_loop(const float* s, T* p, int64_t n, float scale, float top,
                               const uint8_t* visible) {
  float sum = 0.0F;
  if (visible == nullptr) {
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < n; ++j) {
      const float e = exp_of(scale * s[j] - top);
      sum += e;
      store(p, j, e);
    }
  } else {
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < n; ++j) {
      const float seen = static_cast<float>(visible[j]);
      const float e = seen * exp_of(seen * (scale * s[j] - top));
      sum += e;
      store(p, j, e);
    }
  }
  return sum;
}

template <class T>
LAPIDARY_INLINE void bwd_loop(const float* s, const float* dp, T* p, T* ds, int64_t n, float scale,
                              float lse, float delta, const uint8_t* visible) {
  if (visible == nullptr) {
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) {
      const float e = exp_of(scale * s[j] - lse);
      const float d = scale * e * (dp[j] - delta);
      store(p, j, e);
      store(ds, j, d);
    }
  } else {
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) {
      const float seen = static_cast<float>(visible[j]);
      const float e = seen * exp_of(seen * (scale * s[j] - lse));
      const float d = scale * e * (dp[j] - delta);
      store(p, j, e);
      store(ds, j, d);
    }
  }
}

LAPIDARY_INLINE float max_loop(const float* s, int64_t n, float scale, const uint8_t* visible) {
  float top = kLowest;
  if (visible == nullptr) {
#pragma omp simd reduction(max : top)
    for (int64_t j = 0; j < n; ++j) top = std::max(top, scale * s[j]);
  } else {
#pragma omp simd reduction(max : top)
    for (int64_t j = 0; j < n; ++j) {
      top = std::max(top, visible[j] != 0 ? scale * s[j] : kLowest);
    }
  }
  return top;
}

template <class T>
LAPIDARY_INLINE void cross_entropy_loop(float* z, int64_t n, float lse, float factor,
                                        float inverse_cap) {
  const float square = inverse_cap * inverse_cap;
  float in[kBlock];
  T out[kBlock];
  for (int64_t first = 0; first < n; first += kBlock) {
    const int64_t count = std::min(kBlock, n - first);
    std::memcpy(in, z + first, static_cast<size_t>(count) * sizeof(float));
#pragma omp simd
    for (int64_t j = 0; j < count; ++j) {
      const float slope = 1.0F - in[j] * in[j] * square;
      store(out, j, factor * exp_of(in[j] - lse) * slope);
    }
    std::memcpy(reinterpret_cast<char*>(z) + first * static_cast<int64_t>(sizeof(T)), out,
                static_cast<size_t>(count) * sizeof(T));
  }
}

}  // namespace

LAPIDARY_CLONES float max_row(const float* s, int64_t n, float scale, const uint8_t* visible) {
  return max_loop(s, n, scale, visible);
}

template <>
LAPIDARY_CLONES float exp_row<float>(const float* s, float* p, int64_t n, float scale, float top,
                                     const uint8_t* visible) {
  return exp_loop(s, p, n, scale, top, visible);
}
template <>
LAPIDARY_CLONES float exp_row<bf16>(const float* s, bf16* p, int64_t n, float scale, float top,
                                    const uint8_t* visible) {
  return exp_loop(s, p, n, scale, top, visible);
}

template <>
LAPIDARY_CLONES void softmax_bwd_row<float>(const float* s, const float* dp, float* p, float* ds,
                                            int64_t n, float scale, float lse, float delta,
                                            const uint8_t* visible) {
  bwd_loop(s, dp, p, ds, n, scale, lse, delta, visible);
}
template <>
LAPIDARY_CLONES void softmax_bwd_row<bf16>(const float* s, const float* dp, bf16* p, bf16* ds,
                                           int64_t n, float scale, float lse, float delta,
                                           const uint8_t* visible) {
  bwd_loop(s, dp, p, ds, n, scale, lse, delta, visible);
}

LAPIDARY_CLONES double exp_sum(const float* z, int64_t n, float top) {
  double total = 0.0;
  for (int64_t first = 0; first < n; first += kBlock) {
    const int64_t last = std::min(first + kBlock, n);
    float sum = 0.0F;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = first; j < last; ++j) sum += exp_of(z[j] - top);
    total += static_cast<double>(sum);
  }
  return total;
}

template <>
LAPIDARY_CLONES void cross_entropy_bwd_row<float>(float* z, int64_t n, float lse, float factor,
                                                  float inverse_cap) {
  cross_entropy_loop<float>(z, n, lse, factor, inverse_cap);
}
template <>
LAPIDARY_CLONES void cross_entropy_bwd_row<bf16>(float* z, int64_t n, float lse, float factor,
                                                 float inverse_cap) {
  cross_entropy_loop<bf16>(z, n, lse, factor, inverse_cap);
}

LAPIDARY_CLONES void range_bytes(uint8_t* visible, int64_t n, int64_t first, int64_t last) {
  for (int64_t j = 0; j < n; ++j) visible[j] = j >= first && j < last ? 1 : 0;
}

LAPIDARY_CLONES void and_equal(uint8_t* visible, const int32_t* keys, int32_t key, int64_t n) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) visible[j] = keys[j] == key ? visible[j] : uint8_t{0};
}

LAPIDARY_CLONES void or_equal(uint8_t* visible, const int32_t* keys, int32_t key, int64_t n) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) visible[j] = keys[j] == key ? uint8_t{1} : visible[j];
}

LAPIDARY_CLONES void and_valid(uint8_t* visible, const uint8_t* valid, int64_t n) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) visible[j] = valid[j] != 0 ? visible[j] : uint8_t{0};
}

LAPIDARY_CLONES int64_t count_visible(const uint8_t* visible, int64_t n) {
  int64_t count = 0;
#pragma omp simd reduction(+ : count)
  for (int64_t j = 0; j < n; ++j) count += visible[j];
  return count;
}

}  // namespace lapidary::ops::cpu
