#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>

#include "lapidary/train/recipe_parse.h"
#include "lapidary/train/recipe_scalar.h"
#include "lapidary/train/run_setup.h"

namespace lapidary {
namespace {

std::optional<int64_t> row_number(const std::string& text, int64_t otherwise) {
  return text.empty() ? otherwise : parse_integer(text);
}

// "train", "train[:1000]", "train[10:20]"; nullopt for anything else.
std::optional<DatasetSplit> parse_split(const std::string& text) {
  DatasetSplit split;
  const size_t open = text.find('[');
  split.name = text.substr(0, open);
  if (open == std::string::npos) return split;
  const size_t colon = text.find(':', open);
  if (colon == std::string::npos || text.back() != ']') return std::nullopt;
  const auto begin = row_number(text.substr(open + 1, colon - open - 1), 0);
  const auto end = row_number(text.substr(colon + 1, text.size() - colon - 2), INT64_MAX);
  if (!begin || !end || *begin < 0 || *end <= *begin) return std::nullopt;
  split.begin = *begin;
  if (*end != INT64_MAX) split.end = *end;
  return split;
}

// Fields of a text configuration, to find misspelled ones; others pass, as Hugging Face lets them.
const std::vector<std::string>& text_config_names() {
  static const std::vector<std::string> names = {"vocab_size",
                                                 "hidden_size",
                                                 "intermediate_size",
                                                 "num_hidden_layers",
                                                 "num_attention_heads",
                                                 "num_key_value_heads",
                                                 "num_global_key_value_heads",
                                                 "head_dim",
                                                 "global_head_dim",
                                                 "hidden_activation",
                                                 "rms_norm_eps",
                                                 "pad_token_id",
                                                 "eos_token_id",
                                                 "bos_token_id",
                                                 "rope_parameters",
                                                 "sliding_window",
                                                 "layer_types",
                                                 "final_logit_softcapping",
                                                 "use_bidirectional_attention",
                                                 "attention_k_eq_v",
                                                 "num_kv_shared_layers",
                                                 "use_double_wide_mlp",
                                                 "enable_moe_block",
                                                 "num_experts",
                                                 "top_k_experts",
                                                 "moe_intermediate_size",
                                                 "hidden_size_per_layer_input",
                                                 "vocab_size_per_layer_input",
                                                 "initializer_range",
                                                 "max_position_embeddings",
                                                 "tie_word_embeddings",
                                                 "per_layer_config"};
  return names;
}

// Fields of NeMo's own that say how to compute, not what.
bool is_switch(const std::string& name) {
  return name == "use_cache" || name == "output_hidden_states" || name == "cp_full_attn_backend" ||
         name == "cp_sliding_attn_backend";
}

// What the model cannot do on this mesh. Nothing when its configuration cannot be read: whoever
// builds the model says why.
std::vector<MeshProblem> model_problems(const Recipe& recipe) {
  const MeshOptions& mesh = recipe.mesh;
  if (mesh.tp_size <= 1 && mesh.cp_size <= 1 && mesh.pp_size <= 1 && mesh.ep_size <= 1) return {};
  try {
    return gemma4::Gemma4ForConditionalGeneration::check_parallel(recipe_config(recipe), mesh);
  } catch (const Error&) {
    return {};
  }
}

class Checker {
 public:
  Checker(Recipe& recipe, Problems& problems) : r_(recipe), problems_(problems) {}

  void run() {
    words();
    batches();
    model();
    dataset("dataset", r_.dataset);
    if (r_.validation_dataset.given) dataset("validation_dataset", r_.validation_dataset);
    optimizer();
    schedule();
    mesh();
    packing();
    unapplied();
  }

 private:
  void problem(const std::string& key, const std::string& what, const std::string& fix) {
    const auto place = r_.places.find(key);
    problems_.add(place == r_.places.end() ? r_.file : place->second, key + " " + what, fix);
  }

  bool written(const std::string& key) const { return r_.places.count(key) > 0; }

  // Keys that are understood, and change nothing yet: silence would mislead.
  void unapplied() {
    for (const char* key :
         {"dataset.shuffle_seed", "dataset.chat_template", "dataloader.collate_fn",
          "packed_sequence.packing_ratio", "packed_sequence.max_length",
          "packed_sequence.max_packs", "packed_sequence.post_tokenize_hook_fn",
          "checkpoint.max_recent_checkpoints"}) {
      for (const auto& [written_key, place] : r_.places) {
        const std::string name = key;
        if (written_key == name || written_key.rfind(name + ".", 0) == 0) {
          r_.notes.push_back(place + ": " + written_key + " is not applied in this version");
        }
      }
    }
  }

