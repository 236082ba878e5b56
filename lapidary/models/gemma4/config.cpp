#include "lapidary/models/gemma4/config.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <filesystem>

#include "lapidary/checkpoint/files.h"
#include "lapidary/checkpoint/json.h"
#include "lapidary/models/gemma4/config_fields.h"

namespace lapidary::gemma4 {
namespace {

constexpr int64_t kMaxConfigBytes = int64_t{4} << 20;

// Settings of the reference that change the mathematics and that no published model uses.
void refuse_unsupported(const Fields& fields) {
  const std::string activation = fields.text("hidden_activation");
  if (!activation.empty() && activation != "gelu_pytorch_tanh")
    fields.problem("hidden_activation", in_quotes(activation) + " is not supported",
                   "only gelu_pytorch_tanh is");
  if (fields.flag("attention_bias", false))
    fields.problem("attention_bias", "true is not supported");
  if (fields.number("attention_dropout", 0.0, 0.0, 1.0) != 0.0)
    fields.problem("attention_dropout", "is not supported", "set it to 0");
  const std::string type = fields.text("model_type");
  if (!type.empty() && type != "gemma4_text")
    fields.problem("model_type", in_quotes(type) + " is not gemma4_text");
}

void read_sizes(const Fields& fields, TextConfig& t, std::vector<std::string>& warnings) {
  for (const char* key : {"hidden_size", "intermediate_size"})
    if (!fields.present(key))
      warnings.push_back(fields.where(key) +
                         ": missing, the default is used; no published model "
                         "has it");
  t.vocab_size = fields.integer("vocab_size", t.vocab_size, 1, kMaxVocabulary);
  t.hidden_size = fields.integer("hidden_size", t.hidden_size, 1, kMaxWidth);
  t.intermediate_size = fields.integer("intermediate_size", t.intermediate_size, 1, kMaxWidth);
  t.num_hidden_layers = fields.integer("num_hidden_layers", t.num_hidden_layers, 1, kMaxLayers);
  t.num_attention_heads =
      fields.integer("num_attention_heads", t.num_attention_heads, 1, kMaxHeads);
  t.num_key_value_heads =
      fields.integer("num_key_value_heads", t.num_key_value_heads, 1, kMaxHeads);
  t.head_dim = fields.integer("head_dim", t.head_dim, 1, kMaxWidth);
  t.sliding_window = fields.integer("sliding_window", t.sliding_window, 1, (int64_t{1} << 31) - 1);
  t.num_kv_shared_layers = fields.integer("num_kv_shared_layers", 0, 0, kMaxLayers);
  if (t.num_kv_shared_layers >= t.num_hidden_layers) {
    fields.problem("num_kv_shared_layers",
                   fmt::format("{} leaves none of the {} layers with keys and values of its own",
                               t.num_kv_shared_layers, t.num_hidden_layers));
    t.num_kv_shared_layers = 0;
  }
  t.use_double_wide_mlp = fields.flag("use_double_wide_mlp", false);
  t.attention_k_eq_v = fields.flag("attention_k_eq_v", false);
  t.hidden_size_per_layer_input =
      fields.integer("hidden_size_per_layer_input", t.hidden_size_per_layer_input, 0, kMaxWidth);
  t.vocab_size_per_layer_input =
      fields.integer("vocab_size_per_layer_input", t.vocab_size_per_layer_input, 1, kMaxVocabulary);
  t.max_position_embeddings =
      fields.integer("max_position_embeddings", t.max_position_embeddings, 1, int64_t{1} << 40);
}

void read_moe(const Fields& fields, TextConfig& t) {
  t.enable_moe_block = fields.flag("enable_moe_block", false);
  t.num_experts = fields.optional_integer("num_experts", std::nullopt, 0, kMaxHeads).value_or(0);
  t.top_k_experts =
      fields.optional_integer("top_k_experts", std::nullopt, 0, kMaxHeads).value_or(0);
  t.moe_intermediate_size =
      fields.optional_integer("moe_intermediate_size", std::nullopt, 0, kMaxWidth).value_or(0);
  if (!t.enable_moe_block) return;
  for (const char* key : {"num_experts", "top_k_experts", "moe_intermediate_size"})
    if (fields.find(key) == nullptr || *fields.find(key) == 0)
      fields.problem(key, "is missing or 0; enable_moe_block needs it");
  if (t.num_experts > 0 && t.top_k_experts > t.num_experts)
    fields.problem("top_k_experts",
                   fmt::format("{} is more than num_experts {}", t.top_k_experts, t.num_experts));
}

void read_numerics(const Fields& fields, TextConfig& t) {
  t.rms_norm_eps = fields.number("rms_norm_eps", t.rms_norm_eps, 0.0, 1.0);
  t.initializer_range = fields.number("initializer_range", t.initializer_range, 0.0, 1e3);
  if (fields.find("final_logit_softcapping") != nullptr)
    t.final_logit_softcapping = fields.number("final_logit_softcapping", 0.0, 1e-6, 1e6);
  const std::string bidirectional = fields.text("use_bidirectional_attention");
  t.use_bidirectional_attention_vision = bidirectional == "vision";
  if (!bidirectional.empty() && bidirectional != "vision")
    fields.problem("use_bidirectional_attention", in_quotes(bidirectional) + " is not supported",
                   "use \"vision\" or null");
}

void check_token(const Fields& fields, const std::string& key, int64_t id, const TextConfig& t,
                 bool placeholder) {
  if (id >= t.vocab_size) {
    fields.problem(key, fmt::format("{} is not below vocab_size {}", id, t.vocab_size));
  } else if (!placeholder && t.hidden_size_per_layer_input > 0 &&
             id >= t.vocab_size_per_layer_input) {
    fields.problem(key, fmt::format("{} is not below vocab_size_per_layer_input {}", id,
                                    t.vocab_size_per_layer_input));
  }
}

void read_tokens(const Fields& fields, TextConfig& t, std::vector<std::string>& warnings) {
  t.pad_token_id = fields.optional_integer("pad_token_id", t.pad_token_id, 0, kMaxVocabulary);
  if (t.pad_token_id) check_token(fields, "pad_token_id", *t.pad_token_id, t, false);

  const auto bos = fields.optional_integer("bos_token_id", t.bos_token_id, 0, kMaxVocabulary);
  if (!bos && fields.find("bos_token_id") == nullptr)
    warnings.push_back(fields.where("bos_token_id") + ": null, 2 is used");
  t.bos_token_id = bos.value_or(t.bos_token_id);
  check_token(fields, "bos_token_id", t.bos_token_id, t, false);

  const nlohmann::json* eos = fields.find("eos_token_id");
  if (eos != nullptr && eos->is_array()) {
    t.eos_token_id.clear();
    for (size_t i = 0; i < eos->size(); ++i) {
      const std::string key = "eos_token_id[" + std::to_string(i) + "]";
      const nlohmann::json entry = {{key, (*eos)[i]}};
      const Fields item(entry, fields.path(), fields.problems());
      t.eos_token_id.push_back(item.integer(key, 0, 0, kMaxVocabulary));
    }
  } else if (eos != nullptr) {
    t.eos_token_id = {fields.integer("eos_token_id", 1, 0, kMaxVocabulary)};
  } else if (fields.present("eos_token_id")) {
    t.eos_token_id.clear();
  }
  for (const int64_t id : t.eos_token_id) check_token(fields, "eos_token_id", id, t, false);
}

// Whatever passed the bounds of the single fields must also count and allocate in 64 bits.
__int128 count_parameters(const TextConfig& t, bool tied) {
  using Wide = __int128;
  const Wide vocab = t.vocab_size, hidden = t.hidden_size, heads = t.num_attention_heads;
  const Wide per_layer = t.hidden_size_per_layer_input;
  Wide total = vocab * hidden * (tied ? 1 : 2) + hidden;  // embed_tokens, lm_head, norm
  if (per_layer > 0) {
    const Wide all = per_layer * t.num_hidden_layers;
    total += all * t.vocab_size_per_layer_input + all * hidden + per_layer;
  }
  for (const LayerConfig& layer : t.layers) {
    const Wide head_dim = layer.head_dim;
    total += 2 * heads * head_dim * hidden + head_dim;  // q_proj, o_proj, q_norm
    if (!layer.kv_shared)
      total += (layer.k_eq_v ? 1 : 2) * layer.num_key_value_heads * head_dim * hidden + head_dim;
    total += 3 * Wide{layer.intermediate_size} * hidden + 4 * hidden;
    if (t.enable_moe_block) {
      const Wide experts = t.num_experts;
      total += 3 * experts * t.moe_intermediate_size * hidden;    // gate_up_proj, down_proj
      total += experts * hidden + hidden + experts + 3 * hidden;  // router, the three extra norms
    }
    if (per_layer > 0) total += 2 * per_layer * hidden + hidden;
  }
  return total;
}

TextConfig read_text(const Fields& fields, std::vector<std::string>& warnings) {
  TextConfig t;
  refuse_unsupported(fields);
  read_sizes(fields, t, warnings);
  read_moe(fields, t);
  read_numerics(fields, t);
  read_tokens(fields, t, warnings);
  resolve_layers(fields, t, warnings);
  read_rope(fields, t, warnings);
  return t;
}

// What stands beside text_config.
void read_top(const Fields& top, Config& config) {
  struct Placeholder {
    const char* key;
    int64_t fallback;
    std::optional<int64_t>* id;
  };
  for (const Placeholder& p : {Placeholder{"image_token_id", 258880, &config.image_token_id},
                               Placeholder{"video_token_id", 258884, &config.video_token_id},
                               Placeholder{"audio_token_id", 258881, &config.audio_token_id}}) {
    // The defaults belong to the published vocabulary; a smaller one simply has none.
    const auto fallback =
        p.fallback < config.text.vocab_size ? std::optional(p.fallback) : std::nullopt;
    *p.id = top.optional_integer(p.key, fallback, 0, kMaxVocabulary);
    if (*p.id) check_token(top, p.key, **p.id, config.text, true);
  }
  config.has_vision_tower = top.object("vision_config") != nullptr;
  config.has_audio_tower = top.object("audio_config") != nullptr;
}

void read_whole(const Fields& top, Config& config) {
  if (top.find("quantization_config") != nullptr)
    top.problem("quantization_config", "quantised checkpoints are not supported",
                "use the unquantised one");
  const std::string type = top.text("model_type");
  config.nested = top.find("text_config") != nullptr;
  if (type != (config.nested ? "gemma4" : "gemma4_text"))
    top.problem("model_type", type.empty() ? "is missing" : in_quotes(type) + " is not supported",
                "a Gemma 4 config has \"gemma4\" with a text_config, or \"gemma4_text\" alone");

  static const nlohmann::json empty = nlohmann::json::object();
  const nlohmann::json* part = config.nested ? top.object("text_config") : &top.json();
  const Fields text(part == nullptr ? empty : *part,
                    config.nested ? top.where("text_config") : top.path(), top.problems());
  if (part == nullptr) return;  // reported by object()
  config.text = read_text(text, config.warnings);

  config.tie_word_embeddings = top.flag("tie_word_embeddings", true);
  if (config.nested) {
    read_top(top, config);
    if (text.present("tie_word_embeddings") &&
        text.flag("tie_word_embeddings", true) != config.tie_word_embeddings)
      config.warnings.push_back(text.where("tie_word_embeddings") +
                                ": disagrees with the top-level flag, which rules");
  }
  for (const Fields* fields : {&top, &text})
    for (const char* key : {"dtype", "torch_dtype"})
      if (config.torch_dtype.empty()) config.torch_dtype = fields->text(key);
  if (count_parameters(config.text, config.tie_word_embeddings) > (__int128{1} << 56))
    top.problems().add(top.path(), "the sizes together make more than 2^56 parameters");
}

}  // namespace

bool TextConfig::has_layer_type(LayerType type) const {
  return std::any_of(layers.begin(), layers.end(),
                     [type](const LayerConfig& layer) { return layer.type == type; });
}

Config parse_config(const std::string& json, const std::string& where) {
  if (static_cast<int64_t>(json.size()) > kMaxConfigBytes)
    fail(where,
         fmt::format("longer than the {} MiB a config.json may have", kMaxConfigBytes >> 20));
  const nlohmann::json root = parse_json(json, where);
  if (!root.is_object()) fail(where, "must hold one JSON object");
  Problems problems;
  Config config;
  read_whole(Fields(root, where, problems), config);
  problems.throw_if_any(where);
  config.json = json;
  return config;
}

Config load_config(const std::string& path_or_name) {
  namespace fs = std::filesystem;
  std::error_code ignored;
  const fs::path path(path_or_name);
  if (fs::is_directory(path, ignored)) {
    const std::string file = (path / "config.json").string();
    return parse_config(read_text_file(file, kMaxConfigBytes), file);
  }
  if (fs::exists(path, ignored))
    return parse_config(read_text_file(path_or_name, kMaxConfigBytes), path_or_name);
  std::string name = path_or_name;
  for (char& c : name) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  if (named_config_json(name) != nullptr) return named_config(name);
  fail(path_or_name, "no such directory or file, and no published size of that name",
       fmt::format("the names are {}", fmt::join(named_configs(), ", ")));
}

int64_t num_parameters(const Config& config) {
  return static_cast<int64_t>(count_parameters(config.text, config.tie_word_embeddings));
}

}  // namespace lapidary::gemma4
