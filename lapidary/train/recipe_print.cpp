#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "lapidary/train/recipe_fields.h"
#include "lapidary/train/recipe_scalar.h"

namespace lapidary {
namespace {

// Plain when YAML reads it back as the same text, in quotes otherwise.
std::string quoted(const std::string& text) {
  const bool plain = std::all_of(text.begin(), text.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
           c == '.' || c == '/' || c == '-';
  });
  if (plain && text.front() != '-' && !is_null_word(text) && !parse_bool(text) &&
      !parse_number(text)) {
    return text;
  }
  return nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

std::string dtype_word(Dtype dtype) {
  return dtype == Dtype::f32 ? "float32" : dtype == Dtype::bf16 ? "bfloat16" : name_of(dtype);
}

struct ValueText {
  std::string operator()(std::monostate /*unused*/) const { return "null"; }
  std::string operator()(const bool* value) const { return *value ? "true" : "false"; }
  std::string operator()(const int64_t* value) const { return std::to_string(*value); }
  std::string operator()(const double* value) const { return shown(*value); }
  std::string operator()(const std::string* value) const {
    return value->empty() ? "null" : quoted(*value);
  }
  template <class T>
  std::string operator()(const std::optional<T>* value) const {
    return *value ? (*this)(&**value) : "null";
  }
  std::string operator()(const Dtype* value) const { return dtype_word(*value); }
  std::string operator()(const std::vector<double>* value) const {
    std::string text;
    for (const double x : *value) text += (text.empty() ? "" : ", ") + shown(x);
    return "[" + text + "]";
  }
  std::string operator()(const JsonText* value) const {
    return value->text.empty() ? "null" : value->text;
  }
};

std::vector<std::string> parts_of(const std::string& key) {
  std::vector<std::string> parts;
  for (size_t from = 0; from <= key.size();) {
    const size_t dot = std::min(key.find('.', from), key.size());
    parts.push_back(key.substr(from, dot - from));
    from = dot + 1;
  }
  return parts;
}

// Writes `key: value` lines with the mappings around them.
class Writer {
 public:
  void write(const std::string& key, const std::string& value) {
    const std::vector<std::string> parts = parts_of(key);
    size_t same = 0;
    while (same + 1 < parts.size() && same < open_.size() && open_[same] == parts[same]) ++same;
    open_.resize(same);
    for (; same + 1 < parts.size(); ++same) {
      text_ += std::string(2 * same, ' ') + parts[same] + ":\n";
      open_.push_back(parts[same]);
    }
    text_ += std::string(2 * same, ' ') + parts.back() + ": " + value + "\n";
  }
  const std::string& text() const { return text_; }

 private:
  std::vector<std::string> open_;
  std::string text_;
};

std::string meaning(const Field& field) {
  std::string text = field.doc;
  if (field.effect == Effect::ignored) text += " (without effect)";
  if (field.effect == Effect::refused) text += " (not in this version)";
  if (!field.words.empty()) text += fmt::format("; one of {}", fmt::join(field.words, ", "));
  return text;
}

}  // namespace

std::string type_name(const Slot& slot) {
  static const std::vector<std::string> names = {
      "any",          "true or false", "whole number", "number",  "text",
      "whole number", "number",        "type",         "numbers", "mapping"};
  return names.at(slot.index());
}

std::string value_text(const Slot& slot) { return std::visit(ValueText{}, slot); }

std::string print_recipe(const Recipe& recipe) {
  Recipe copy = recipe;
  Writer writer;
  std::set<std::string> absent;
  for (const Field& field : recipe_fields()) {
    if (!field.slot) continue;
    const Slot slot = field.slot(copy);
    if (field.effect == Effect::block) {
      if (!*std::get<bool*>(slot)) absent.insert(field.key);
      continue;
    }
    const std::string value = value_text(slot);
    const std::string block = field.key.substr(0, field.key.find('.'));
    if (value != "null" && absent.count(block) == 0) writer.write(field.key, value);
  }
  return writer.text();
}

std::string recipe_reference() {
  Recipe defaults;
  std::string text = "| key | type | default | meaning |\n|---|---|---|---|\n";
  for (const Field& field : recipe_fields()) {
    const Slot slot = field.slot ? field.slot(defaults) : Slot{};
    const bool value = field.slot && field.effect == Effect::used;
    const std::string type = field.effect == Effect::block ? "mapping" : type_name(slot);
    std::string standard = value ? value_text(slot) : "";
    if (standard == "null") standard = "";
    text += fmt::format("| `{}` | {} | {} | {} |\n", field.key, type, standard, meaning(field));
  }
  return text;
}

}  // namespace lapidary