  // What follows from several words; afterwards the words say the same by themselves.
  void words() {
    RecipeWords& w = r_.words;
    r_.seed = w.seed.value_or(w.rng_seed.value_or(42));
    if (w.recompute.empty()) {
      const std::string& word = w.activation_checkpointing;
      w.recompute = word == "selective"               ? "light"
                    : word.empty() || word == "false" ? "none"
                                                      : "block";
    }
    r_.recompute = w.recompute == "block"   ? nn::Recompute::block
                   : w.recompute == "light" ? nn::Recompute::light
                                            : nn::Recompute::none;
    r_.inject_thinking_prefix = w.collate_fn == "gemma4_prefix_collate_fn" ||
                                w.post_tokenize_hook == "gemma4_inject_thinking_prefix";
    w.seed = r_.seed;
    w.rng_seed.reset();
    if (!w.moe_reshard_after_forward.empty()) {
      r_.sharding.reshard_after_forward = w.moe_reshard_after_forward == "true";
    }
    w.moe_reshard_after_forward.clear();
    w.activation_checkpointing.clear();
    r_.lr_scheduler.options.decay_style =
        parse_decay_style(r_.lr_scheduler.lr_decay_style).value_or(DecayStyle::cosine);
    r_.lr_scheduler.options.wsd_style =
        parse_wsd_style(r_.lr_scheduler.lr_wsd_decay_style).value_or(WsdStyle::linear);
  }

  void batches() {
    const StepSchedulerRecipe& s = r_.step_scheduler;
    const int64_t ranks = check_mesh(r_.mesh).empty() ? r_.data_ranks() : 1;
    const int64_t micro_batches = s.global_batch_size / s.local_batch_size;
    const bool whole = s.global_batch_size % s.local_batch_size == 0;
    if (r_.optimizer_in_bwd && (!whole || micro_batches != ranks)) {
      problem(
          "optimizer_in_bwd", "needs one micro-batch a step" + on_each(ranks),
          "set step_scheduler.global_batch_size to " + std::to_string(s.local_batch_size * ranks));
    }
    if (!whole || micro_batches % ranks != 0) {
      problem("step_scheduler.global_batch_size",
              std::to_string(s.global_batch_size) + " is not a multiple of local_batch_size " +
                  std::to_string(s.local_batch_size) + on_each(ranks),
              "use e.g. " + std::to_string(std::max<int64_t>(1, micro_batches / ranks) * ranks *
                                           s.local_batch_size));
    }
  }

  static std::string on_each(int64_t ranks) {
    return ranks == 1 ? "" : " on each of " + std::to_string(ranks) + " data parallel ranks";
  }

  void model() {
    ModelRecipe& m = r_.model;
    const bool has_config = !m.config.empty() || !m.inline_config.text.empty();
    if (!m.from_config() && m.pretrained_model_name_or_path.empty()) {
      problem("model.pretrained_model_name_or_path", "is missing", "name a checkpoint's folder");
    }
    if (!m.from_config() && has_config) {
      problem("model.config", "goes with from_config",
              "leave it out, or set model._target_ to from_config");
    }
    if (m.from_config() && !has_config) {
      problem("model.config", "is missing", "name a config.json or one of 26b-a4b, 31b, e2b, e4b");
    }
    if (!m.text_config.text.empty()) text_config(m.text_config);
    const FreezeRecipe& z = r_.freeze;
    if (z.freeze_language_model && z.freeze_vision_tower && z.freeze_audio_tower) {
      problem("freeze_config.freeze_language_model", "leaves nothing to train",
              "set it, or the freezing of a tower, to false");
    }
  }

  void text_config(JsonText& config) {
    nlohmann::json kept = nlohmann::json::object();
    const nlohmann::json given = nlohmann::json::parse(config.text);
    const std::vector<std::string>& names = text_config_names();
    for (const auto& [name, value] : given.items()) {
      if (is_switch(name)) continue;
      kept[name] = value;
      if (std::find(names.begin(), names.end(), name) != names.end()) continue;
      for (const std::string& known : names) {
        if (edit_distance(name, known) <= 2) {
          problem("model.text_config", "has no field " + name, "did you mean " + known + "?");
          break;
        }
      }
    }
    config.text = kept.empty() ? "" : kept.dump();
  }

  void dataset(const std::string& block, DatasetRecipe& d) {
    if (d.path_or_dataset.empty()) {
      problem(block + ".path_or_dataset", "is missing", "name a file of JSON lines");
    }
    if (const auto split = parse_split(d.split)) {
      d.rows = *split;
    } else {
      problem(block + ".split", "\"" + d.split + "\" is not a range of rows",
              "use e.g. train or train[:1000]");
    }
  }

