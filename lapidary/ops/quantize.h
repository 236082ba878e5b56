#pragma once

#include <math.h>

#include <bit>
#include <cstdint>

#include "lapidary/core/dtype.h"
#include "lapidary/core/philox.h"

#ifdef __CUDACC__
#define LAPIDARY_HOST_DEVICE __host__ __device__
#else
#define LAPIDARY_HOST_DEVICE
#endif

// 8-bit numbers for optimiser state, and random rounding to bf16; the same on every backend.
//
// Dynamic codes (Dettmers et al. 2022, "8-bit Optimizers via Block-wise Quantization"): of a block
// of kQuantBlock elements the largest magnitude is kept as its scale, and of each element the code
// of element / scale. The codes' values are 0, 1, and in each of the seven decades
// [10^(i-7), 10^(i-6)), i = 0 .. 6, the middles of 2^i (signed codes, for each sign) or 2^(i+1)
// (unsigned codes) equal intervals. Codes are in the order of their values.
namespace lapidary::ops {

constexpr int64_t kQuantBlock = 256;
// Blocks whose largest magnitude is below this count as zero: its reciprocal would overflow.
constexpr float kSmallestScale = 0x1p-126F;

// The magnitudes in their order have indices; those of one decade begin at a power of two.
// Signed: code 127 + index or 127 - index, with zero at index 0 and one at 128 (there is no -1).
// Unsigned: code index - 1, with zero at index 1 and one at 256.
template <bool kSigned>
constexpr float code_magnitude(int index) {
  constexpr int kZero = kSigned ? 0 : 1;
  if (index <= kZero) return 0.0F;
  if (index == 128 << kZero) return 1.0F;
  int group = 0;
  while ((2 << group) <= index) ++group;
  double decade = 1.0;
  for (int i = group - kZero; i < 6; ++i) decade /= 10.0;
  const int points = 1 << group;
  return static_cast<float>(decade * (0.1 + 0.9 * (index - points + 0.5) / points));
}

struct CodeTable {
  float value[256];
};
template <bool kSigned>
constexpr CodeTable code_table() {
  CodeTable table{};
  for (int code = 0; code < 256; ++code) {
    if constexpr (!kSigned)
      table.value[code] = code_magnitude<false>(code + 1);
    else
      table.value[code] =
          code < 127 ? -code_magnitude<true>(127 - code) : code_magnitude<true>(code - 127);
  }
  return table;
}
inline constexpr CodeTable kSignedCodes = code_table<true>();
inline constexpr CodeTable kUnsignedCodes = code_table<false>();

// Where x in [0, 1] lies among the intervals of all decades, in units of one interval of signed
// codes: a concave curve made of one line per decade, so that the lowest line is the right one.
LAPIDARY_HOST_DEVICE inline float code_position(float x) {
  constexpr float kSlope[7] = {static_cast<float>(1e6 / 0.9),   static_cast<float>(2e5 / 0.9),
                               static_cast<float>(4e4 / 0.9),   static_cast<float>(8e3 / 0.9),
                               static_cast<float>(1.6e3 / 0.9), static_cast<float>(320 / 0.9),
                               static_cast<float>(64 / 0.9)};
  constexpr float kOffset = static_cast<float>(8.0 / 9.0);
  float u = x * kSlope[0] + kOffset;
  u = fminf(u, x * kSlope[1] + kOffset * 2.0F);
  u = fminf(u, x * kSlope[2] + kOffset * 4.0F);
  u = fminf(u, x * kSlope[3] + kOffset * 8.0F);
  u = fminf(u, x * kSlope[4] + kOffset * 16.0F);
  u = fminf(u, x * kSlope[5] + kOffset * 32.0F);
  return fminf(u, x * kSlope[6] + kOffset * 64.0F);
}

// The index whose magnitude is nearest to the one at position u > 0. Within a decade that is the
// interval; the last one of a decade reaches a fifth of an interval into the next decade, whose
// intervals are five times as wide.
LAPIDARY_HOST_DEVICE inline int code_index(float u) {
  const int index = static_cast<int>(u);
  const bool first = (index & (index - 1)) == 0;
  return first && u - static_cast<float>(index) < 0.2F ? index - 1 : index;
}

// The code nearest to x in [-1, 1].
LAPIDARY_HOST_DEVICE inline uint8_t signed_code(float x) {
  const float size = fabsf(x);
  const float u = code_position(size);
  int index = code_index(u);
  index = index < 1 ? 1 : index;
  index = size < 2.75e-7F ? 0 : index;
  index = u >= 127.75F ? 128 : index;
  const int low = index > 127 ? 127 : index;
  return static_cast<uint8_t>(x < 0.0F ? 127 - low : 127 + index);
}

// The code nearest to x in [0, 1], but never that of zero for an x above it.
LAPIDARY_HOST_DEVICE inline uint8_t unsigned_code(float x) {
  const float u = 2.0F * code_position(x);
  int index = code_index(u);
  index = index < 2 ? 2 : index;
  index = x > 0.0F ? index : 1;
  index = u >= 255.75F ? 256 : index;
  return static_cast<uint8_t>(index - 1);
}

// What elements of a block are multiplied by before they are coded; 0 for a block that counts as
// zero, whose scale is stored as 0.
LAPIDARY_HOST_DEVICE inline float inverse_scale(float largest) {
  return largest < kSmallestScale ? 0.0F : 1.0F / largest;
}

// Sixteen random bits for every element of a parameter at every step. One Philox block serves eight
// elements: four neighbours, and the four that are 128 elements on.
constexpr uint64_t rounding_counter(int64_t step, int64_t element) {
  const int64_t block = element / 256 * 32 + element % 128 / 4;
  return (static_cast<uint64_t>(step) << 40) + static_cast<uint64_t>(block);
}
// Those of the element at `position` of a block: 0 .. 3 the neighbours, 4 .. 7 the others.
constexpr uint32_t rounding_bits(const PhiloxBlock& block, int position) {
  return (block.v[position / 2] >> (position % 2 * 16)) & 0xffffU;
}
constexpr int rounding_position(int64_t element) {
  return static_cast<int>(element % 256 / 128 * 4 + element % 4);
}

// One of the two bf16 next to x, as bits: what a bf16 cannot hold of x, in 65536ths of the distance
// between the two, is the number of `random` (of 0 .. 65535) for which the one farther from zero is
// taken.
constexpr uint16_t round_at_random(float x, uint32_t random) {
  const auto u = std::bit_cast<uint32_t>(x);
  const bool finite = (u & 0x7f800000U) != 0x7f800000U;
  const uint32_t special = (u & 0x7fffffU) != 0 ? u | 0x400000U : u;  // NaN stays one
  return static_cast<uint16_t>((finite ? u + random : special) >> 16);
}

}  // namespace lapidary::ops
