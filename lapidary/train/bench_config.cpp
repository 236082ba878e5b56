#include <algorithm>
#include <nlohmann/json.hpp>

#include "lapidary/core/error.h"
#include "lapidary/train/bench_run.h"

namespace lapidary {
namespace {

bool is_full(const gemma4::LayerConfig& layer) {
  return layer.type == gemma4::LayerType::full_attention;
}

void shorten_layers(const gemma4::TextConfig& of, int64_t layers, nlohmann::ordered_json& text) {
  text["num_hidden_layers"] = layers;
  auto types = nlohmann::ordered_json::array();
  for (int64_t i = 0; i < layers; ++i) {
    const bool full = is_full(of.layers[static_cast<size_t>(i)]);
    types.push_back(full ? "full_attention" : "sliding_attention");
  }
  text["layer_types"] = types;
  // The last num_kv_shared_layers of all layers share, as far as they are kept.
  const int64_t own = of.num_hidden_layers - of.num_kv_shared_layers;
  text["num_kv_shared_layers"] = std::max<int64_t>(layers - own, 0);
  const auto table = text.find("per_layer_config");
  if (table == text.end() || !table->is_object()) return;
  auto kept = nlohmann::ordered_json::object();
  for (const auto& [key, value] : table->items()) {
    if (std::stoll(key) < layers) kept[key] = value;
  }
  *table = kept;
}

}  // namespace

int64_t period_of(const gemma4::TextConfig& text) {
  return std::find_if(text.layers.begin(), text.layers.end(), is_full) - text.layers.begin() + 1;
}

gemma4::Config shortened_config(const gemma4::Config& config, int64_t layers, int64_t vocabulary) {
  const gemma4::TextConfig& of = config.text;
  if (layers < 1 || layers > of.num_hidden_layers ||
      !is_full(of.layers[static_cast<size_t>(layers - 1)])) {
    fail("--layers",
         "the first " + std::to_string(layers) + " of " + std::to_string(of.num_hidden_layers) +
             " layers don't end with full attention",
         "use a multiple of " + std::to_string(period_of(of)));
  }
  auto json = nlohmann::ordered_json::parse(config.json);
  auto& text = config.nested ? json["text_config"] : json;
  shorten_layers(of, layers, text);
  if (vocabulary > 0) {
    text["vocab_size"] = std::min(of.vocab_size, vocabulary);
    text["vocab_size_per_layer_input"] = std::min(of.vocab_size_per_layer_input, vocabulary);
    text["pad_token_id"] = 0;
    for (const char* key : {"eos_token_id", "bos_token_id"}) text[key] = 0;
    for (const char* key : {"image_token_id", "video_token_id", "audio_token_id"}) json.erase(key);
    json["tie_word_embeddings"] = true;
  }
  return gemma4::parse_config(json.dump(), "bench");
}

}  // namespace lapidary
