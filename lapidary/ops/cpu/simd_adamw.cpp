#include <cmath>
#include <type_traits>

#include "lapidary/ops/cpu/kernels.h"
#include "lapidary/ops/cpu/simd.h"
#include "lapidary/ops/quantize.h"

namespace lapidary::ops::cpu {
namespace {

template <class T>
LAPIDARY_INLINE void adamw_loop(T* param, float* master, const float* grad, float* m, float* v,
                                int64_t n, const AdamWStep& step) {
  const AdamWStep s = step;
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    const float g = s.grad_scale * grad[j];
    const float new_m = s.beta1 * m[j] + s.one_minus_beta1 * g;
    const float new_v = s.beta2 * v[j] + s.one_minus_beta2 * g * g;
    const float size = std::sqrt(new_v) * s.v_factor + s.eps;
    const float value = master[j] * s.decay - s.rate * new_m / size;
    m[j] = new_m;
    v[j] = new_v;
    master[j] = value;
    if constexpr (!std::is_same_v<T, float>) store(param, j, value);
  }
}

}  // namespace

template <>
LAPIDARY_CLONES void adamw_row<float>(float* param, float* master, const float* grad, float* m,
                                      float* v, int64_t n, const AdamWStep& step) {
  if (master == nullptr) return adamw_loop(param, param, grad, m, v, n, step);
  adamw_loop(param, master, grad, m, v, n, step);
  for (int64_t j = 0; j < n; ++j) param[j] = master[j];
}
template <>
LAPIDARY_CLONES void adamw_row<bf16>(bf16* param, float* master, const float* grad, float* m,
                                     float* v, int64_t n, const AdamWStep& step) {
  adamw_loop(param, master, grad, m, v, n, step);
}

LAPIDARY_CLONES float largest_magnitude(const float* x, int64_t n) {
  float largest = 0.0F;
#pragma omp simd reduction(max : largest)
  for (int64_t j = 0; j < n; ++j) largest = std::fmax(largest, std::fabs(x[j]));
  return largest;
}

LAPIDARY_CLONES void decode_row(const uint8_t* codes, const float* values, float scale, float* x,
                                int64_t n) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) x[j] = scale * values[codes[j]];
}

LAPIDARY_CLONES void encode_signed(const float* x, float inverse, uint8_t* codes, int64_t n) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) codes[j] = signed_code(x[j] * inverse);
}
LAPIDARY_CLONES void encode_unsigned(const float* x, float inverse, uint8_t* codes, int64_t n) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) codes[j] = unsigned_code(x[j] * inverse);
}

LAPIDARY_CLONES void rounding_block(uint64_t seed, uint64_t stream, uint64_t counter,
                                    uint16_t* random) {
#pragma omp simd
  for (int64_t j = 0; j < kQuantBlock / 8; ++j) {
    const PhiloxBlock bits = philox(seed, stream, counter + static_cast<uint64_t>(j));
    for (int k = 0; k < 4; ++k) {
      random[4 * j + k] = static_cast<uint16_t>(rounding_bits(bits, k));
      random[kQuantBlock / 2 + 4 * j + k] = static_cast<uint16_t>(rounding_bits(bits, 4 + k));
    }
  }
}

LAPIDARY_CLONES void round_row(const float* x, const uint16_t* random, bf16* out, int64_t n) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) out[j].bits = round_at_random(x[j], random[j]);
}

}  // namespace lapidary::ops::cpu
