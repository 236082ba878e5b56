#pragma once

#include <bit>
#include <cstdint>

#include "lapidary/core/dtype.h"

// For the simd_*.cpp files only. They are compiled with -O3 -ffast-math: nothing in them may depend
// on infinities or NaN. A public function carries LAPIDARY_CLONES and calls LAPIDARY_INLINE
// templates, so that each processor level gets its own vector code and the binary starts anywhere.

// The indirect functions behind target_clones run before a sanitizer is ready.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define LAPIDARY_CLONES \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define LAPIDARY_CLONES
#endif
#define LAPIDARY_INLINE inline __attribute__((always_inline))

namespace lapidary::ops::cpu {

LAPIDARY_INLINE float load(const float* p, int64_t i) { return p[i]; }
LAPIDARY_INLINE float load(const bf16* p, int64_t i) {
  return std::bit_cast<float>(uint32_t{p[i].bits} << 16);
}
LAPIDARY_INLINE void store(float* p, int64_t i, float value) { p[i] = value; }
LAPIDARY_INLINE void store(bf16* p, int64_t i, float value) {
  const uint32_t u = std::bit_cast<uint32_t>(value);
  const uint32_t rounded = (u + 0x7fffU + ((u >> 16) & 1U)) >> 16;
  const bool nan = (u & 0x7fffffffU) > 0x7f800000U;
  p[i].bits = static_cast<uint16_t>(nan ? (u >> 16) | 0x40U : rounded);
}

}  // namespace lapidary::ops::cpu
