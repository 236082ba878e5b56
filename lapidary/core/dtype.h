#pragma once

#include <bit>
#include <complex>
#include <cstdint>
#include <string>
#include <type_traits>

namespace lapidary {

// Element types. f32 and bf16 are what the backends compute in; f64 and c128 are the reference
// operations' (c128 carries complex-step derivatives); f16 and the integers are storage.
enum class Dtype : uint8_t { f32, bf16, f16, f64, c128, i64, i32, u8 };

// bfloat16: the upper half of an IEEE float. Conversion rounds to nearest, ties to even.
struct bf16 {
  uint16_t bits = 0;
  bf16() = default;
  explicit bf16(float value) : bits(round(value)) {}
  explicit operator float() const { return std::bit_cast<float>(uint32_t{bits} << 16); }

  static uint16_t round(float value) {
    const uint32_t u = std::bit_cast<uint32_t>(value);
    if ((u & 0x7fffffffU) > 0x7f800000U) return static_cast<uint16_t>((u >> 16) | 0x40U);  // NaN
    return static_cast<uint16_t>((u + 0x7fffU + ((u >> 16) & 1U)) >> 16);
  }
};

// IEEE half precision, storage only.
struct f16 {
  uint16_t bits = 0;
  f16() = default;
  explicit f16(float value);
  explicit operator float() const;
};

int64_t size_of(Dtype dtype);      // bytes of one element
const char* name_of(Dtype dtype);  // "f32", ...
// Accepts fp32, float32, torch.float32, bf16, bfloat16, fp64, ... ; throws Error otherwise.
Dtype parse_dtype(const std::string& text);

// The type in which an operation on `dtype` keeps sums, norms' statistics and parameter gradients:
// f32 for f32 and bf16, the type itself for f64 and c128.
Dtype accumulate_dtype(Dtype dtype);

template <class T>
constexpr Dtype dtype_of() {
  if constexpr (std::is_same_v<T, float>)
    return Dtype::f32;
  else if constexpr (std::is_same_v<T, bf16>)
    return Dtype::bf16;
  else if constexpr (std::is_same_v<T, f16>)
    return Dtype::f16;
  else if constexpr (std::is_same_v<T, double>)
    return Dtype::f64;
  else if constexpr (std::is_same_v<T, std::complex<double>>)
    return Dtype::c128;
  else if constexpr (std::is_same_v<T, int64_t>)
    return Dtype::i64;
  else if constexpr (std::is_same_v<T, int32_t>)
    return Dtype::i32;
  else {
    static_assert(std::is_same_v<T, uint8_t>, "not an element type");
    return Dtype::u8;
  }
}

}  // namespace lapidary
