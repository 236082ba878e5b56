#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "lapidary/core/error.h"
#include "lapidary/models/gemma4/config.h"

// Parts of parse_config; nothing else includes this.
namespace lapidary::gemma4 {

// Typed look-ups in one JSON object. A mistake is added to `problems` and the default returned, so
// that reading goes on; `path` ("config.json: text_config") begins every message.
class Fields {
 public:
  Fields(const nlohmann::json& object, std::string path, Problems& problems)
      : object_(object), path_(std::move(path)), problems_(problems) {}

  const nlohmann::json* find(const std::string& key) const;  // null when absent or JSON null
  bool present(const std::string& key) const { return object_.contains(key); }
  int64_t integer(const std::string& key, int64_t fallback, int64_t low, int64_t high) const;
  // JSON null is nullopt; an absent key is the fallback.
  std::optional<int64_t> optional_integer(const std::string& key, std::optional<int64_t> fallback,
                                          int64_t low, int64_t high) const;
  // A finite number in [low, high].
  double number(const std::string& key, double fallback, double low, double high) const;
  bool flag(const std::string& key, bool fallback) const;
  // "" when absent or null.
  std::string text(const std::string& key) const;
  // Null, with a problem, unless it is an object; null without one when absent or JSON null.
  const nlohmann::json* object(const std::string& key) const;

  std::string where(const std::string& key) const { return path_ + "." + key; }
  void problem(const std::string& key, const std::string& what, const std::string& fix = "") const {
    problems_.add(where(key), what, fix);
  }
  const std::string& path() const { return path_; }
  const nlohmann::json& json() const { return object_; }
  Problems& problems() const { return problems_; }

 private:
  std::optional<int64_t> checked_integer(const nlohmann::json& value, const std::string& key,
                                         int64_t low, int64_t high) const;
  const nlohmann::json& object_;
  std::string path_;
  Problems& problems_;
};

// A JSON value for a message, shortened.
std::string excerpt(const nlohmann::json& value);

constexpr int64_t kMaxLayers = 4096;
constexpr int64_t kMaxWidth = int64_t{1} << 24;             // hidden, head, MLP and expert sizes
constexpr int64_t kMaxHeads = int64_t{1} << 16;             // heads, experts
constexpr int64_t kMaxVocabulary = (int64_t{1} << 31) - 1;  // token ids fit int32

// Fills text.layers: types, geometry (flat or per_layer_config), sharing; checks it.
void resolve_layers(const Fields& fields, TextConfig& text, std::vector<std::string>& warnings);
// Fills text.rope_*.
void read_rope(const Fields& fields, TextConfig& text, std::vector<std::string>& warnings);

// The text of a published size's config.json; null for an unknown name.
const char* named_config_json(const std::string& name);

}  // namespace lapidary::gemma4
