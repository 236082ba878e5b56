#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace lapidary {

// A JSON document from outside. Error for broken syntax (position included), numbers out of range,
// duplicate keys and nesting deeper than max_depth. `where` names the file.
nlohmann::json parse_json(std::string_view text, const std::string& where, int max_depth = 64);

// Text from outside for a message: at most 200 bytes, control characters replaced.
std::string shortened(std::string_view text);
std::string in_quotes(std::string_view text);  // shortened, in quotation marks

}  // namespace lapidary
