#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace lapidary::gemma4 {

enum class LayerType { sliding_attention, full_attention };

struct RopeParameters {
  bool proportional = false;  // rope_type; a missing one means "default"
  double rope_theta = 10000.0;
  double partial_rotary_factor = 1.0;  // read by proportional only
  double factor = 1.0;                 // read by proportional only
};

// One decoder layer, everything resolved.
struct LayerConfig {
  LayerType type = LayerType::sliding_attention;
  int64_t num_key_value_heads = 0;
  int64_t head_dim = 0;
  int64_t intermediate_size = 0;
  bool k_eq_v = false;        // value = raw key projection; no v_proj
  bool kv_shared = false;     // reads the keys and values of layer kv_source, has none of its own
  int64_t kv_source = 0;      // own index unless kv_shared
  bool kv_is_source = false;  // some later layer reads this one's keys and values
};

// The text fields of a Hugging Face config.json, under their names, and what follows from them.
struct TextConfig {
  int64_t vocab_size = 262144;
  int64_t hidden_size = 2304;
  int64_t intermediate_size = 9216;
  int64_t num_hidden_layers = 30;
  int64_t num_attention_heads = 8;
  int64_t num_key_value_heads = 4;
  int64_t head_dim = 256;
  double rms_norm_eps = 1e-6;
  std::optional<int64_t> pad_token_id = 0;
  std::vector<int64_t> eos_token_id = {1};
  int64_t bos_token_id = 2;
  RopeParameters rope_sliding;
  RopeParameters rope_full;
  int64_t sliding_window = 512;
  double final_logit_softcapping = 0.0;  // 0: none
  bool use_bidirectional_attention_vision = false;
  bool attention_k_eq_v = false;
  int64_t num_kv_shared_layers = 0;
  bool use_double_wide_mlp = false;
  bool enable_moe_block = false;
  int64_t num_experts = 0;
  int64_t top_k_experts = 0;
  int64_t moe_intermediate_size = 0;
  int64_t hidden_size_per_layer_input = 256;  // 0: no per-layer embeddings
  int64_t vocab_size_per_layer_input = 262144;
  double initializer_range = 0.02;
  int64_t max_position_embeddings = 131072;

  std::vector<LayerConfig> layers;  // num_hidden_layers entries
  const RopeParameters& rope(LayerType type) const {
    return type == LayerType::full_attention ? rope_full : rope_sliding;
  }
  bool has_layer_type(LayerType type) const;
};

// A whole config.json: nested (Gemma4ForConditionalGeneration) or the text part alone
// (Gemma4ForCausalLM).
struct Config {
  TextConfig text;
  bool nested = true;
  bool tie_word_embeddings = true;  // the flag that rules: top level when nested
  std::optional<int64_t> image_token_id;
  std::optional<int64_t> video_token_id;
  std::optional<int64_t> audio_token_id;
  bool has_vision_tower = false;
  bool has_audio_tower = false;
  std::string torch_dtype;            // "bfloat16", "" when absent
  std::string json;                   // the text that was read, for writing back in the same form
  std::vector<std::string> warnings;  // forced last layer, disagreeing tie flags, ...

  // Prefix of the text model's parameters: "model.language_model." or "model.".
  std::string prefix() const { return nested ? "model.language_model." : "model."; }
};

// Parses and validates; every mistake is reported, in one Error. `where` names the file.
Config parse_config(const std::string& json, const std::string& where);
// DIR/config.json, a .json file, or one of the published sizes by name.
Config load_config(const std::string& path_or_name);
// Text parameters alone, as transformers counts them (embeddings included, tied head once).
int64_t num_parameters(const Config& config);

// The published sizes: "26b-a4b", "31b", "e2b", "e4b".
std::vector<std::string> named_configs();
Config named_config(const std::string& name);

}  // namespace lapidary::gemma4
