#include "lapidary/train/recipe_fields.h"

#include <algorithm>

namespace lapidary {
namespace {

using Fields = std::vector<Field>;

// The slot at the end of a path of members.
template <class... Members>
std::function<Slot(Recipe&)> at(Members... members) {
  return [=](Recipe& recipe) -> Slot { return &(recipe.*....*members); };
}

Field& add(Fields& fields, std::string key, std::function<Slot(Recipe&)> slot, std::string doc) {
  return fields.emplace_back(
      Field{.key = std::move(key), .doc = std::move(doc), .slot = std::move(slot)});
}

void add_block(Fields& fields, std::string key, std::function<Slot(Recipe&)> slot,
               std::string doc) {
  add(fields, std::move(key), std::move(slot), std::move(doc)).effect = Effect::block;
}

void ignore(Fields& fields, const std::string& block, const std::vector<std::string>& names,
            const std::string& doc) {
  for (const std::string& name : names) {
    add(fields, block.empty() ? name : block + "." + name, {}, doc).effect = Effect::ignored;
  }
}

void refuse(Fields& fields, const std::string& key, const std::string& doc,
            const std::string& hint) {
  Field& field = add(fields, key, {}, doc);
  field.effect = Effect::refused;
  field.hint = hint;
}

void add_run(Fields& f) {
  add(f, "recipe", {}, "NeMo's recipe class; fine-tuning only")
      .target({"FinetuneRecipeForVLM", "TrainFinetuneRecipeForNextTokenPrediction"});
  add(f, "device", at(&Recipe::device), "where to train").one_of({"cpu", "cuda"});
  add(f, "seed", at(&Recipe::words, &RecipeWords::seed),
      "of everything random; unset: rng.seed, else 42");
  add(f, "recompute", at(&Recipe::words, &RecipeWords::recompute),
      "what backward computes again to save memory: nothing, norms and GLU, or whole blocks; "
      "unset: from distributed.activation_checkpointing, else none")
      .one_of({"none", "light", "block"});
  add(f, "optimizer_in_bwd", at(&Recipe::optimizer_in_bwd),
      "apply each layer's gradients inside backward: the gradients of one layer exist at a time. "
      "A step must be one micro-batch on each rank; with clipping, forward and backward run twice");
  ignore(f, "rng", {"_target_", "ranked"}, "NeMo's random state");
  add(f, "rng.seed", at(&Recipe::words, &RecipeWords::rng_seed), "used when seed is unset");
  add(f, "dist_env.backend", {}, "ranks talk over MPI in all cases").note_unless({"mpi"});
  add(f, "dist_env.timeout_minutes", at(&Recipe::dist_timeout_minutes),
      "how long a rank waits for the others before the run ends with an error")
      .above(0);

  using S = StepSchedulerRecipe;
  const auto s = &Recipe::step_scheduler;
  add(f, "step_scheduler.global_batch_size", at(s, &S::global_batch_size),
      "samples (or packs) of one optimiser step on all ranks; a multiple of local_batch_size times "
      "the data parallel ranks")
      .at_least(1);
  add(f, "step_scheduler.local_batch_size", at(s, &S::local_batch_size),
      "samples (or packs) of one micro-batch of a rank")
      .at_least(1);
  add(f, "step_scheduler.num_epochs", at(s, &S::num_epochs), "passes over the data").at_least(1);
  add(f, "step_scheduler.max_steps", at(s, &S::max_steps), "stop after so many optimiser steps")
      .at_least(1);
  add(f, "step_scheduler.ckpt_every_steps", at(s, &S::ckpt_every_steps), "checkpoint cadence")
      .at_least(1);
  add(f, "step_scheduler.val_every_steps", at(s, &S::val_every_steps),
      "validation cadence; unset: at checkpoints")
      .at_least(1);
  add(f, "step_scheduler.save_checkpoint_every_epoch", at(s, &S::save_checkpoint_every_epoch),
      "checkpoint at the end of every epoch");
  ignore(f, "step_scheduler",
         {"log_remote_every_steps", "loss_average_window_steps", "gc_every_steps", "start_step",
          "start_epoch", "preemption_signal"},
         "housekeeping of NeMo");
}

void add_model(Fields& f) {
  using M = ModelRecipe;
  const auto m = &Recipe::model;
  add(f, "model._target_", at(m, &M::target),
      "from_pretrained: a Hugging Face checkpoint; from_config: random parameters")
      .target({"from_pretrained", "from_config"});
  add(f, "model.pretrained_model_name_or_path", at(m, &M::pretrained_model_name_or_path),
      "folder of the checkpoint");
  add(f, "model.config", at(m, &M::config),
      "from_config: a config.json, a folder with one, or 26b-a4b, 31b, e2b, e4b");
  add(f, "model.config", at(m, &M::inline_config), "from_config: or the configuration itself");
  add(f, "model.text_config", at(m, &M::text_config),
      "fields that replace those of the configuration's text part");
  add(f, "model.torch_dtype", at(m, &M::torch_dtype),
      "float32 or bfloat16; unset: as the checkpoint has it, float32 from a configuration");
  ignore(f, "model",
         {"trust_remote_code", "attn_implementation", "use_liger_kernel", "use_sdpa_patching",
          "backend", "force_hf", "cache_dir", "use_cache", "output_hidden_states"},
         "choice of NeMo's kernels and loaders");
  refuse(f, "model.quantization_config", "quantised base models", "leave it out");
  refuse(f, "peft", "LoRA", "leave it out to train all parameters");
  refuse(f, "quantization", "quantised base models", "leave it out");
  refuse(f, "fp8", "8-bit training", "leave it out");
  refuse(f, "qat", "quantisation-aware training", "leave it out");
  ignore(f, "", {"processor", "compile"}, "set-up of NeMo's processors and compiler");

  using Z = FreezeRecipe;
  const auto z = &Recipe::freeze;
  add(f, "freeze_config.freeze_embeddings", at(z, &Z::freeze_embeddings),
      "keep embeddings, and a head tied to them, as they are");
  add(f, "freeze_config.freeze_language_model", at(z, &Z::freeze_language_model),
      "keep the language model as it is");
  add(f, "freeze_config.freeze_vision_tower", at(z, &Z::freeze_vision_tower),
      "keep the vision tower and its projection as they are");
  add(f, "freeze_config.freeze_audio_tower", at(z, &Z::freeze_audio_tower),
      "keep the audio tower and its projection as they are");
}

void add_dataset(Fields& f, const std::string& block, DatasetRecipe Recipe::*d) {
  using D = DatasetRecipe;
  add_block(f, block, at(d, &D::given), "what to read");
  add(f, block + "._target_", at(d, &D::target), "conversations, one JSON object a line")
      .target({"ChatDataset", "make_tulu3_dataset"})
      .instead("use ChatDataset with a file of JSON lines");
  add(f, block + ".path_or_dataset", at(d, &D::path_or_dataset), "the file");
  add(f, block + ".split", at(d, &D::split), "which rows: train, train[:1000], train[10:20]");
  add(f, block + ".limit_dataset_samples", at(d, &D::limit_dataset_samples), "at most so many rows")
      .at_least(1);
  add(f, block + ".max_length", at(d, &D::max_length), "tokens of a sample at most").at_least(2);
  add(f, block + ".truncate", at(d, &D::truncate),
      "cut longer samples instead of leaving them out");
  add(f, block + ".tokenizer", at(d, &D::tokenizer),
      "tokenizer.json, or a folder with one; unset: the model's");
  add(f, block + ".chat_template", at(d, &D::chat_template),
      "a Jinja file; unset: the tokenizer's own");
  add(f, block + ".shuffle_seed", at(d, &D::shuffle_seed), "shuffle the rows once, at the start");
  ignore(f, block,
         {"num_samples", "num_images_per_sample", "image_size", "seed", "pretokenize",
          "inject_fake_images", "padding", "prompt", "responses", "name", "dataset_name"},
         "of NeMo's image datasets");
}

void add_loader(Fields& f) {
  using P = PackedSequenceRecipe;
  const auto p = &Recipe::packed_sequence;
  add_block(f, "packed_sequence", at(p, &P::given), "several samples in one row");
  add(f, "packed_sequence.pack_size", at(p, &P::pack_size), "tokens of a pack; 0: no packing")
      .at_least(0);
  add(f, "packed_sequence.packing_ratio", at(p, &P::packing_ratio),
      "part of a pack that is filled at most")
      .between(0.0, 1.0, false);
  add(f, "packed_sequence.drop_long_samples", at(p, &P::drop_long_samples),
      "leave out samples longer than a pack instead of refusing them");
  add(f, "packed_sequence.max_length", at(p, &P::max_length), "tokens of a sample at most")
      .at_least(2);
  add(f, "packed_sequence.max_packs", at(p, &P::max_packs), "at most so many packs").at_least(1);
  add(f, "packed_sequence.post_tokenize_hook_fn",
      at(&Recipe::words, &RecipeWords::post_tokenize_hook),
      "gemma4_inject_thinking_prefix: answers start with an empty thinking channel")
      .target({"gemma4_inject_thinking_prefix"});
  add(f, "packed_sequence.packing_format", {}, "how packs are laid out").only({"neat"});
  ignore(f, "packed_sequence",
         {"pretokenize", "collate_max_length", "balance_media_tokens", "attn_implementation"},
         "details of NeMo's packing");

  using L = DataloaderRecipe;
  const auto l = &Recipe::dataloader;
  add(f, "dataloader.num_workers", at(l, &L::num_workers), "threads that prepare batches")
      .between(0, 1024, false);
  add(f, "dataloader.shuffle", at(l, &L::shuffle), "new order of the samples in every epoch");
  add(f, "dataloader.drop_last", at(l, &L::drop_last), "leave out a last, smaller micro-batch");
  add(f, "dataloader.collate_fn._target_", at(&Recipe::words, &RecipeWords::collate_fn),
      "gemma4_prefix_collate_fn: answers start with an empty thinking channel")
      .target({"default_collate_fn", "gemma4_prefix_collate_fn", "default_collater",
               "packed_sequence_thd_collater_vlm"});
  add(f, "dataloader.collate_fn.max_length", at(l, &L::max_length), "tokens of a sample at most")
      .at_least(2);
  ignore(f, "dataloader", {"_target_", "pin_memory", "persistent_workers", "prefetch_factor"},
         "of NeMo's loader");
  ignore(f, "", {"validation_dataloader"}, "validation reads in order, with the same workers");
}

void add_optimizer(Fields& f) {
  using O = OptimizerRecipe;
  const auto o = &Recipe::optimizer;
  add(f, "optimizer._target_", at(&Recipe::words, &RecipeWords::optimizer_target),
      "AdamW; AdamW8bit means state_dtype: int8")
      .target({"AdamW", "AdamW8bit"})
      .instead("use torch.optim.AdamW");
  add(f, "optimizer.lr", at(o, &O::lr), "learning rate (its peak, with a schedule); required")
      .at_least(0);
  add(f, "optimizer.betas", at(o, &O::betas), "decay of the two moments").between(0, 1, false);
  add(f, "optimizer.eps", at(o, &O::eps), "added to the root of the second moment").above(0);
  add(f, "optimizer.weight_decay", at(o, &O::weight_decay), "decoupled, on all parameters")
      .at_least(0);
  add(f, "optimizer.state_dtype", at(o, &O::state_dtype),
      "what the moments are kept in; int8: codes with a scale for each 256 elements")
      .one_of({"fp32", "bf16", "int8", "float32", "bfloat16"})
      .last_part = true;
  add(f, "optimizer.master_weights", at(o, &O::master_weights),
      "keep a float32 copy of bfloat16 parameters; false: round them at random instead");
  add(f, "optimizer.stochastic_rounding", at(&Recipe::words, &RecipeWords::stochastic_rounding),
      "random rounding of bfloat16 parameters: what master_weights: false means")
      .one_of({"false", "true"});
  for (const char* name : {"amsgrad", "maximize"}) {
    add(f, std::string("optimizer.") + name, {}, "variants of AdamW").only({"false"});
  }
  for (const char* name : {"exp_avg_dtype", "exp_avg_sq_dtype"}) {
    add(f, std::string("optimizer.") + name, {}, "type of one moment")
        .only({"torch.float32"})
        .instead("use optimizer.state_dtype for both");
  }
  ignore(f, "optimizer",
         {"foreach", "fused", "capturable", "differentiable", "store_param_remainders"},
         "kernels of torch's and of Transformer Engine's optimisers");
  refuse(f, "optimizer.param_group_overrides", "rates by parameter", "leave it out");
  add(f, "clip_grad_norm.max_norm", at(&Recipe::max_grad_norm),
      "scale gradients down to this norm; 0: no clipping")
      .at_least(0);
  add(f, "loss_fn._target_", {}, "cross entropy in all cases, computed in pieces")
      .target({"MaskedCrossEntropy", "FusedLinearCrossEntropy", "ChunkedCrossEntropy",
               "Gemma4TensorParallelFusedLinearCrossEntropy"});
  add(f, "loss_fn.ignore_index", {}, "label of tokens without loss").only({"-100"});
  add(f, "loss_fn.reduction", {}, "the sum, divided by the step's labels").only({"sum"});
  ignore(f, "loss_fn", {"logit_softcapping", "fp32_upcast", "chunk_len"},
         "the model's own final_logit_softcapping rules");
}

void add_lr_scheduler(Fields& f) {
  using L = LrSchedulerRecipe;
  using O = LrScheduleOptions;
  const auto l = &Recipe::lr_scheduler;
  const std::string b = "lr_scheduler";
  add_block(f, b, at(l, &L::given), "without this block the rate is constant");
  add(f, b + ".lr_decay_style", at(l, &L::lr_decay_style), "shape after the warm-up")
      .one_of({"constant", "cosine", "linear", "inverse-square-root", "WSD"});
  add(f, b + ".lr_warmup_steps", at(l, &L::options, &O::warmup_steps),
      "steps of linear warm-up; unset: a tenth of all, at most 1000")
      .at_least(0);
  add(f, b + ".lr_decay_steps", at(l, &L::options, &O::decay_steps),
      "steps until min_lr; unset: all")
      .at_least(1);
  add(f, b + ".init_lr", at(l, &L::options, &O::init_lr), "first rate; unset: 0.1 lr").at_least(0);
  add(f, b + ".max_lr", at(l, &L::max_lr), "peak; unset: optimizer.lr").at_least(0);
  add(f, b + ".min_lr", at(l, &L::options, &O::min_lr), "last rate; unset: 0.01 lr").at_least(0);
  add(f, b + ".lr_wsd_decay_style", at(l, &L::lr_wsd_decay_style), "shape of the tail of WSD")
      .one_of({"linear", "cosine", "exponential", "minus_sqrt"});
  add(f, b + ".wsd_decay_steps", at(l, &L::options, &O::wsd_decay_steps),
      "steps of the tail of WSD; required by it")
      .at_least(1);
  add(f, b + ".start_wd", at(l, &L::start_wd), "weight decay at the start; optimizer.weight_decay")
      .at_least(0);
  add(f, b + ".end_wd", at(l, &L::end_wd), "weight decay at the end; the same").at_least(0);
  add(f, b + ".wd_incr_style", {}, "weight decay does not change").only({"constant"});
  ignore(f, b,
         {"_target_", "wd_incr_steps", "use_checkpoint_opt_param_scheduler",
          "override_opt_param_scheduler"},
         "NeMo's scheduler object");
}

void add_samples(Fields& f) {
  using S = SamplesRecipe;
  const auto s = &Recipe::samples;
  add(f, "samples.num_samples", at(s, &S::num_samples),
      "answers to print at the end of the run, to the first questions of the validation data")
      .at_least(0);
  add(f, "samples.max_new_tokens", at(s, &S::max_new_tokens), "tokens of an answer").at_least(1);
  add(f, "samples.temperature", at(s, &S::temperature), "0: the likeliest token").at_least(0);
}

void add_checkpoint(Fields& f) {
  using C = CheckpointRecipe;
  const auto c = &Recipe::checkpoint;
  add(f, "checkpoint.enabled", at(c, &C::enabled), "write checkpoints");
  add(f, "checkpoint.checkpoint_dir", at(c, &C::checkpoint_dir), "where to");
  add(f, "checkpoint.model_save_format", at(c, &C::model_save_format), "safetensors in all cases")
      .note_unless({"safetensors"});
  add(f, "checkpoint.save_consolidated", at(c, &C::save_consolidated),
      "checkpoints are whole Hugging Face folders in all cases")
      .one_of({"false", "true", "final", "every"});
  add(f, "checkpoint.restore_from", at(c, &C::restore_from),
      "go on from LATEST, a checkpoint's name or its path; unset: a new run");
  add(f, "checkpoint.max_recent_checkpoints", at(c, &C::max_recent_checkpoints),
      "keep so many, beside the latest and the best; unset: all")
      .at_least(1);
  ignore(f, "checkpoint",
         {"v4_compatible", "is_async", "wait_for_staging", "cpu_offload", "staging_dir",
          "dequantize_base_checkpoint", "single_rank_consolidation", "diffusers_compatible",
          "best_metric_key", "consolidation_timeout_minutes", "allow_legacy_pickle_restore",
          "skip_task_head_prefixes_for_base_model"},
         "how NeMo writes checkpoints");
}

// What NeMo's FSDP2 and its experts have beside that.
void add_parallel_details(Fields& f) {
  const std::string b = "distributed.";
  add(f, b + "activation_checkpointing_scope", {}, "all layers in all cases").note_unless({"all"});
  add(f, b + "sequence_parallel", {}, "goes with tensor parallelism").note_unless({"false"});
  add(f, b + "enable_async_tensor_parallel", {}, "goes with tensor parallelism")
      .note_unless({"false"});
  add(f, b + "tp_plan", {}, "goes with tensor parallelism").note_unless({"none"});
  add(f, b + "pipeline", {}, "goes with pipeline stages").note_unless({"none"});
  add(f, b + "mp_policy", {}, "layers compute in model.torch_dtype, gradients are float32")
      .note_unless({"none"});
  add(f, b + "autocast_dtype", {}, "layers compute in model.torch_dtype").note_unless({"none"});
  add(f, b + "offload_policy", {}, "shards lie where the model computes").note_unless({"none"});
  add(f, b + "enable_compile", {}, "nothing is compiled at run time").note_unless({"false"});
  ignore(f, "distributed",
         {"_target_", "multimodal", "patch_is_packed_sequence", "enable_fsdp2_prefetch"},
         "details of NeMo's sharding");
  add(f, b + "moe.reshard_after_forward",
      at(&Recipe::words, &RecipeWords::moe_reshard_after_forward),
      "of models with experts: rules over distributed.reshard_after_forward")
      .one_of({"false", "true"});
  add(f, b + "moe.mp_policy", {}, "layers compute in model.torch_dtype, gradients are float32")
      .note_unless({"none"});
  add(f, b + "moe.lm_head_precision", {}, "the head computes in model.torch_dtype")
      .note_unless({"none"});
  ignore(f, "distributed.moe", {"_target_", "ignore_router_for_ac", "wrap_outer_model"},
         "details of NeMo's sharding");
}

void add_parallel(Fields& f) {
  using M = MeshOptions;
  const auto m = &Recipe::mesh;
  const std::string b = "distributed.";
  add(f, b + "strategy", {}, "how parameters are kept on several ranks: in shards")
      .only({"fsdp2"})
      .instead("use fsdp2; reshard_after_forward: false keeps whole weights on every rank");
  add(f, b + "dp_size", at(m, &M::dp_size),
      "data parallel ranks: replicas times shards; unset or none: what the others leave");
  add(f, b + "dp_replicate_size", at(m, &M::dp_replicate_size),
      "replicas of the shards; a divisor of dp_size");
  add(f, b + "tp_size", at(m, &M::tp_size), "tensor parallel ranks");
  add(f, b + "cp_size", at(m, &M::cp_size), "context parallel ranks");
  add(f, b + "pp_size", at(m, &M::pp_size), "pipeline stages");
  add(f, b + "ep_size", at(m, &M::ep_size),
      "ranks that share out the experts; a divisor of dp_size x cp_size x tp_size");
  using S = ShardingRecipe;
  add(f, b + "reshard_after_forward", at(&Recipe::sharding, &S::reshard_after_forward),
      "true: a rank keeps its shard of the weights and gathers layer by layer (ZeRO-3); false: "
      "gathered weights stay (ZeRO-2)");
  add(f, b + "defer_fsdp_grad_sync", at(&Recipe::sharding, &S::defer_fsdp_grad_sync),
      "sum gradients over the ranks on the last micro-batch of a step alone; false: on each, in "
      "less memory");
  add(f, b + "activation_checkpointing", at(&Recipe::words, &RecipeWords::activation_checkpointing),
      "NeMo's name of recompute: true and full mean block, selective means light")
      .one_of({"false", "true", "full", "selective"});
  add_parallel_details(f);
}

void add_trackers(Fields& f) {
  for (const char* name : {"wandb", "mlflow", "comet"}) {
    const std::string block = name;
    add(f, block + ".enable", {}, "not sent anywhere; metrics are in training.jsonl")
        .note_unless({"false"});
    ignore(f, block,
           {"project", "entity", "name", "dir", "group", "tags", "notes", "mode", "id", "resume",
            "experiment_name", "run_name", "tracking_uri", "workspace", "api_key"},
           "of a tracker");
  }
  ignore(f, "", {"ci", "slurm", "skypilot", "launcher", "benchmark"}, "how and where NeMo runs it");
}

Fields make_fields() {
  Fields fields;
  add_run(fields);
  add_model(fields);
  add_dataset(fields, "dataset", &Recipe::dataset);
  add_dataset(fields, "validation_dataset", &Recipe::validation_dataset);
  add_loader(fields);
  add_optimizer(fields);
  add_lr_scheduler(fields);
  add_samples(fields);
  add_checkpoint(fields);
  add_parallel(fields);
  add_trackers(fields);
  return fields;
}

}  // namespace

Field& Field::one_of(std::vector<std::string> values) {
  words = std::move(values);
  return *this;
}

Field& Field::target(std::vector<std::string> values) {
  last_part = true;
  return only(std::move(values));
}

Field& Field::only(std::vector<std::string> values) {
  later = true;
  return one_of(std::move(values));
}

Field& Field::note_unless(std::vector<std::string> values) {
  soft = true;
  return one_of(std::move(values));
}

Field& Field::instead(std::string text) {
  hint = std::move(text);
  return *this;
}

Field& Field::at_least(double value) {
  min = value;
  return *this;
}

Field& Field::above(double value) {
  open = true;
  return at_least(value);
}

Field& Field::between(double low, double high, bool exclusive) {
  min = low;
  max = high;
  open = exclusive;
  return *this;
}

const std::vector<Field>& recipe_fields() {
  static const Fields fields = make_fields();
  return fields;
}

const std::vector<std::pair<std::string, std::string>>& recipe_aliases() {
  static const std::vector<std::pair<std::string, std::string>> aliases = {
      {"dataset.path_or_dataset_id", "dataset.path_or_dataset"},
      {"dataset.seq_length", "dataset.max_length"},
      {"dataset.tokenizer.pretrained_model_name_or_path", "dataset.tokenizer"},
      {"validation_dataset.path_or_dataset_id", "validation_dataset.path_or_dataset"},
      {"validation_dataset.seq_length", "validation_dataset.max_length"},
      {"validation_dataset.tokenizer.pretrained_model_name_or_path",
       "validation_dataset.tokenizer"},
      {"optimizer.bf16_stochastic_round", "optimizer.stochastic_rounding"},
      {"packed_sequence.packed_sequence_size", "packed_sequence.pack_size"},
      {"model.config.pretrained_model_name_or_path", "model.config"},
  };
  return aliases;
}

}  // namespace lapidary
