#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "lapidary/comm/mesh_groups.h"
#include "lapidary/data/dataset.h"
#include "lapidary/data/packing.h"
#include "lapidary/data/tokenizer.h"
#include "lapidary/models/gemma4/conditional_generation.h"
#include "lapidary/train/recipe.h"

namespace lapidary {

// The samples of one data set of a recipe, ready to be batched.
struct PreparedData {
  std::shared_ptr<const std::vector<Sample>> samples;
  DatasetReport report;
  std::optional<PackReport> packing;
  int64_t longest = 0;       // tokens of the longest sample
  int64_t fixed_length = 0;  // of every row, when packed; else 0
};

// config.json of the recipe's model, with text_config replaced as the recipe says.
gemma4::Config recipe_config(const Recipe& recipe);
// Elements whose multiples shards begin at: int8 moments and randomly rounded weights come in
// blocks that a shard must not cut, so that any mesh takes the same steps; otherwise 1.
int64_t shard_alignment(const Recipe& recipe, Dtype weights);
// Parameters from the checkpoint or at random, frozen as freeze_config says, of ranks that share
// them as `distributed` says. groups outlive the model. weights: a directory to take them from
// instead; "": as the recipe says. Error when nothing is left to train.
gemma4::Gemma4ForConditionalGeneration build_model(const Recipe& recipe, const MeshGroups& groups,
                                                   const std::string& weights = "");
// The tokenizer of the recipe; null when it names none and the model has none.
std::shared_ptr<const Tokenizer> load_recipe_tokenizer(const Recipe& recipe);
// Reads, tokenises and (training data, when the recipe packs) packs. vocab_size bounds the ids.
PreparedData prepare_data(const Recipe& recipe, const DatasetRecipe& dataset, bool training,
                          const Tokenizer* tokenizer, const gemma4::TextConfig& text);

}  // namespace lapidary
