#include "lapidary/train/recipe.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>

namespace lapidary {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

constexpr const char* kSmall = R"(
model:
  pretrained_model_name_or_path: models/tiny
dataset:
  path_or_dataset: data/train.jsonl
optimizer:
  lr: 1e-5
)";

// A text recipe as a user of NeMo brings it.
constexpr const char* kNemo = R"(recipe: FinetuneRecipeForVLM
step_scheduler:
  global_batch_size: 16
  local_batch_size: 4
  ckpt_every_steps: 25
  num_epochs: 3
dist_env: {backend: nccl, timeout_minutes: 5}
rng:
  _target_: nemo_automodel.components.training.rng.StatefulRNG
  seed: 7
model:
  _target_: nemo_automodel.NeMoAutoModelForImageTextToText.from_pretrained
  pretrained_model_name_or_path: models/gemma
  torch_dtype: torch.bfloat16
  attn_implementation: sdpa
  text_config:
    use_cache: false
    sliding_window: 64
checkpoint:
  checkpoint_dir: out/
  model_save_format: torch_save
  save_consolidated: False
distributed:
  strategy: fsdp2
  dp_size: none
  tp_size: 1
  activation_checkpointing: selective
loss_fn:
  _target_: nemo_automodel.components.loss.masked_ce.MaskedCrossEntropy
dataset:
  _target_: nemo_automodel.components.datasets.vlm.datasets.make_tulu3_dataset
  path_or_dataset: data/chats.jsonl
  split: train[10:1000]
packed_sequence:
  pack_size: 2048
  packing_ratio: 0.9
  post_tokenize_hook_fn: nemo_automodel.components.datasets.vlm.collate_fns.gemma4_inject_thinking_prefix
dataloader:
  num_workers: 2
optimizer:
  _target_: torch.optim.AdamW
  lr: 2e-4
  betas: [0.9, 0.95]
lr_scheduler:
  lr_decay_style: cosine
freeze_config:
  freeze_embeddings: true
wandb:
  enable: true
  project: x
ci:
  anything: [1, {at: all}]
)";

