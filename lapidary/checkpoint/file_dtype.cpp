#include "lapidary/checkpoint/file_dtype.h"

#include <array>
#include <bit>
#include <cmath>
#include <complex>
#include <cstring>
#include <limits>

#include "lapidary/core/error.h"

namespace lapidary {
namespace {

struct Row {
  FileDtype dtype;
  const char* name;
  int64_t size;
  std::optional<Dtype> core;
};

// In the order of the enumeration.
const std::array<Row, 10> kTable = {{{FileDtype::f64, "F64", 8, Dtype::f64},
                                     {FileDtype::f32, "F32", 4, Dtype::f32},
                                     {FileDtype::f16, "F16", 2, Dtype::f16},
                                     {FileDtype::bf16, "BF16", 2, Dtype::bf16},
                                     {FileDtype::i64, "I64", 8, Dtype::i64},
                                     {FileDtype::i32, "I32", 4, Dtype::i32},
                                     {FileDtype::i16, "I16", 2, std::nullopt},
                                     {FileDtype::i8, "I8", 1, std::nullopt},
                                     {FileDtype::u8, "U8", 1, Dtype::u8},
                                     {FileDtype::boolean, "BOOL", 1, Dtype::u8}}};

const Row& row(FileDtype dtype) { return kTable.at(static_cast<size_t>(dtype)); }

// Narrows with "round to odd": a second rounding, to a shorter type, then equals a single one.
float to_float_odd(double value) {
  float rounded = static_cast<float>(value);
  if (std::isnan(value) || static_cast<double>(rounded) == value) return rounded;
  uint32_t bits = std::bit_cast<uint32_t>(rounded);
  if (std::fabs(static_cast<double>(rounded)) > std::fabs(value)) --bits;  // now toward zero
  return std::bit_cast<float>(bits | 1U);
}

template <class Dst, class Src>
Dst convert_float(Src value) {
  constexpr bool narrow = std::is_same_v<Dst, bf16> || std::is_same_v<Dst, f16>;
  if constexpr (std::is_same_v<Dst, Src>)
    return value;
  else if constexpr (std::is_same_v<Src, bf16> || std::is_same_v<Src, f16>)
    return convert_float<Dst>(static_cast<float>(value));
  else if constexpr (narrow && std::is_same_v<Src, double>)
    return Dst(to_float_odd(value));
  else if constexpr (narrow)
    return Dst(value);
  else
    return static_cast<Dst>(value);
}

template <class Src, class Dst, class Convert>
void loop(const void* src, void* dst, int64_t n, const Convert& convert) {
  const char* in = static_cast<const char*>(src);
  char* out = static_cast<char*>(dst);
  for (int64_t i = 0; i < n; ++i) {
    Src value;
    std::memcpy(&value, in + i * static_cast<int64_t>(sizeof(Src)), sizeof(Src));
    const Dst converted = convert(value);
    std::memcpy(out + i * static_cast<int64_t>(sizeof(Dst)), &converted, sizeof(Dst));
  }
}

[[noreturn]] void no_conversion(FileDtype from, Dtype to, const std::string& where) {
  fail(where, std::string(name_of(from)) + " data can't be converted to " + name_of(to));
}

template <class Src>
void from_float(const void* src, FileDtype from, void* dst, Dtype to, int64_t n,
                const std::string& where) {
  switch (to) {
    case Dtype::f64: return loop<Src, double>(src, dst, n, convert_float<double, Src>);
    case Dtype::f32: return loop<Src, float>(src, dst, n, convert_float<float, Src>);
    case Dtype::bf16: return loop<Src, bf16>(src, dst, n, convert_float<bf16, Src>);
    case Dtype::f16: return loop<Src, f16>(src, dst, n, convert_float<f16, Src>);
    case Dtype::c128:
      return loop<Src, std::complex<double>>(
          src, dst, n, [](Src v) { return std::complex<double>(convert_float<double>(v)); });
    default: no_conversion(from, to, where);
  }
}

template <class Src, class Dst>
void integers(const void* src, void* dst, int64_t n, const std::string& where) {
  loop<Src, Dst>(src, dst, n, [&](Src value) {
    const int64_t wide = static_cast<int64_t>(value);
    if (wide < int64_t{std::numeric_limits<Dst>::min()} ||
        wide > int64_t{std::numeric_limits<Dst>::max()})
      fail(where, "the value " + std::to_string(wide) + " doesn't fit " + name_of(dtype_of<Dst>()));
    return static_cast<Dst>(wide);
  });
}

template <class Src>
void from_integer(const void* src, FileDtype from, void* dst, Dtype to, int64_t n,
                  const std::string& where) {
  switch (to) {
    case Dtype::i64: return integers<Src, int64_t>(src, dst, n, where);
    case Dtype::i32: return integers<Src, int32_t>(src, dst, n, where);
    case Dtype::u8: return integers<Src, uint8_t>(src, dst, n, where);
    default: no_conversion(from, to, where);
  }
}

}  // namespace

const char* name_of(FileDtype dtype) { return row(dtype).name; }
int64_t size_of(FileDtype dtype) { return row(dtype).size; }
std::optional<Dtype> core_dtype_of(FileDtype dtype) { return row(dtype).core; }

std::optional<FileDtype> parse_file_dtype(const std::string& text) {
  for (const Row& r : kTable)
    if (text == r.name) return r.dtype;
  return std::nullopt;
}

FileDtype file_dtype_of(Dtype dtype) {
  for (const Row& r : kTable)
    if (r.core == dtype) return r.dtype;
  fail("safetensors", std::string("the format has no element type for ") + name_of(dtype));
}

void convert_elements(const void* src, FileDtype from, void* dst, Dtype to, int64_t n,
                      const std::string& where) {
  if (n == 0) return;
  if (core_dtype_of(from) == to) {
    std::memcpy(dst, src, static_cast<size_t>(n * size_of(from)));
    return;
  }
  switch (from) {
    case FileDtype::f64: return from_float<double>(src, from, dst, to, n, where);
    case FileDtype::f32: return from_float<float>(src, from, dst, to, n, where);
    case FileDtype::f16: return from_float<f16>(src, from, dst, to, n, where);
    case FileDtype::bf16: return from_float<bf16>(src, from, dst, to, n, where);
    case FileDtype::i64: return from_integer<int64_t>(src, from, dst, to, n, where);
    case FileDtype::i32: return from_integer<int32_t>(src, from, dst, to, n, where);
    case FileDtype::i16: return from_integer<int16_t>(src, from, dst, to, n, where);
    case FileDtype::i8: return from_integer<int8_t>(src, from, dst, to, n, where);
    case FileDtype::u8:
    case FileDtype::boolean: return from_integer<uint8_t>(src, from, dst, to, n, where);
  }
}

}  // namespace lapidary
