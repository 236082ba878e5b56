#include "lapidary/models/gemma4/weights.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>

#include "lapidary/checkpoint/hf.h"
#include "lapidary/core/error.h"
#include "lapidary/models/gemma4/conditional_generation.h"
#include "lapidary/models/gemma4/weight_transfer.h"

namespace lapidary::gemma4 {
namespace {

bool starts_with(const std::string& text, const char* prefix) { return text.rfind(prefix, 0) == 0; }

bool ends_with(const std::string& text, const std::string& suffix) {
  return text.size() >= suffix.size() &&
         text.compare(text.size() - suffix.size(), suffix.size(), suffix) == 0;
}

// The name without the prefix of the text model, or of nothing; towers keep theirs.
std::string strip_prefix(const std::string& name) {
  constexpr std::array kPrefixes = {"model.language_model.", "language_model.model.",
                                    "language_model.", "model."};
  for (const char* prefix : kPrefixes) {
    if (starts_with(name, prefix)) return name.substr(std::strlen(prefix));
  }
  return name;
}

bool is_tower(const std::string& bare) {
  constexpr std::array kTowers = {"vision_tower.", "audio_tower.", "embed_vision.", "embed_audio.",
                                  "vision_embedder."};
  return std::any_of(kTowers.begin(), kTowers.end(),
                     [&](const char* tower) { return starts_with(bare, tower); });
}

struct LayerName {
  int64_t layer = -1;
  std::string rest;  // "self_attn.q_proj.weight"
};

LayerName split_layer(const std::string& bare) {
  if (!starts_with(bare, "layers.")) return {};
  const size_t dot = bare.find('.', 7);
  if (dot == std::string::npos) return {};
  LayerName out;
  const char* end = bare.data() + dot;
  const auto [parsed, error] = std::from_chars(bare.data() + 7, end, out.layer);
  if (error != std::errc() || parsed != end) return {};
  out.rest = bare.substr(dot + 1);
  return out;
}

// Old names of expert and router tensors.
struct Rename {
  const char* from;
  const char* to;
  bool transposed;
};
constexpr std::array kRenames = {
    Rename{"moe.gate_up_proj", "experts.gate_up_proj", false},
    Rename{"moe.down_proj", "experts.down_proj", false},
    Rename{"moe.per_expert_scale", "router.per_expert_scale", false},
    Rename{"moe.gate.proj.weight", "router.proj.weight", false},
    Rename{"moe.gate.scale", "router.scale", false},
    Rename{"moe.experts.gate_and_up_projs", "experts.gate_up_proj", true},
    Rename{"moe.experts.down_projs", "experts.down_proj", true},
};

TensorRole classify_layer_tensor(const Config& config, LayerName name) {
  TensorRole role;
  if (name.layer < 0 || name.layer >= config.text.num_hidden_layers) return role;
  const LayerConfig& layer = config.text.layers[static_cast<size_t>(name.layer)];
  const bool kv = name.rest == "self_attn.k_proj.weight" || name.rest == "self_attn.k_norm.weight";
  const bool v = name.rest == "self_attn.v_proj.weight" || name.rest == "self_attn.v_norm.weight";
  role.kind = TensorRole::ignored;
  if ((kv || v) && layer.kv_shared) return role;
  if (v && layer.k_eq_v) {
    role.warning = "is ignored: this layer's values are its keys (attention_k_eq_v)";
    return role;
  }
  role.kind = TensorRole::parameter;
  for (const Rename& rename : kRenames) {
    if (name.rest != rename.from) continue;
    name.rest = rename.to;
    role.transposed = rename.transposed;
    role.unit_scale = name.rest == "experts.down_proj" && rename.transposed;
    break;
  }
  role.name = config.prefix() + "layers." + std::to_string(name.layer) + "." + name.rest;
  return role;
}

// Elements `part` of the flattened [E, N, K], to dst, from a file's [E, K, N], one expert at a
// time.
void convert_transposed(const TensorEntry& entry, const Interval& part, const Tensor& dst,
                        WeightTransfer& transfer) {
  const int64_t k = entry.shape[1], n = entry.shape[2], width = size_of(dst.dtype());
  const OwnedTensor expert(Backend::cpu, dst.dtype(), {k, n});
  for (int64_t e = part.begin / (n * k); e * n * k < part.end; ++e) {
    const Interval here = intersect(part, {e * n * k, (e + 1) * n * k});
    convert_range(entry, e * n * k, expert.get());
    const char* from = static_cast<const char*>(expert->data());
    const Tensor to = dst.slice(0, here.begin - part.begin, here.size());
    transfer.send(to, [&](int64_t first, const Tensor& piece) {
      char* out = static_cast<char*>(piece.data());
      const int64_t begin = here.begin - e * n * k + first;
      for (int64_t at = begin; at < begin + piece.numel(); ++at, out += width) {
        const int64_t i = at / k, j = at % k;
        std::memcpy(out, from + (j * n + i) * width, static_cast<size_t>(width));
      }
    });
  }
}

// Fills the parameters of a model from a checkpoint and finds everything that does not fit.
class Loader {
 public:
  Loader(Gemma4ForConditionalGeneration& model, const HfReader& reader)
      : model_(model), reader_(reader), transfer_(model.backend()) {
    model.for_each_parameter([&](Parameter& p) { parameters_.push_back(&p); });
    std::sort(parameters_.begin(), parameters_.end(),
              [](const Parameter* a, const Parameter* b) { return a->name < b->name; });
    loaded_.resize(parameters_.size());
  }