// What parsing complains about; "" when it does not.
std::string complaint(const std::string& text, const RecipeOverrides& overrides = {}) {
  try {
    parse_recipe(text, "r.yaml", overrides);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

std::string with(const std::string& more) { return kSmall + more; }

TEST(Recipe, DefaultsAreNemos) {
  const Recipe recipe = parse_recipe(kSmall, "r.yaml");
  EXPECT_EQ(recipe.step_scheduler.global_batch_size, 32);
  EXPECT_EQ(recipe.step_scheduler.num_epochs, 10);
  EXPECT_EQ(recipe.step_scheduler.max_steps, std::nullopt);
  EXPECT_EQ(recipe.gradient_accumulation(), 32);
  EXPECT_EQ(recipe.seed, 42);
  EXPECT_EQ(recipe.max_grad_norm, 1.0);
  EXPECT_EQ(recipe.optimizer.lr, 1e-5);
  EXPECT_THAT(recipe.optimizer.betas, ElementsAre(0.9, 0.999));
  EXPECT_TRUE(recipe.freeze.freeze_vision_tower);
  EXPECT_FALSE(recipe.freeze.freeze_embeddings);
  EXPECT_FALSE(recipe.lr_scheduler.given);
  EXPECT_EQ(recipe.lr_schedule(100).lr(50), 1e-5);
  EXPECT_FALSE(recipe.validation_dataset.given);
  EXPECT_EQ(recipe.model.torch_dtype, std::nullopt);
  EXPECT_EQ(recipe.recompute, nn::Recompute::none);
  EXPECT_THAT(recipe.notes, IsEmpty());
}

TEST(Recipe, ReadsARecipeOfNemo) {
  const Recipe recipe = parse_recipe(kNemo, "r.yaml");
  EXPECT_EQ(recipe.gradient_accumulation(), 4);
  EXPECT_EQ(recipe.seed, 7);
  EXPECT_FALSE(recipe.model.from_config());
  EXPECT_EQ(recipe.model.torch_dtype, Dtype::bf16);
  EXPECT_EQ(recipe.model.text_config.text, R"({"sliding_window":64})");
  EXPECT_EQ(recipe.recompute, nn::Recompute::light);
  EXPECT_EQ(recipe.dataset.target, "make_tulu3_dataset");
  EXPECT_EQ(recipe.dataset.rows.name, "train");
  EXPECT_EQ(recipe.dataset.rows.begin, 10);
  EXPECT_EQ(recipe.dataset.rows.end, 1000);
  EXPECT_TRUE(recipe.packed_sequence.enabled());
  EXPECT_TRUE(recipe.inject_thinking_prefix);
  EXPECT_TRUE(recipe.freeze.freeze_embeddings);
  EXPECT_EQ(recipe.checkpoint.model_save_format, "safetensors");
  EXPECT_EQ(recipe.checkpoint.save_consolidated, "false");
  EXPECT_EQ(recipe.dist_timeout_minutes, 5.0);
  EXPECT_TRUE(recipe.lr_scheduler.given);
  EXPECT_EQ(recipe.lr_schedule(100).warmup_steps(), 10);
  EXPECT_THAT(
      recipe.notes,
      ElementsAre(HasSubstr("r.yaml:7: dist_env.backend"),
                  HasSubstr("r.yaml:21: checkpoint.model_save_format"), HasSubstr("wandb.enable"),
                  HasSubstr("packed_sequence.packing_ratio is not applied"),
                  HasSubstr("packed_sequence.post_tokenize_hook_fn is not applied")));
  EXPECT_EQ(recipe.where("optimizer.lr"), "r.yaml:42: optimizer.lr");
  EXPECT_EQ(recipe.where("device"), "r.yaml: device");
}

TEST(Recipe, PrintsWhatReadsBack) {
  for (const char* text : {kSmall, kNemo}) {
    const Recipe recipe = parse_recipe(text, "r.yaml");
    const std::string printed = print_recipe(recipe);
    const Recipe again = parse_recipe(printed, "printed.yaml");
    EXPECT_EQ(print_recipe(again), printed);
    EXPECT_THAT(again.notes, ::testing::Each(HasSubstr("is not applied in this version")));
    EXPECT_EQ(again.recompute, recipe.recompute);
    EXPECT_EQ(again.inject_thinking_prefix, recipe.inject_thinking_prefix);
  }
  EXPECT_THAT(print_recipe(parse_recipe(kNemo, "r.yaml")),
              HasSubstr("optimizer:\n  lr: 0.0002\n  betas: [0.9, 0.95]\n"));
}

TEST(Recipe, PrintsTextThatLooksLikeSomethingElse) {
  RecipeOverrides odd = {{"model.pretrained_model_name_or_path", "\"1e3\""},
                         {"dataset.path_or_dataset", "'a: \"b\" #c\\'"},
                         {"checkpoint.checkpoint_dir", "\"none\""}};
  const Recipe recipe = parse_recipe(kSmall, "r.yaml", odd);
  const Recipe again = parse_recipe(print_recipe(recipe), "printed.yaml");
  EXPECT_EQ(again.model.pretrained_model_name_or_path, "1e3");
  EXPECT_EQ(again.dataset.path_or_dataset, "a: \"b\" #c\\");
  EXPECT_EQ(again.checkpoint.checkpoint_dir, "none");
}

TEST(Recipe, ModelFromAConfiguration) {
  const std::string rest = "\ndataset: {path_or_dataset: d}\noptimizer: {lr: 1}\n";
  const std::string from = "model:\n  _target_: x.from_config\n  config: ";
  EXPECT_EQ(parse_recipe(from + "26b-a4b" + rest, "r.yaml").model.config, "26b-a4b");
  const Recipe named = parse_recipe(
      from +
          "{_target_: transformers.AutoConfig.from_pretrained, pretrained_model_name_or_path: d}" +
          rest,
      "r.yaml");
  EXPECT_EQ(named.model.config, "d");
  const Recipe given = parse_recipe(
      from + "{model_type: gemma4, text_config: {hidden_size: 8, a: [1.5, true, null, \"7\"]}}" +
          rest,
      "r.yaml");
  EXPECT_EQ(given.model.config, "");
  const std::string json =
      R"({"model_type":"gemma4","text_config":{"a":[1.5,true,null,"7"],"hidden_size":8}})";
  EXPECT_EQ(given.model.inline_config.text, json);
  EXPECT_EQ(parse_recipe(print_recipe(given), "printed.yaml").model.inline_config.text, json);
}

TEST(Recipe, ReportsEveryMistakeWithItsPlace) {
  const std::string text = complaint(R"(step_scheduler:
  global_batch_size: 6
  local_batch_size: 4
  max_steps: ten
  num_epochs: 0
model:
  _target_: a.from_checkpoint
  pretrained_model_name_or_path: [a]
  torch_dtype: int8
dataset:
  truncate: maybe
  split: train[5:2]
optimzer:
  lr: 1
optimizer:
  _target_: dion.Dion
  lr: .nan
  betas: [0.9, x]
  weight_decay: -1
lr_scheduler: cosine
distributed:
  tp_size: 2
  cp_size: 3
peft: {dim: 8}
device: tpu
)");
  const std::vector<std::string> expected = {
      "r.yaml: 20 mistakes",
      "r.yaml:4: step_scheduler.max_steps \"ten\" is not a whole number; use a whole number >= 1",
      "r.yaml:5: step_scheduler.num_epochs \"0\" is out of range; use a number >= 1",
      "r.yaml:7: model._target_ \"a.from_checkpoint\" is not in this version; use "
      "from_pretrained or from_config",
      "r.yaml:8: model.pretrained_model_name_or_path a list is not text",
      "r.yaml:9: model.torch_dtype \"int8\" is not a type of parameters; use float32 or bfloat16",
      "r.yaml:11: dataset.truncate \"maybe\" is not true or false",
      "r.yaml:13: unknown key optimzer; did you mean optimizer?",
      "r.yaml:16: optimizer._target_ \"dion.Dion\" is not in this version; use torch.optim.AdamW",
      "r.yaml:17: optimizer.lr \".nan\" is not finite; use a number >= 0",
      "r.yaml:18: optimizer.betas a list is not a number",
      "r.yaml:19: optimizer.weight_decay \"-1\" is out of range; use a number >= 0",
      "r.yaml:20: lr_scheduler is \"cosine\", not a mapping; use name: value lines",
      "r.yaml:24: peft: LoRA not in this version",
      "r.yaml:25: device \"tpu\" is unknown; use cpu or cuda",
      "r.yaml:2: step_scheduler.global_batch_size 6 is not a multiple of local_batch_size 4; use "
      "e.g. 4",
      "r.yaml:8: model.pretrained_model_name_or_path is missing",
      "r.yaml: dataset.path_or_dataset is missing",
      "r.yaml:12: dataset.split \"train[5:2]\" is not a range of rows",
      "r.yaml:22: distributed.tp_size 2 needs 2 ranks, there is 1",
      "r.yaml:23: distributed.cp_size 3 needs 3 ranks, there is 1",
  };
  for (const std::string& line : expected) EXPECT_THAT(text, HasSubstr(line));
}

TEST(Recipe, SuggestsTheNearestKey) {
  EXPECT_THAT(
      complaint(with("  weigth_decay: 0\n")),
      HasSubstr("unknown key optimizer.weigth_decay; did you mean optimizer.weight_decay?"));
  EXPECT_THAT(complaint(with("max_norm: 2\n")), HasSubstr("did you mean clip_grad_norm.max_norm?"));
  EXPECT_THAT(complaint(with("clip_grad_norm: {limit: 2}\n")), HasSubstr("use max_norm"));
  EXPECT_THAT(complaint(kSmall, {{"model.text_config", "{num_expert: 4}"}}),
              HasSubstr("model.text_config has no field num_expert; did you mean num_experts?"));
}

TEST(Recipe, Schedules) {
  EXPECT_THAT(complaint(with("lr_scheduler: {lr_decay_style: step}\n")),
              HasSubstr("use constant, cosine, linear, inverse-square-root or WSD"));
  EXPECT_THAT(complaint(with("lr_scheduler: {lr_warmup_steps: 0.1}\n")),
              HasSubstr("\"0.1\" is not a whole number"));
  EXPECT_THAT(complaint(with("lr_scheduler: {lr_decay_style: WSD, min_lr: 1, end_wd: 0.5}\n")),
              AllOf(HasSubstr("wsd_decay_steps is missing"),
                    HasSubstr("min_lr 1 is above the peak rate 1e-05"),
                    HasSubstr("end_wd 0.5 differs from optimizer.weight_decay 0.01")));
  const Recipe recipe = parse_recipe(
      with("lr_scheduler: {lr_decay_style: linear, max_lr: 1, min_lr: 0, lr_warmup_steps: 0}\n"),
      "r.yaml");
  EXPECT_DOUBLE_EQ(recipe.lr_schedule(10).lr(5), 0.5);
}

TEST(Recipe, AnEmptyBlockCountsAsAbsentOneWithNothingInItDoesNot) {
  EXPECT_FALSE(parse_recipe(with("lr_scheduler:\n"), "r.yaml").lr_scheduler.given);
  EXPECT_TRUE(parse_recipe(with("lr_scheduler: {}\n"), "r.yaml").lr_scheduler.given);
  EXPECT_EQ(complaint(with("peft: null\n")), "");
}

TEST(Recipe, RecomputeRulesOverItsOldName) {
  const auto policy = [](const std::string& more) {
    return parse_recipe(with(more), "r.yaml").recompute;
  };
  EXPECT_EQ(policy("distributed: {activation_checkpointing: True}\n"), nn::Recompute::block);
  EXPECT_EQ(policy("distributed: {activation_checkpointing: full}\n"), nn::Recompute::block);
  EXPECT_EQ(policy("distributed: {activation_checkpointing: false}\n"), nn::Recompute::none);
  EXPECT_EQ(policy("recompute: light\ndistributed: {activation_checkpointing: true}\n"),
            nn::Recompute::light);
  EXPECT_EQ(policy("recompute: none\ndistributed: {activation_checkpointing: true}\n"),
            nn::Recompute::none);
}

TEST(Recipe, OptimizerState) {
  const Recipe plain = parse_recipe(kSmall, "r.yaml");
  EXPECT_EQ(plain.optimizer.state_dtype, "fp32");
  EXPECT_TRUE(plain.optimizer.master_weights);
  const auto state = [](const char* word) {
    return parse_recipe(with(std::string("  state_dtype: ") + word + "\n"), "r.yaml")
        .optimizer.state_dtype;
  };
  EXPECT_EQ(state("torch.float32"), "fp32");
  EXPECT_EQ(state("torch.bfloat16"), "bf16");
  EXPECT_EQ(state("bfloat16"), "bf16");
  EXPECT_EQ(state("torch.int8"), "int8");
  EXPECT_THAT(complaint(with("  state_dtype: fp8\n")), HasSubstr("use fp32, bf16, int8"));
  EXPECT_THAT(complaint(with("  exp_avg_dtype: torch.bfloat16\n")),
              HasSubstr("use optimizer.state_dtype for both"));
}

TEST(Recipe, EightBitOptimizersOfOthers) {
  for (const char* target : {"bitsandbytes.optim.AdamW8bit", "torchao.optim.AdamW8bit"}) {
    const std::string text = with(std::string("  _target_: ") + target + "\n");
    const Recipe recipe = parse_recipe(text, "r.yaml");
    EXPECT_EQ(recipe.optimizer.state_dtype, "int8");
    EXPECT_THAT(recipe.notes,
                ElementsAre("r.yaml:8: optimizer._target_ AdamW8bit means optimizer.state_dtype: "
                            "int8"));
    EXPECT_EQ(complaint(text + "  state_dtype: int8\n"), "");
    EXPECT_THAT(complaint(text + "  state_dtype: bf16\n"),
                HasSubstr("state_dtype bf16 is not what AdamW8bit keeps"));
    const Recipe again = parse_recipe(print_recipe(recipe), "printed.yaml");
    EXPECT_EQ(again.optimizer.state_dtype, "int8");
    EXPECT_THAT(again.notes, IsEmpty());
  }
}

TEST(Recipe, RandomRoundingFollowsFromMasterWeights) {
  const auto says = [](const std::string& dtype, const std::string& master,
                       const std::string& rounding) {
    return complaint(kSmall, {{"model.torch_dtype", dtype},
                              {"optimizer.master_weights", master},
                              {"optimizer.stochastic_rounding", rounding}});
  };
  for (const char* dtype : {"auto", "bfloat16"}) {
    EXPECT_EQ(says(dtype, "false", "none"), "");
    EXPECT_EQ(says(dtype, "false", "true"), "");
    EXPECT_EQ(says(dtype, "true", "false"), "");
    EXPECT_THAT(says(dtype, "true", "true"), HasSubstr("set optimizer.master_weights to false"));
    EXPECT_THAT(says(dtype, "false", "false"), HasSubstr("set optimizer.master_weights to true"));
  }
  EXPECT_EQ(says("float32", "false", "false"), "");
  EXPECT_THAT(says("float32", "false", "true"), HasSubstr("is for bfloat16 parameters"));
  EXPECT_THAT(complaint(with("  bf16_stochastic_round: true\n")),
              HasSubstr("set optimizer.master_weights to false"));
}

TEST(Recipe, Overrides) {
  const RecipeOverrides overrides = parse_overrides(
      {"--optimizer.lr=2e-5", "--seed", "-3", "--dataset.truncate", "--optimizer.betas=[0.8, 0.9]",
       "--step_scheduler.max_steps", "none", "--lr_scheduler.min_lr=0", "--dataset.seq_length=64"});
  const Recipe recipe = parse_recipe(kSmall, "r.yaml", overrides);
  EXPECT_EQ(recipe.optimizer.lr, 2e-5);
  EXPECT_EQ(recipe.seed, -3);
  EXPECT_TRUE(recipe.dataset.truncate);
  EXPECT_THAT(recipe.optimizer.betas, ElementsAre(0.8, 0.9));
  EXPECT_EQ(recipe.step_scheduler.max_steps, std::nullopt);
  EXPECT_TRUE(recipe.lr_scheduler.given);
  EXPECT_EQ(recipe.dataset.max_length, 64);
  EXPECT_EQ(recipe.where("optimizer.lr"), "--optimizer.lr: optimizer.lr");
  EXPECT_THAT(complaint(kSmall, {{"optimizer.rl", "1"}}),
              HasSubstr("--optimizer.rl: unknown key optimizer.rl; did you mean optimizer.lr?"));
  EXPECT_THAT(complaint(kSmall, {{"optimizer..lr", "1"}}), HasSubstr("an empty part in the key"));
  EXPECT_THAT(complaint(kSmall, {{"optimizer.lr", "[1"}}), HasSubstr("--optimizer.lr: not YAML"));
  EXPECT_THROW(parse_overrides({"recipe.yaml"}), Error);
  EXPECT_THROW(parse_overrides({"-x"}), Error);
}

TEST(Recipe, OtherNamesOfKeys) {
  const Recipe recipe = parse_recipe(R"(
model: {pretrained_model_name_or_path: m}
dataset:
  path_or_dataset_id: d.jsonl
  seq_length: 128
  tokenizer: {_target_: transformers.AutoTokenizer.from_pretrained, pretrained_model_name_or_path: t}
packed_sequence: {packed_sequence_size: 0}
optimizer: {lr: 1}
)",
                                     "r.yaml");
  EXPECT_EQ(recipe.dataset.path_or_dataset, "d.jsonl");
  EXPECT_EQ(recipe.dataset.max_length, 128);
  EXPECT_EQ(recipe.dataset.tokenizer, "t");
  EXPECT_FALSE(recipe.packed_sequence.enabled());
  EXPECT_THAT(complaint(with(""), {{"dataset", "{path_or_dataset: a, path_or_dataset_id: b}"}}),
              HasSubstr("unknown key dataset.path_or_dataset_id"));
  EXPECT_THAT(complaint("dataset: {path_or_dataset: a, path_or_dataset_id: b}"),
              HasSubstr("dataset.path_or_dataset_id is another name of dataset.path_or_dataset"));
}

TEST(Recipe, YamlThatIsNoRecipe) {
  EXPECT_THAT(complaint("model:\n  a: [1\nb: 2\n"), HasSubstr("r.yaml:3: not YAML: "));
  EXPECT_THAT(complaint("- a\n- b\n"), HasSubstr("a recipe is a mapping, this is a list"));
  EXPECT_THAT(complaint("seed: 1\nseed: 2\n"), HasSubstr("r.yaml:2: seed is given twice"));
  EXPECT_THAT(complaint("? [a]\n: b\n"), HasSubstr("a key is a list or a mapping"));
  EXPECT_THAT(complaint(""), HasSubstr("optimizer.lr is missing"));
  EXPECT_THAT(complaint("a: &a [*a]\n"), HasSubstr("nested too deeply"));
  std::string bomb = "ci:\n  a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n";
  for (int i = 1; i < 8; ++i) {
    const std::string last = "*a" + std::to_string(i - 1);
    bomb += "  a" + std::to_string(i) + ": &a" + std::to_string(i) + " [" + last;
    for (int k = 1; k < 10; ++k) bomb += ", " + last;
    bomb += "]\n";
  }
  EXPECT_THAT(complaint(bomb), HasSubstr("too many values"));
  EXPECT_THAT(complaint(std::string(5 << 20, ' ')), HasSubstr("too large"));
  EXPECT_THROW(load_recipe("/nonexistent/recipe.yaml"), Error);
}

TEST(Recipe, MergeKeysAndAliases) {
  const Recipe recipe = parse_recipe(R"(
ci: &base {path_or_dataset: common.jsonl, truncate: true}
model: {pretrained_model_name_or_path: m}
dataset:
  <<: *base
  path_or_dataset: own.jsonl
optimizer: {lr: 1}
)",
                                     "r.yaml");
  EXPECT_EQ(recipe.dataset.path_or_dataset, "own.jsonl");
  EXPECT_TRUE(recipe.dataset.truncate);
}

