#include <fmt/format.h>

#include <string>

#include "lapidary/checkpoint/json.h"
#include "lapidary/models/gemma4/config_fields.h"

namespace lapidary::gemma4 {
namespace {

constexpr double kMaxTheta = 1e30;

void read_one(const Fields& rope, RopeParameters& out, std::vector<std::string>& warnings) {
  const std::string type = rope.text("rope_type");
  if (type.empty() || type == "default") {
    out.proportional = false;
  } else if (type == "proportional") {
    out.proportional = true;
  } else {
    rope.problem("rope_type", in_quotes(type) + " is not supported",
                 "use \"default\" or \"proportional\"");
    return;
  }
  if (rope.find("rope_theta") == nullptr) {
    if (out.proportional)
      rope.problem("rope_theta", "is missing; rope_type \"proportional\" needs it");
    else
      warnings.push_back(rope.where("rope_theta") +
                         fmt::format(": missing, {} is used", out.rope_theta));
  } else {
    out.rope_theta = rope.number("rope_theta", out.rope_theta, 1.0, kMaxTheta);
  }
  out.partial_rotary_factor = 1.0;
  out.factor = 1.0;
  if (out.proportional) {
    if (rope.find("partial_rotary_factor") != nullptr)
      out.partial_rotary_factor = rope.number("partial_rotary_factor", 1.0, 0.0, 1.0);
    if (rope.find("factor") != nullptr) out.factor = rope.number("factor", 1.0, 1e-6, 1e6);
  } else if (type.empty() && rope.find("partial_rotary_factor") != nullptr) {
    warnings.push_back(rope.where("rope_type") +
                       ": missing, which means \"default\": partial_rotary_factor is ignored and "
                       "the whole head rotates");
  }
}

}  // namespace

void read_rope(const Fields& fields, TextConfig& text, std::vector<std::string>& warnings) {
  text.rope_sliding = {.rope_theta = 1e4};
  text.rope_full = {.proportional = true, .rope_theta = 1e6, .partial_rotary_factor = 0.25};
  const nlohmann::json* table = fields.object("rope_parameters");
  if (table == nullptr) return;
  if (table->contains("rope_type") || table->contains("rope_theta")) {
    fields.problem("rope_parameters", "holds one set for all layers",
                   "write one object under \"sliding_attention\" and one under \"full_attention\"");
    return;
  }
  const Fields parts(*table, fields.where("rope_parameters"), fields.problems());
  for (const LayerType type : {LayerType::sliding_attention, LayerType::full_attention}) {
    const bool full = type == LayerType::full_attention;
    const std::string key = full ? "full_attention" : "sliding_attention";
    if (parts.find(key) == nullptr) {
      if (text.has_layer_type(type)) parts.problem(key, "is missing, but such layers occur");
      continue;
    }
    if (const nlohmann::json* part = parts.object(key))
      read_one(Fields(*part, parts.where(key), fields.problems()),
               full ? text.rope_full : text.rope_sliding, warnings);
  }
}

}  // namespace lapidary::gemma4
