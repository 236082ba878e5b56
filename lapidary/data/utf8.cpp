#include "lapidary/data/utf8.h"

#include <cstring>

namespace lapidary {
namespace {

uint32_t byte_at(std::string_view text, int64_t at) {
  return static_cast<unsigned char>(text[static_cast<size_t>(at)]);
}

bool is_continuation(uint32_t byte) { return (byte & 0xC0U) == 0x80U; }

}  // namespace

CodePoint code_point_at(std::string_view text, int64_t at) {
  const auto size = static_cast<int64_t>(text.size());
  if (at >= size) return {};
  const uint32_t lead = byte_at(text, at);
  if (lead < 0x80U) return {lead, 1};
  const int64_t length = lead >= 0xF0U ? 4 : lead >= 0xE0U ? 3 : 2;
  if (lead < 0xC2U || lead > 0xF4U || at + length > size) return {};
  uint32_t value = lead & (0xFFU >> (length + 1));
  for (int64_t i = 1; i < length; ++i) {
    const uint32_t next = byte_at(text, at + i);
    if (!is_continuation(next)) return {};
    value = (value << 6U) | (next & 0x3FU);
  }
  const bool overlong = (length == 3 && value < 0x800U) || (length == 4 && value < 0x10000U);
  const bool surrogate = value >= 0xD800U && value <= 0xDFFFU;
  if (overlong || surrogate || value > 0x10FFFFU) return {};
  return {value, length};
}

int64_t first_invalid_utf8(std::string_view text) {
  const auto size = static_cast<int64_t>(text.size());
  int64_t at = 0;
  while (at < size) {
    uint64_t word = 0;
    if (at + 8 <= size) {
      std::memcpy(&word, text.data() + at, 8);
      if ((word & 0x8080808080808080U) == 0) {
        at += 8;
        continue;
      }
    }
    const CodePoint c = code_point_at(text, at);
    if (c.length == 0) return at;
    at += c.length;
  }
  return size;
}

bool is_space(uint32_t c) {
  if (c < 0x80U) return (c >= 0x09U && c <= 0x0DU) || (c >= 0x1CU && c <= 0x20U);
  return c == 0x85U || c == 0xA0U || c == 0x1680U || (c >= 0x2000U && c <= 0x200AU) ||
         c == 0x2028U || c == 0x2029U || c == 0x202FU || c == 0x205FU || c == 0x3000U;
}

std::string_view trim(std::string_view text) {
  while (!text.empty()) {
    const CodePoint c = code_point_at(text, 0);
    if (c.length == 0 || !is_space(c.value)) break;
    text.remove_prefix(static_cast<size_t>(c.length));
  }
  while (!text.empty()) {
    auto start = static_cast<int64_t>(text.size()) - 1;
    while (start > 0 && is_continuation(byte_at(text, start))) --start;
    const CodePoint c = code_point_at(text, start);
    if (c.length != static_cast<int64_t>(text.size()) - start || !is_space(c.value)) break;
    text.remove_suffix(static_cast<size_t>(c.length));
  }
  return text;
}

}  // namespace lapidary
