#include "lapidary/core/dtype.h"

#include <cmath>

#include "lapidary/core/error.h"

namespace lapidary {

f16::f16(float value) {
  const uint32_t u = std::bit_cast<uint32_t>(value);
  const uint32_t sign = (u >> 16) & 0x8000U;
  const uint32_t magnitude = u & 0x7fffffffU;
  uint32_t half = 0;
  if (magnitude > 0x7f800000U) {
    half = 0x7e00U;  // NaN
  } else if (magnitude >= 0x477ff000U) {
    half = 0x7c00U;  // rounds to infinity
  } else if (magnitude < 0x38800000U) {
    // Subnormal: the value in units of 2^-24, rounded to nearest even by the float unit itself.
    const float scaled = std::bit_cast<float>(magnitude) * 16777216.0F;
    half = static_cast<uint32_t>(std::nearbyintf(scaled));
  } else {
    half = (magnitude - 0x38000000U + 0xfffU + ((magnitude >> 13) & 1U)) >> 13;
  }
  bits = static_cast<uint16_t>(sign | half);
}

f16::operator float() const {
  const uint32_t sign = (uint32_t{bits} & 0x8000U) << 16;
  const uint32_t exponent = (uint32_t{bits} >> 10) & 0x1fU;
  const uint32_t mantissa = uint32_t{bits} & 0x3ffU;
  if (exponent == 0x1fU) return std::bit_cast<float>(sign | 0x7f800000U | (mantissa << 13));
  if (exponent == 0) {
    const float magnitude = static_cast<float>(mantissa) * 5.9604644775390625e-8F;  // 2^-24
    return sign != 0 ? -magnitude : magnitude;
  }
  return std::bit_cast<float>(sign | ((exponent + 112U) << 23) | (mantissa << 13));
}

int64_t size_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::f32:
    case Dtype::i32: return 4;
    case Dtype::bf16:
    case Dtype::f16: return 2;
    case Dtype::f64:
    case Dtype::i64: return 8;
    case Dtype::c128: return 16;
    case Dtype::u8: return 1;
  }
  fail("dtype", "unknown element type");
}

const char* name_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::f32: return "f32";
    case Dtype::bf16: return "bf16";
    case Dtype::f16: return "f16";
    case Dtype::f64: return "f64";
    case Dtype::c128: return "c128";
    case Dtype::i64: return "i64";
    case Dtype::i32: return "i32";
    case Dtype::u8: return "u8";
  }
  fail("dtype", "unknown element type");
}

Dtype parse_dtype(const std::string& text) {
  const std::string name = text.rfind("torch.", 0) == 0 ? text.substr(6) : text;
  if (name == "fp32" || name == "float32" || name == "f32" || name == "float") return Dtype::f32;
  if (name == "bf16" || name == "bfloat16") return Dtype::bf16;
  if (name == "fp16" || name == "float16" || name == "f16" || name == "half") return Dtype::f16;
  if (name == "fp64" || name == "float64" || name == "f64" || name == "double") return Dtype::f64;
  fail("dtype", "unknown element type \"" + text + "\"",
       "use float32, bfloat16, float16 or float64");
}

Dtype accumulate_dtype(Dtype dtype) {
  switch (dtype) {
    case Dtype::f32:
    case Dtype::bf16: return Dtype::f32;
    case Dtype::f64: return Dtype::f64;
    case Dtype::c128: return Dtype::c128;
    default: fail("dtype", std::string("no arithmetic is defined on ") + name_of(dtype));
  }
}

}  // namespace lapidary
