#include "lapidary/checkpoint/json.h"

#include <set>
#include <vector>

#include "lapidary/core/error.h"

namespace lapidary {

nlohmann::json parse_json(std::string_view text, const std::string& where, int max_depth) {
  using Json = nlohmann::json;
  std::vector<std::set<std::string>> keys;  // of the objects that are open
  const auto watch = [&](int depth, Json::parse_event_t event, Json& value) {
    if (depth > max_depth)
      fail(where, "JSON is nested deeper than " + std::to_string(max_depth) + " levels");
    if (event == Json::parse_event_t::object_start) {
      keys.emplace_back();
    } else if (event == Json::parse_event_t::object_end) {
      keys.pop_back();
    } else if (event == Json::parse_event_t::key) {
      const std::string key = value.get<std::string>();
      if (!keys.back().insert(key).second)
        fail(where, "JSON key " + in_quotes(key) + " occurs twice in one object");
    }
    return true;
  };
  // The parser takes a zero byte for the end of its input.
  if (text.find('\0') != std::string_view::npos) fail(where, "not valid JSON (it has a zero byte)");
  try {
    return Json::parse(text.begin(), text.end(), watch);
  } catch (const Json::exception& e) {
    fail(where, std::string("not valid JSON (") + shortened(e.what()) + ")");
  }
}

std::string shortened(std::string_view text) {
  constexpr size_t kLongest = 200;
  std::string out(text.substr(0, kLongest));
  for (char& c : out)
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
  return text.size() > kLongest ? out + "..." : out;
}

std::string in_quotes(std::string_view text) {
  std::string out(1, '"');
  out += shortened(text);
  out += '"';
  return out;
}

}  // namespace lapidary
