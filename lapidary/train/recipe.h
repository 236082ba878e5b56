#pragma once

#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "lapidary/comm/mesh.h"
#include "lapidary/core/device.h"
#include "lapidary/core/dtype.h"
#include "lapidary/core/error.h"
#include "lapidary/nn/recompute.h"
#include "lapidary/train/schedule.h"

namespace lapidary {

// A mapping of the recipe as JSON text; "" when the recipe has none.
struct JsonText {
  std::string text;
};

struct StepSchedulerRecipe {
  int64_t global_batch_size = 32;
  int64_t local_batch_size = 1;
  int64_t num_epochs = 10;
  std::optional<int64_t> max_steps = {};
  int64_t ckpt_every_steps = 100;
  std::optional<int64_t> val_every_steps = {};
  bool save_checkpoint_every_epoch = true;
};

struct ModelRecipe {
  std::string target = "from_pretrained";  // or "from_config": parameters at random
  std::string pretrained_model_name_or_path;
  std::string config;      // config.json, a directory that holds one, or the name of a size
  JsonText inline_config;  // or the configuration itself
  JsonText text_config;    // fields that replace those of the configuration's text part
  std::optional<Dtype> torch_dtype = {};  // unset: as the checkpoint has it; float32 at random
  bool from_config() const { return target == "from_config"; }
};

// "train[10:1000]": a name, and which rows; end unset: all.
struct DatasetSplit {
  std::string name;
  int64_t begin = 0;
  std::optional<int64_t> end = {};
};

struct DatasetRecipe {
  bool given = false;
  std::string target = "ChatDataset";
  std::string path_or_dataset;
  std::string split = "train";
  std::optional<int64_t> limit_dataset_samples = {};
  std::optional<int64_t> max_length = {};  // tokens of one sample; unset: no limit
  bool truncate = false;                   // longer samples: cut, or left out
  std::string tokenizer;                   // unset: the model's own
  std::string chat_template;               // unset: the tokenizer's own
  std::optional<int64_t> shuffle_seed = {};
  DatasetSplit rows;  // from split
};

struct PackedSequenceRecipe {
  bool given = false;
  int64_t pack_size = 0;  // tokens of a pack; 0: no packing
  double packing_ratio = 1.0;
  bool drop_long_samples = false;
  std::optional<int64_t> max_length = {};
  std::optional<int64_t> max_packs = {};
  bool enabled() const { return given && pack_size > 0; }
};

struct DataloaderRecipe {
  int64_t num_workers = 0;
  bool shuffle = true;
  bool drop_last = false;
  std::optional<int64_t> max_length = {};
};

struct OptimizerRecipe {
  double lr = 0.0;
  std::vector<double> betas = {0.9, 0.999};
  double eps = 1e-8;
  double weight_decay = 0.01;
  std::string state_dtype = "fp32";  // of the moments: fp32, bf16 or int8
  bool master_weights = true;        // false: bf16 parameters are rounded at random
};

struct LrSchedulerRecipe {
  bool given = false;  // without the block the rate is constant
  std::string lr_decay_style = "cosine";
  std::string lr_wsd_decay_style = "linear";
  std::optional<double> max_lr = {};  // optimizer.lr
  std::optional<double> start_wd = {};
  std::optional<double> end_wd = {};
  LrScheduleOptions options;  // complete: styles included
};

// How weights and gradients of several ranks are kept: see parallel/fsdp.h.
struct ShardingRecipe {
  bool reshard_after_forward = true;
  bool defer_fsdp_grad_sync = true;
  bool resident_weights() const { return !reshard_after_forward; }
};

struct FreezeRecipe {
  bool freeze_embeddings = false;
  bool freeze_language_model = false;
  bool freeze_vision_tower = true;
  bool freeze_audio_tower = false;
};

struct CheckpointRecipe {
  bool enabled = true;
  std::string checkpoint_dir = "checkpoints/";
  std::string model_save_format = "safetensors";
  std::string save_consolidated = "final";
  std::string restore_from;  // "": a new run
  std::optional<int64_t> max_recent_checkpoints = {};
};

// Answers that the trained model gives at the end of a run.
struct SamplesRecipe {
  int64_t num_samples = 0;
  int64_t max_new_tokens = 96;
  double temperature = 0.0;  // 0: the likeliest token
};

// Values as written, where the recipe's meaning depends on more than one of them. "": not written.
struct RecipeWords {
  std::string recompute;
  std::string activation_checkpointing;
  std::string moe_reshard_after_forward;
  std::string collate_fn;
  std::string post_tokenize_hook;
  std::string optimizer_target;
  std::string stochastic_rounding;
  std::optional<int64_t> seed = {};
  std::optional<int64_t> rng_seed = {};
};

// A recipe with every value in place. Member defaults are the recipe's defaults.
struct Recipe {
  std::string file;  // for messages
  std::string device = "cpu";
  int64_t seed = 42;
  nn::Recompute recompute = nn::Recompute::none;
  bool optimizer_in_bwd = false;  // layer by layer inside backward, see TrainStep
  StepSchedulerRecipe step_scheduler;
  ModelRecipe model;
  DatasetRecipe dataset;
  DatasetRecipe validation_dataset;
  PackedSequenceRecipe packed_sequence;
  DataloaderRecipe dataloader;
  OptimizerRecipe optimizer;
  LrSchedulerRecipe lr_scheduler;
  double max_grad_norm = 1.0;  // clip_grad_norm.max_norm; 0: no clipping
  MeshOptions mesh;            // world_size: the ranks that the recipe was checked for
  ShardingRecipe sharding;
  double dist_timeout_minutes = 10.0;  // how long a rank waits for the others
  FreezeRecipe freeze;
  CheckpointRecipe checkpoint;
  SamplesRecipe samples;
  // Gemma's empty thinking channel at the start of every answer (gemma4_prefix_collate_fn).
  bool inject_thinking_prefix = false;
  std::vector<std::string> notes;  // what was accepted but has no effect here

