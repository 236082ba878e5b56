#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace lapidary {

// Scalars as YAML and NeMo's recipes write them; nullopt when the text is something else.
bool is_null_word(const std::string& text);                     // "", ~, null, none (any case)
std::optional<bool> parse_bool(const std::string& text);        // true, false, yes, no, on, off
std::optional<int64_t> parse_integer(const std::string& text);  // 12, -3, +4
std::optional<double> parse_number(const std::string& text);    // 2e-5, .5, 3, .inf, nan

// Edits (insertions, deletions, changes, swaps of neighbours) that turn a into b.
size_t edit_distance(const std::string& a, const std::string& b);

// Shortest text that reads back as the same number.
std::string shown(double value);

}  // namespace lapidary