  LoadReport run(const std::string& path) {
    for (const TensorEntry* entry : reader_.entries()) place(*entry);
    for (size_t i = 0; i < parameters_.size(); ++i) {
      if (loaded_[i] || unit_scales(*parameters_[i])) continue;
      problems_.add(parameters_[i]->name, "is missing, expected " + parameters_[i]->shape.str());
    }
    problems_.throw_if_any(path);
    return report_;
  }

 private:
  void place(const TensorEntry& entry) {
    const TensorRole role = classify_tensor(model_.config(), entry.name);
    if (!role.warning.empty()) report_.warnings.push_back(entry.name + " " + role.warning);
    if (role.kind == TensorRole::passthrough) report_.passthrough.push_back(entry.name);
    if (role.kind == TensorRole::surplus) {
      problems_.add(entry.name, "is not a tensor of this model", "check config.json");
    }
    if (role.kind == TensorRole::parameter) fill(entry, role);
  }

  void fill(const TensorEntry& entry, const TensorRole& role) {
    const auto at = std::lower_bound(
        parameters_.begin(), parameters_.end(), role.name,
        [](const Parameter* p, const std::string& name) { return p->name < name; });
    if (at == parameters_.end() || (*at)->name != role.name) {
      problems_.add(entry.name, "is not a tensor of this model", "check config.json");
      return;
    }
    const Parameter& p = **at;
    Shape expected = p.shape;
    if (role.transposed) std::swap(expected[1], expected[2]);
    const auto index = static_cast<size_t>(at - parameters_.begin());
    if (entry.shape != expected) {
      problems_.add(entry.name, "is " + entry.shape.str() + ", expected " + expected.str());
      loaded_[index] = true;  // one complaint is enough
      return;
    }
    if (loaded_[index]) {
      problems_.add(entry.name, "fills " + p.name + ", which another tensor filled already");
      return;
    }
    loaded_[index] = true;
    if (role.unit_scale) folded_.insert(layer_of(role.name));
    // Of a file, the pages that this rank's part lies on are all that is read.
    const Fsdp::Shard shard = model_.fsdp().shard_of(p);
    const Tensor value = shard.value.view({shard.interval.size()});
    if (role.transposed) return convert_transposed(entry, shard.interval, value, transfer_);
    transfer_.send(value, [&](int64_t first, const Tensor& piece) {
      convert_range(entry, shard.interval.begin + first, piece);
    });
  }

  // "model.layers.3" of "model.layers.3.router.scale" and of "model.layers.3.experts.down_proj".
  static std::string layer_of(const std::string& name) {
    return name.substr(0, name.find('.', name.find("layers.") + 7));
  }

  // NeMo multiplies the scale into the experts and drops it.
  bool unit_scales(Parameter& p) {
    if (!ends_with(p.name, ".router.per_expert_scale")) return false;
    if (!folded_.contains(layer_of(p.name))) return false;
    model_.initialize_parameter(p, 0);
    return true;
  }