  void optimizer() {
    const OptimizerRecipe& o = r_.optimizer;
    if (!written("optimizer.lr")) problem("optimizer.lr", "is missing", "use e.g. 1e-5");
    if (o.betas.size() != 2 || o.betas[0] >= 1.0 || o.betas[1] >= 1.0) {
      problem("optimizer.betas", "are not two numbers below 1", "use e.g. [0.9, 0.95]");
    }
    optimizer_state();
  }

  // The spellings of other optimisers and of dtypes become the recipe's own.
  void optimizer_state() {
    OptimizerRecipe& o = r_.optimizer;
    RecipeWords& w = r_.words;
    if (o.state_dtype == "float32") o.state_dtype = "fp32";
    if (o.state_dtype == "bfloat16") o.state_dtype = "bf16";
    if (w.optimizer_target == "AdamW8bit") {
      if (written("optimizer.state_dtype") && o.state_dtype != "int8") {
        problem("optimizer.state_dtype", o.state_dtype + " is not what AdamW8bit keeps",
                "use int8, or torch.optim.AdamW");
      }
      o.state_dtype = "int8";
      r_.notes.push_back(r_.places["optimizer._target_"] +
                         ": optimizer._target_ AdamW8bit means optimizer.state_dtype: int8");
    }
    const std::optional<Dtype> dtype = r_.model.torch_dtype;
    const bool floats = dtype == Dtype::f32 || (!dtype && r_.model.from_config());
    if (w.stochastic_rounding == "true" && floats) {
      problem("optimizer.stochastic_rounding", "is for bfloat16 parameters",
              "leave it out, or set model.torch_dtype to bfloat16");
    } else if (w.stochastic_rounding == "true" && o.master_weights) {
      problem("optimizer.stochastic_rounding", "goes without master weights",
              "set optimizer.master_weights to false");
    } else if (w.stochastic_rounding == "false" && !o.master_weights && !floats) {
      problem("optimizer.stochastic_rounding",
              "false loses small updates of bfloat16 parameters without master weights",
              "leave it out, or set optimizer.master_weights to true");
    }
    w.optimizer_target.clear();
    w.stochastic_rounding.clear();
  }

  void schedule() {
    const LrSchedulerRecipe& l = r_.lr_scheduler;
    if (!l.given) return;
    const double peak = l.max_lr.value_or(r_.optimizer.lr);
    const auto below_peak = [&](const std::string& key, const std::optional<double>& rate) {
      if (rate && *rate > peak) {
        problem(key, shown(*rate) + " is above the peak rate " + shown(peak),
                "use at most " + shown(peak));
      }
    };
    below_peak("lr_scheduler.init_lr", l.options.init_lr);
    below_peak("lr_scheduler.min_lr", l.options.min_lr);
    if (l.options.decay_style == DecayStyle::wsd && !l.options.wsd_decay_steps) {
      problem("lr_scheduler.wsd_decay_steps", "is missing", "WSD needs the length of its tail");
    }
    if (l.options.decay_steps && l.options.warmup_steps &&
        *l.options.warmup_steps >= *l.options.decay_steps) {
      problem("lr_scheduler.lr_warmup_steps",
              std::to_string(*l.options.warmup_steps) + " is not below lr_decay_steps " +
                  std::to_string(*l.options.decay_steps),
              "use a smaller number");
    }
    for (const auto& [name, value] : {std::pair{"start_wd", l.start_wd}, {"end_wd", l.end_wd}}) {
      if (value && *value != r_.optimizer.weight_decay) {
        problem(std::string("lr_scheduler.") + name,
                shown(*value) + " differs from optimizer.weight_decay " +
                    shown(r_.optimizer.weight_decay) +
                    "; weight decay that changes is not in this version",
                "use the same");
      }
    }
  }

  void mesh() {
    for (const auto& problems : {check_mesh(r_.mesh), model_problems(r_)}) {
      for (const MeshProblem& found : problems) {
        problem("distributed." + found.axis, found.what, found.fix);
      }
    }
  }

  void packing() {
    const PackedSequenceRecipe& p = r_.packed_sequence;
    if (p.given && p.packing_ratio <= 0.0) {
      problem("packed_sequence.packing_ratio", "fills nothing", "use e.g. 0.9");
    }
    if (p.enabled() && p.max_length && *p.max_length > p.pack_size) {
      problem("packed_sequence.max_length",
              std::to_string(*p.max_length) + " is more than a pack holds, " +
                  std::to_string(p.pack_size),
              "use at most pack_size");
    }
  }

  Recipe& r_;
  Problems& problems_;
};

}  // namespace

void finish_recipe(Recipe& recipe, Problems& problems) { Checker(recipe, problems).run(); }

}  // namespace lapidary
