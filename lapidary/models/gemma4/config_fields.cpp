#include "lapidary/models/gemma4/config_fields.h"

#include <fmt/format.h>

#include <cmath>
#include <limits>

namespace lapidary::gemma4 {

std::string excerpt(const nlohmann::json& value) {
  if (value.is_object()) return "an object";
  if (value.is_array()) return "an array";
  const std::string text = value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  return text.size() <= 80 ? text : text.substr(0, 77) + "...";
}

const nlohmann::json* Fields::find(const std::string& key) const {
  const auto it = object_.find(key);
  return it == object_.end() || it->is_null() ? nullptr : &*it;
}

std::optional<int64_t> Fields::checked_integer(const nlohmann::json& value, const std::string& key,
                                               int64_t low, int64_t high) const {
  if (!value.is_number_integer()) {
    problem(key, "must be an integer, not " + excerpt(value));
    return std::nullopt;
  }
  const bool huge = value.is_number_unsigned() &&
                    value.get<uint64_t>() > uint64_t{std::numeric_limits<int64_t>::max()};
  const int64_t number = huge ? 0 : value.get<int64_t>();
  if (huge || number < low || number > high) {
    problem(key, fmt::format("{} is outside {} to {}", excerpt(value), low, high));
    return std::nullopt;
  }
  return number;
}

int64_t Fields::integer(const std::string& key, int64_t fallback, int64_t low, int64_t high) const {
  const auto it = object_.find(key);
  if (it == object_.end()) return fallback;
  return checked_integer(*it, key, low, high).value_or(fallback);
}

std::optional<int64_t> Fields::optional_integer(const std::string& key,
                                                std::optional<int64_t> fallback, int64_t low,
                                                int64_t high) const {
  const auto it = object_.find(key);
  if (it == object_.end()) return fallback;
  if (it->is_null()) return std::nullopt;
  return checked_integer(*it, key, low, high);
}

double Fields::number(const std::string& key, double fallback, double low, double high) const {
  const auto it = object_.find(key);
  if (it == object_.end()) return fallback;
  if (!it->is_number()) {
    problem(key, "must be a number, not " + excerpt(*it));
    return fallback;
  }
  const double value = it->get<double>();
  if (!(value >= low && value <= high)) {  // also refuses NaN
    problem(key, fmt::format("{} is outside {} to {}", excerpt(*it), low, high));
    return fallback;
  }
  return value;
}

bool Fields::flag(const std::string& key, bool fallback) const {
  const auto it = object_.find(key);
  if (it == object_.end()) return fallback;
  if (!it->is_boolean()) {
    problem(key, "must be true or false, not " + excerpt(*it));
    return fallback;
  }
  return it->get<bool>();
}

std::string Fields::text(const std::string& key) const {
  const nlohmann::json* value = find(key);
  if (value == nullptr) return "";
  if (!value->is_string()) {
    problem(key, "must be a string, not " + excerpt(*value));
    return "";
  }
  return value->get<std::string>();
}

const nlohmann::json* Fields::object(const std::string& key) const {
  const nlohmann::json* value = find(key);
  if (value != nullptr && !value->is_object()) {
    problem(key, "must be an object, not " + excerpt(*value));
    return nullptr;
  }
  return value;
}

}  // namespace lapidary::gemma4