  Gemma4ForConditionalGeneration& model_;
  const HfReader& reader_;
  WeightTransfer transfer_;
  std::vector<Parameter*> parameters_;  // by name
  std::vector<bool> loaded_;
  std::set<std::string> folded_;  // layers whose experts hold the scale already
  Problems problems_;
  LoadReport report_;
};

// The configuration as it was read, but for the element type of the weights.
std::string config_with_dtype(const std::string& text, Dtype dtype) {
  auto json = nlohmann::ordered_json::parse(text);
  const char* name = dtype == Dtype::bf16  ? "bfloat16"
                     : dtype == Dtype::f16 ? "float16"
                                           : "float32";
  for (const char* key : {"dtype", "torch_dtype"}) {
    if (json.contains(key)) json[key] = name;
    if (json.contains("text_config") && json["text_config"].contains(key)) {
      json["text_config"][key] = name;
    }
  }
  if (!json.contains("dtype") && !json.contains("torch_dtype")) json["dtype"] = name;
  return json.dump(2) + "\n";
}

// The directory of a model path, "" for anything else (a configuration by name).
std::string model_directory(const std::string& path) {
  std::error_code error;
  if (path.empty()) return "";
  if (std::filesystem::is_directory(path, error)) return path;
  return std::filesystem::path(path).parent_path().string();
}

}  // namespace

TensorRole classify_tensor(const Config& config, const std::string& name) {
  const std::string bare = strip_prefix(name);
  TensorRole role;
  if (bare == "lm_head.weight") {
    role.kind = config.tie_word_embeddings ? TensorRole::ignored : TensorRole::parameter;
    role.name = "lm_head.weight";
    if (config.tie_word_embeddings) role.warning = "is ignored: the head is tied to embed_tokens";
    return role;
  }
  if (is_tower(bare)) {
    role.kind = TensorRole::passthrough;
    return role;
  }
  if (ends_with(bare, "inv_freq") || ends_with(bare, "embed_scale")) {
    role.kind = TensorRole::ignored;
    return role;
  }
  if (const LayerName layer = split_layer(bare); layer.layer >= 0) {
    return classify_layer_tensor(config, layer);
  }
  role.kind = TensorRole::parameter;
  role.name = config.prefix() + bare;
  return role;
}

Gemma4ForConditionalGeneration Gemma4ForConditionalGeneration::from_pretrained(
    const std::string& path, const ModelOptions& options) {
  return from_pretrained(path, load_config(path), options);
}

Gemma4ForConditionalGeneration Gemma4ForConditionalGeneration::from_pretrained(
    const std::string& path, const Config& config, const ModelOptions& options) {
  Gemma4ForConditionalGeneration model(config, options);
  const HfReader reader(path);
  model.load_report_ = Loader(model, reader).run(path);
  model.weights_changed();
  model.source_ = path;
  return model;
}

void Gemma4ForConditionalGeneration::save_pretrained(const std::string& directory,
                                                     const SaveOptions& options) {
  std::vector<TensorSource> tensors;
  WeightTransfer transfer(backend());
  for_each_parameter([&](Parameter& p) {
    const Fsdp::Shard shard = fsdp_->shard_of(p);
    TensorSource source{
        .name = p.name, .shape = p.shape, .dtype = shard.value.dtype(), .target = options.dtype};
    source.part = shard.first_replica ? shard.interval : Interval{};
    if (on_host(backend())) {
      source.data = shard.value.data();
    } else {
      source.fill = [&transfer, shard](int64_t first, int64_t count, void* out) {
        transfer.fetch(shard.value, first - shard.interval.begin, count, out);
      };
    }
    tensors.push_back(std::move(source));
  });
  // Towers are not loaded here; they go from file to file.
  std::optional<HfReader> towers;
  if (!load_report_.passthrough.empty()) towers.emplace(source_);
  for (const std::string& name : load_report_.passthrough) {
    const TensorEntry& entry = towers->at(name);
    const std::optional<Dtype> known = core_dtype_of(entry.dtype);
    if (!known) fail(name, std::string("of type ") + name_of(entry.dtype) + " cannot be copied");
    const Dtype dtype = *known;
    const bool floating = dtype == Dtype::f32 || dtype == Dtype::bf16 || dtype == Dtype::f16;
    tensors.push_back({.name = name,
                       .shape = entry.shape,
                       .scalar = entry.scalar,
                       .dtype = dtype,
                       .target = floating ? options.dtype : dtype,
                       .data = entry.data,
                       .part = part_of_first_rank(entry.shape.numel(), groups_->data())});
  }
  HfWriteOptions write{.max_shard_bytes = options.max_shard_bytes, .overwrite = options.overwrite};
  write.files = options.files;
  write.files.emplace("config.json", config_with_dtype(config().json, options.dtype));
  write.tokenizer_source =
      options.tokenizer_source.empty() ? model_directory(source_) : options.tokenizer_source;
  write_hf_model(directory, tensors, write, groups_->data());
}

}  // namespace lapidary::gemma4