TEST(Recipe, Environment) {
  ::setenv("LAPIDARY_TEST_DIR", "/data", 1);
  ::unsetenv("LAPIDARY_TEST_UNSET");
  const Recipe recipe =
      parse_recipe(kSmall, "r.yaml",
                   {{"checkpoint.checkpoint_dir", "${oc.env:LAPIDARY_TEST_DIR}/out"},
                    {"seed", "${LAPIDARY_TEST_UNSET,5}"}});
  EXPECT_EQ(recipe.checkpoint.checkpoint_dir, "/data/out");
  EXPECT_EQ(recipe.seed, 5);
  EXPECT_THAT(complaint(with("checkpoint: {checkpoint_dir: '${LAPIDARY_TEST_UNSET}'}\n")),
              HasSubstr("r.yaml:8: the environment has no LAPIDARY_TEST_UNSET"));
}

TEST(Recipe, TheReferenceListsEveryKeyOnce) {
  const std::string text = recipe_reference();
  EXPECT_THAT(text, HasSubstr("| `step_scheduler.global_batch_size` | whole number | 32 |"));
  EXPECT_THAT(text, HasSubstr("| `device` | text | cpu | where to train; one of cpu, cuda |"));
  EXPECT_THAT(text, HasSubstr("| `peft` | any |  | LoRA (not in this version) |"));
  EXPECT_THAT(text, Not(HasSubstr("||")));
}

// Every recipe that users start from.
TEST(Recipe, TheRecipesOfTheProjectAreValid) {
  size_t count = 0;
  const auto folder = std::filesystem::path(LAPIDARY_SOURCE_DIR) / "recipes";
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.path().extension() != ".yaml") continue;
    ++count;
    EXPECT_NO_THROW(load_recipe(entry.path().string())) << entry.path();
  }
  EXPECT_GT(count, 0U);
}

}  // namespace
}  // namespace lapidary
