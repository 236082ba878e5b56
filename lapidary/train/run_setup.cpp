#include "lapidary/train/run_setup.h"

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "lapidary/core/error.h"
#include "lapidary/core/gpu.h"
#include "lapidary/ops/adamw.h"

namespace lapidary {
namespace {

using gemma4::Config;
using gemma4::Gemma4ForConditionalGeneration;

// Where the configuration comes from, for messages.
std::string config_source(const ModelRecipe& model) {
  if (!model.inline_config.text.empty()) return "model.config";
  return model.from_config() ? model.config : model.pretrained_model_name_or_path;
}

Dtype weights_dtype(const Recipe& recipe, const Config& config) {
  if (recipe.model.torch_dtype) return *recipe.model.torch_dtype;
  if (recipe.model.from_config()) return Dtype::f32;
  return config.torch_dtype == "bfloat16" ? Dtype::bf16 : Dtype::f32;
}

void freeze(const Recipe& recipe, Gemma4ForConditionalGeneration& model) {
  int64_t trainable = 0;
  model.for_each_parameter([&](Parameter& p) {
    const bool embedding = p.name.find("embed_tokens") != std::string::npos;
    p.trainable = !p.buffer && !recipe.freeze.freeze_language_model &&
                  !(embedding && recipe.freeze.freeze_embeddings);
    trainable += p.trainable ? 1 : 0;
  });
  if (trainable == 0) {
    fail(recipe.where("freeze_config.freeze_language_model"), "nothing is left to train",
         "set it to false");
  }
}

}  // namespace

int64_t shard_alignment(const Recipe& recipe, Dtype weights) {
  const bool rounds = weights == Dtype::bf16 && !recipe.optimizer.master_weights;
  return rounds || recipe.optimizer.state_dtype == "int8" ? ops::kQuantBlock : 1;
}

Config recipe_config(const Recipe& recipe) {
  const ModelRecipe& model = recipe.model;
  const std::string source = config_source(model);
  Config config =
      model.inline_config.text.empty()
          ? gemma4::load_config(source)
          : gemma4::parse_config(model.inline_config.text, recipe.where("model.config"));
  if (model.text_config.text.empty()) return config;
  auto json = nlohmann::ordered_json::parse(config.json);
  auto& text = json.contains("text_config") ? json["text_config"] : json;
  text.merge_patch(nlohmann::ordered_json::parse(model.text_config.text));
  return gemma4::parse_config(json.dump(), recipe.where("model.text_config"));
}

Gemma4ForConditionalGeneration build_model(const Recipe& recipe, const MeshGroups& groups,
                                           const std::string& weights) {
  const Config config = recipe_config(recipe);
  if (const std::string why = gpu::unavailable(); recipe.device == "cuda" && !why.empty()) {
    fail(recipe.where("device"), "cuda can't be used: " + why, "use device: cpu");
  }
  const Dtype dtype = weights_dtype(recipe, config);
  const gemma4::ModelOptions options{.dtype = dtype,
                                     .backend = parse_backend(recipe.device),
                                     .seed = static_cast<uint64_t>(recipe.seed),
                                     .groups = &groups,
                                     .resident_weights = recipe.sharding.resident_weights(),
                                     .shard_alignment = shard_alignment(recipe, dtype)};
  const std::string& path = weights.empty() ? recipe.model.pretrained_model_name_or_path : weights;
  auto model = weights.empty() && recipe.model.from_config()
                   ? Gemma4ForConditionalGeneration::from_config(config, options)
                   : Gemma4ForConditionalGeneration::from_pretrained(path, config, options);
  freeze(recipe, model);
  return model;
}

std::shared_ptr<const Tokenizer> load_recipe_tokenizer(const Recipe& recipe) {
  std::string path = recipe.dataset.tokenizer;
  if (path.empty() && !recipe.model.from_config()) {
    path = recipe.model.pretrained_model_name_or_path;
    if (!std::filesystem::exists(std::filesystem::path(path) / "tokenizer.json")) return nullptr;
  }
  if (path.empty()) return nullptr;
  return std::make_shared<const Tokenizer>(Tokenizer::load(path));
}

PreparedData prepare_data(const Recipe& recipe, const DatasetRecipe& dataset, bool training,
                          const Tokenizer* tokenizer, const gemma4::TextConfig& text) {
  const bool pack = training && recipe.packed_sequence.enabled();
  const Overlong overlong = dataset.truncate ? Overlong::kTruncate : Overlong::kDrop;
  DatasetOptions options;
  options.path = dataset.path_or_dataset;
  options.split = dataset.split;
  options.limit_dataset_samples = dataset.limit_dataset_samples;
  options.max_length = dataset.max_length.value_or(text.max_position_embeddings);
  options.overlong = overlong;
  options.vocab_size = text.vocab_size;
  Dataset loaded = load_dataset(options, tokenizer);

  PreparedData out;
  out.report = loaded.report;
  if (pack) {
    Packed packed = pack_samples(
        loaded.samples,
        {.length = recipe.packed_sequence.pack_size,
         .seed = static_cast<uint64_t>(recipe.seed),
         .shuffle = recipe.dataloader.shuffle,
         .overlong = recipe.packed_sequence.drop_long_samples ? Overlong::kDrop : Overlong::kError,
         .pad_id = text.pad_token_id.value_or(0)});
    out.packing = packed.report;
    out.fixed_length = recipe.packed_sequence.pack_size;
    loaded.samples = std::move(packed.rows);
    if (loaded.samples.empty()) fail(options.path, "no document fits packed_sequence.pack_size");
  }
  for (const Sample& sample : loaded.samples) {
    out.longest = std::max(out.longest, static_cast<int64_t>(sample.input_ids.size()));
  }
  out.samples = std::make_shared<const std::vector<Sample>>(std::move(loaded.samples));
  return out;
}

}  // namespace lapidary
