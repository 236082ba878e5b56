#include "lapidary/core/dtype.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <string>

#include "lapidary/core/error.h"

namespace lapidary {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

template <class Half>
Half of_bits(int bits) {
  Half h;
  h.bits = static_cast<uint16_t>(bits);
  return h;
}

template <class Half>
float value(int bits) {
  return static_cast<float>(of_bits<Half>(bits));
}

template <class Half>
int nearest(float x) {
  return Half(x).bits;
}

// IEEE value of sign, exponent and mantissa fields.
double ieee(int bits, int exponent_bits, int mantissa_bits) {
  const int exponent = (bits >> mantissa_bits) & ((1 << exponent_bits) - 1);
  const int mantissa = bits & ((1 << mantissa_bits) - 1);
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const double sign = (bits & 0x8000) != 0 ? -1.0 : 1.0;
  if (exponent == (1 << exponent_bits) - 1) {
    return mantissa == 0 ? sign * std::numeric_limits<double>::infinity()
                         : std::numeric_limits<double>::quiet_NaN();
  }
  if (exponent == 0) return sign * std::ldexp(mantissa, 1 - bias - mantissa_bits);
  return sign * std::ldexp(mantissa + (1 << mantissa_bits), exponent - bias - mantissa_bits);
}

// Every bit pattern has its value, and comes back from it.
template <class Half>
void expect_every_pattern(int exponent_bits, int mantissa_bits) {
  for (int bits = 0; bits < 0x10000; ++bits) {
    const double expected = ieee(bits, exponent_bits, mantissa_bits);
    const float got = value<Half>(bits);
    if (std::isnan(expected)) {
      ASSERT_TRUE(std::isnan(got)) << bits;
      ASSERT_TRUE(std::isnan(value<Half>(nearest<Half>(got)))) << bits;
    } else {
      ASSERT_EQ(got, expected) << bits;
      ASSERT_EQ(std::signbit(got), std::signbit(expected)) << bits;
      ASSERT_EQ(nearest<Half>(got), bits);
    }
  }
}

// Between each two neighbours the border is the middle, which goes to the even pattern. The largest
// finite number's neighbour is what the next exponent would give: beyond the middle lies infinity.
template <class Half>
void expect_nearest_even(int infinity, double largest_step) {
  for (const int sign : {0, 0x8000}) {
    const float s = sign != 0 ? -1.0F : 1.0F;
    for (int bits = 0; bits < infinity; ++bits) {
      const double low = std::abs(value<Half>(bits));
      const double high = bits + 1 == infinity
                              ? low + largest_step
                              : static_cast<double>(std::abs(value<Half>(bits + 1)));
      const auto middle = static_cast<float>((low + high) / 2.0);
      ASSERT_EQ(static_cast<double>(middle), (low + high) / 2.0) << "not representable";
      const int even = sign | (bits % 2 == 0 ? bits : bits + 1);
      ASSERT_EQ(nearest<Half>(s * middle), even) << bits;
      ASSERT_EQ(nearest<Half>(s * std::nextafterf(middle, 0.0F)), sign | bits) << bits;
      ASSERT_EQ(nearest<Half>(s * std::nextafterf(middle, kInf)), sign | (bits + 1)) << bits;
    }
  }
}

TEST(Dtype, Bf16EveryPattern) { expect_every_pattern<bf16>(8, 7); }
TEST(Dtype, F16EveryPattern) { expect_every_pattern<f16>(5, 10); }
TEST(Dtype, Bf16RoundsToNearestEven) {
  expect_nearest_even<bf16>(0x7f80, std::ldexp(1.0, 127 - 7));
}
TEST(Dtype, F16RoundsToNearestEven) { expect_nearest_even<f16>(0x7c00, std::ldexp(1.0, 15 - 10)); }

TEST(Dtype, BeyondTheRange) {
  for (const float s : {1.0F, -1.0F}) {
    const int sign = s < 0 ? 0x8000 : 0;
    EXPECT_EQ(nearest<f16>(s * 1e30F), sign | 0x7c00);
    EXPECT_EQ(nearest<f16>(s * kInf), sign | 0x7c00);
    EXPECT_EQ(nearest<f16>(s * 1e-30F), sign);
    EXPECT_EQ(nearest<f16>(s * std::numeric_limits<float>::denorm_min()), sign);
    EXPECT_EQ(nearest<bf16>(s * kInf), sign | 0x7f80);
    EXPECT_EQ(nearest<bf16>(s * std::numeric_limits<float>::max()), sign | 0x7f80);
  }
  // A NaN whose payload lies in the dropped bits stays a NaN.
  const float nan = std::bit_cast<float>(0x7f800001U);
  EXPECT_TRUE(std::isnan(value<bf16>(nearest<bf16>(nan))));
  EXPECT_TRUE(std::isnan(value<f16>(nearest<f16>(nan))));
}

TEST(Dtype, RoundedConstantsOfTheModels) {
  EXPECT_EQ(static_cast<float>(bf16(std::sqrt(2816.0F))), 53.0F);
  EXPECT_EQ(static_cast<float>(bf16(std::sqrt(1536.0F))), 39.25F);
  EXPECT_EQ(static_cast<float>(bf16(std::sqrt(2560.0F))), 50.5F);
  EXPECT_EQ(static_cast<float>(bf16(std::sqrt(5376.0F))), 73.5F);
}

TEST(Dtype, Sizes) {
  EXPECT_EQ(size_of(Dtype::f32), 4);
  EXPECT_EQ(size_of(Dtype::bf16), 2);
  EXPECT_EQ(size_of(Dtype::f16), 2);
  EXPECT_EQ(size_of(Dtype::f64), 8);
  EXPECT_EQ(size_of(Dtype::c128), 16);
  EXPECT_EQ(size_of(Dtype::i64), 8);
  EXPECT_EQ(size_of(Dtype::i32), 4);
  EXPECT_EQ(size_of(Dtype::u8), 1);
  static_assert(sizeof(bf16) == 2 && sizeof(f16) == 2);
}

TEST(Dtype, Names) {
  for (const Dtype d : {Dtype::f32, Dtype::bf16, Dtype::f16, Dtype::f64}) {
    const std::string name = name_of(d);
    EXPECT_EQ(parse_dtype(name == "bf16" ? "bfloat16" : name), d);
  }
  EXPECT_EQ(parse_dtype("torch.bfloat16"), Dtype::bf16);
  EXPECT_EQ(parse_dtype("torch.float32"), Dtype::f32);
  EXPECT_EQ(parse_dtype("fp32"), Dtype::f32);
  EXPECT_EQ(parse_dtype("fp16"), Dtype::f16);
  EXPECT_EQ(parse_dtype("fp64"), Dtype::f64);
  for (const char* text : {"", "torch.", "float8", "FP32", "int8", "bf16 "}) {
    EXPECT_THROW(parse_dtype(text), Error) << text;
  }
}

TEST(Dtype, Accumulation) {
  EXPECT_EQ(accumulate_dtype(Dtype::f32), Dtype::f32);
  EXPECT_EQ(accumulate_dtype(Dtype::bf16), Dtype::f32);
  EXPECT_EQ(accumulate_dtype(Dtype::f64), Dtype::f64);
  EXPECT_EQ(accumulate_dtype(Dtype::c128), Dtype::c128);
  for (const Dtype d : {Dtype::f16, Dtype::i64, Dtype::i32, Dtype::u8}) {
    EXPECT_THROW(accumulate_dtype(d), Error);
  }
}

}  // namespace
}  // namespace lapidary
