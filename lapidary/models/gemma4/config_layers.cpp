#include <fmt/format.h>

#include <algorithm>
#include <string>

#include "lapidary/models/gemma4/config_fields.h"

namespace lapidary::gemma4 {
namespace {

const char* name_of(LayerType type) {
  return type == LayerType::full_attention ? "full_attention" : "sliding_attention";
}

// The list of the file, or every sixth layer full; the last layer is full in any case.
void read_types(const Fields& fields, TextConfig& text, std::vector<std::string>& warnings) {
  const int64_t n = text.num_hidden_layers;
  text.layers.assign(static_cast<size_t>(n), LayerConfig());
  for (size_t i = 0; i < text.layers.size(); ++i)
    if ((i + 1) % 6 == 0) text.layers[i].type = LayerType::full_attention;

  if (const nlohmann::json* list = fields.find("layer_types")) {
    if (!list->is_array()) {
      fields.problem("layer_types", "must be an array, not " + excerpt(*list));
    } else if (static_cast<int64_t>(list->size()) != n) {
      fields.problem("layer_types",
                     fmt::format("has {} entries, but num_hidden_layers is {}", list->size(), n));
    } else {
      for (size_t i = 0; i < text.layers.size(); ++i) {
        const nlohmann::json& entry = (*list)[i];
        if (entry == "full_attention")
          text.layers[i].type = LayerType::full_attention;
        else if (entry == "sliding_attention")
          text.layers[i].type = LayerType::sliding_attention;
        else
          fields.problem(
              fmt::format("layer_types[{}]", i),
              "must be \"sliding_attention\" or \"full_attention\", not " + excerpt(entry));
      }
    }
  }
  if (text.layers.back().type != LayerType::full_attention) {
    text.layers.back().type = LayerType::full_attention;
    warnings.push_back(fields.where("layer_types") +
                       ": the last layer is sliding_attention there, but is always built as "
                       "full_attention");
  }
}

// Published form: two fields for all full layers.
void global_geometry(const Fields& fields, TextConfig& text) {
  const int64_t head_dim = fields.integer("global_head_dim", 512, 1, kMaxWidth);
  const std::optional<int64_t> kv_heads =
      fields.optional_integer("num_global_key_value_heads", std::nullopt, 1, kMaxHeads);
  for (LayerConfig& layer : text.layers) {
    if (layer.type != LayerType::full_attention) continue;
    layer.head_dim = head_dim;
    if (text.attention_k_eq_v && kv_heads) layer.num_key_value_heads = *kv_heads;
  }
}

// Newer form: {"5": {"head_dim": 512, "num_key_value_heads": 2}}.
void per_layer_geometry(const Fields& fields, const nlohmann::json& table, TextConfig& text) {
  for (const auto& [key, value] : table.items()) {
    const std::string path = "per_layer_config." + key.substr(0, 40);
    const bool digits =
        !key.empty() && key.size() <= 6 &&
        std::all_of(key.begin(), key.end(), [](char c) { return c >= '0' && c <= '9'; }) &&
        (key.size() == 1 || key[0] != '0');
    const int64_t index = digits ? std::stoll(key) : -1;
    if (index < 0 || index >= text.num_hidden_layers) {
      fields.problem(path, fmt::format("is not a layer from 0 to {}", text.num_hidden_layers - 1));
      continue;
    }
    if (!value.is_object()) {
      fields.problem(path, "must be an object, not " + excerpt(value));
      continue;
    }
    for (const auto& [name, unused] : value.items())
      if (name != "head_dim" && name != "num_key_value_heads")
        fields.problem(path + "." + name.substr(0, 80), "can't differ per layer",
                       "only head_dim and num_key_value_heads can");
    const Fields entry(value, fields.where(path), fields.problems());
    LayerConfig& layer = text.layers[static_cast<size_t>(index)];
    layer.head_dim = entry.integer("head_dim", text.head_dim, 1, kMaxWidth);
    layer.num_key_value_heads =
        entry.integer("num_key_value_heads", text.num_key_value_heads, 1, kMaxHeads);
  }
}

void check_geometry(const Fields& fields, const TextConfig& text) {
  // One message per type and mistake: sixty equal layers make one mistake, not sixty.
  for (const LayerType type : {LayerType::sliding_attention, LayerType::full_attention}) {
    int64_t head_dim = 0;
    bool odd = false, uneven = false, mixed = false;
    for (size_t i = 0; i < text.layers.size(); ++i) {
      const LayerConfig& layer = text.layers[i];
      if (layer.type != type) continue;
      const std::string where = fmt::format("layers.{} ({})", i, name_of(type));
      if (layer.head_dim % 2 != 0 && !odd) {
        odd = true;
        fields.problem(where, fmt::format("head_dim {} is odd", layer.head_dim));
      }
      if (text.num_attention_heads % layer.num_key_value_heads != 0 && !uneven) {
        uneven = true;
        fields.problem(where, fmt::format("num_attention_heads {} is no multiple of the layer's "
                                          "num_key_value_heads {}",
                                          text.num_attention_heads, layer.num_key_value_heads));
      }
      if (head_dim == 0) head_dim = layer.head_dim;
      if (layer.head_dim != head_dim && !mixed) {
        mixed = true;
        fields.problem(where, fmt::format("head_dim {} differs from the {} of the other layers of "
                                          "this type",
                                          layer.head_dim, head_dim));
      }
    }
  }
}

// Layers from `first` on read the keys and values of the last earlier layer of their type.
void resolve_sharing(const Fields& fields, TextConfig& text) {
  const int64_t n = text.num_hidden_layers;
  for (int64_t i = 0; i < n; ++i) text.layers[static_cast<size_t>(i)].kv_source = i;
  const int64_t first = n - text.num_kv_shared_layers;
  bool missing[2] = {false, false};
  for (int64_t i = first; i < n; ++i) {
    LayerConfig& layer = text.layers[static_cast<size_t>(i)];
    int64_t source = first - 1;
    while (source >= 0 && text.layers[static_cast<size_t>(source)].type != layer.type) --source;
    if (source < 0) {
      bool& reported = missing[layer.type == LayerType::full_attention ? 1 : 0];
      if (!reported)
        fields.problem("num_kv_shared_layers",
                       fmt::format("layer {} shares keys and values, but no {} layer comes before "
                                   "layer {}",
                                   i, name_of(layer.type), first));
      reported = true;
      continue;
    }
    LayerConfig& from = text.layers[static_cast<size_t>(source)];
    if (from.head_dim != layer.head_dim || from.num_key_value_heads != layer.num_key_value_heads)
      fields.problem(
          "num_kv_shared_layers",
          fmt::format("layer {} (head_dim {}, num_key_value_heads {}) can't read the "
                      "keys and values of layer {} (head_dim {}, num_key_value_heads {})",
                      i, layer.head_dim, layer.num_key_value_heads, source, from.head_dim,
                      from.num_key_value_heads));
    layer.kv_shared = true;
    layer.kv_source = source;
    layer.k_eq_v = false;
    from.kv_is_source = true;
    if (text.use_double_wide_mlp) layer.intermediate_size = 2 * text.intermediate_size;
  }
}

}  // namespace

void resolve_layers(const Fields& fields, TextConfig& text, std::vector<std::string>& warnings) {
  read_types(fields, text, warnings);
  for (LayerConfig& layer : text.layers) {
    layer.num_key_value_heads = text.num_key_value_heads;
    layer.head_dim = text.head_dim;
    layer.intermediate_size = text.intermediate_size;
    layer.k_eq_v = text.attention_k_eq_v && layer.type == LayerType::full_attention;
  }
  if (fields.find("per_layer_config") != nullptr) {
    if (fields.find("global_head_dim") != nullptr ||
        fields.find("num_global_key_value_heads") != nullptr)
      warnings.push_back(
          fields.where("per_layer_config") +
          ": present, so global_head_dim and num_global_key_value_heads are ignored");
    if (const nlohmann::json* table = fields.object("per_layer_config"))
      per_layer_geometry(fields, *table, text);
  } else {
    global_geometry(fields, text);
  }
  check_geometry(fields, text);
  resolve_sharing(fields, text);
}

}  // namespace lapidary::gemma4
