#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "lapidary/core/dtype.h"
#include "lapidary/core/tensor.h"

namespace lapidary {

// Element types of a safetensors file. i16, i8 and boolean have no counterpart in core: they are
// read into i64, i32 or (boolean) u8.
enum class FileDtype : uint8_t { f64, f32, f16, bf16, i64, i32, i16, i8, u8, boolean };

const char* name_of(FileDtype dtype);  // "F64", "BF16", "BOOL", as the format spells them
std::optional<FileDtype> parse_file_dtype(const std::string& text);
int64_t size_of(FileDtype dtype);  // bytes of one element
// Error for c128, which the format can't hold.
FileDtype file_dtype_of(Dtype dtype);
// The core type with the same bytes (boolean: u8); none for i16 and i8.
std::optional<Dtype> core_dtype_of(FileDtype dtype);

// dst[0, n) = src[0, n), converted. Neither pointer need be aligned.
//   f64 f32 bf16 f16         -> f64 f32 bf16 f16 c128: rounded once, to nearest even
//   i64 i32 i16 i8 u8 boolean -> i64 i32 u8: Error if a value doesn't fit
// Error (named by `where`) for the other pairs.
void convert_elements(const void* src, FileDtype from, void* dst, Dtype to, int64_t n,
                      const std::string& where);

}  // namespace lapidary
