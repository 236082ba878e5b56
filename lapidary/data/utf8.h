#pragma once

#include <cstdint>
#include <string_view>

namespace lapidary {

struct CodePoint {
  uint32_t value = 0;
  int64_t length = 0;  // bytes, 1 to 4; 0 = not UTF-8
};

// The code point that starts at byte `at`. Overlong forms, surrogates and values above U+10FFFF are
// not UTF-8.
CodePoint code_point_at(std::string_view text, int64_t at);

// Byte offset of the first byte that is not part of a well-formed sequence; text.size() if none.
int64_t first_invalid_utf8(std::string_view text);

// White space as Unicode (and Python's str.strip) has it.
bool is_space(uint32_t code_point);

// `text` (UTF-8) without white space at its ends.
std::string_view trim(std::string_view text);

}  // namespace lapidary