  RecipeWords words;                          // values that the ones above were made of
  std::map<std::string, std::string> places;  // key -> "recipes/x.yaml:14"

  // Ranks that read rows of their own.
  int64_t data_ranks() const {
    return mesh.world_size / (mesh.tp_size * mesh.cp_size * mesh.pp_size);
  }
  // Micro-batches of one rank in one optimiser step.
  int64_t gradient_accumulation() const {
    return step_scheduler.global_batch_size / step_scheduler.local_batch_size / data_ranks();
  }
  // total_steps: scheduled_steps().
  LrSchedule lr_schedule(int64_t total_steps) const;
  // Where a value came from, for messages about it: "recipes/x.yaml:14: model.config".
  std::string where(const std::string& key) const;
};

// `--a.b=value`, as given on the command line.
using RecipeOverrides = std::vector<std::pair<std::string, std::string>>;

// Takes "--a.b=value", "--a.b value" and "--flag" (true); throws Error for anything else.
RecipeOverrides parse_overrides(const std::vector<std::string>& arguments);

// Reads a recipe in NeMo's schema. Every mistake is reported, in one Error: file and line, key,
// value, the nearest known key for a misspelled one, and what would do. world_size: the ranks that
// the run has; what their mesh asks of the model is checked too, where its configuration is there.
Recipe load_recipe(const std::string& path, const RecipeOverrides& overrides = {},
                   int64_t world_size = 1);
Recipe parse_recipe(const std::string& text, const std::string& name,
                    const RecipeOverrides& overrides = {}, int64_t world_size = 1);

// The recipe with every value in place, as YAML that reads back as the same recipe.
std::string print_recipe(const Recipe& recipe);
// All keys as a Markdown table: key, type, default, meaning.
std::string recipe_reference();

}  // namespace lapidary
