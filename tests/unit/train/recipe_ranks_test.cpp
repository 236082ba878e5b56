#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "lapidary/train/recipe.h"

namespace lapidary {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

// A recipe for the configuration of this name.
std::string text_for(const std::string& model) {
  return "model: {_target_: from_config, config: " + model +
         "}\ndataset: {path_or_dataset: d.jsonl}\noptimizer: {lr: 1e-5}\n";
}

Recipe recipe_of(int64_t ranks, const RecipeOverrides& changes,
                 const std::string& model = "26b-a4b") {
  return parse_recipe(text_for(model), "r.yaml", changes, ranks);
}

std::string complaint(int64_t ranks, const RecipeOverrides& changes,
                      const std::string& model = "26b-a4b") {
  try {
    recipe_of(ranks, changes, model);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(RecipeRanks, DefaultsAreShardsOverAllRanks) {
  const Recipe recipe = recipe_of(8, {});
  EXPECT_EQ(recipe.mesh.world_size, 8);
  EXPECT_EQ(recipe.mesh.dp_size, std::nullopt);
  EXPECT_EQ(recipe.data_ranks(), 8);
  EXPECT_EQ(recipe.gradient_accumulation(), 4);  // 32 samples a step, 1 in a micro-batch
  EXPECT_TRUE(recipe.sharding.reshard_after_forward);
  EXPECT_FALSE(recipe.sharding.resident_weights());
  EXPECT_TRUE(recipe.sharding.defer_fsdp_grad_sync);
  EXPECT_EQ(recipe.dist_timeout_minutes, 10.0);
  EXPECT_EQ(Mesh(recipe.mesh).sizes(), (Mesh::Dense{1, 1, 8, 1, 1}));
}

TEST(RecipeRanks, NoneIsInferred) {
  for (const char* word : {"none", "None", "null", "~"}) {
    RecipeOverrides changes;
    for (const char* axis : {"dp", "dp_replicate", "tp", "cp", "pp", "ep"}) {
      changes.emplace_back(std::string("distributed.") + axis + "_size", word);
    }
    const Recipe recipe = recipe_of(4, changes);
    EXPECT_EQ(recipe.mesh.dp_size, std::nullopt);
    EXPECT_EQ(Mesh(recipe.mesh).sizes(), (Mesh::Dense{1, 1, 4, 1, 1})) << word;
    EXPECT_EQ(Mesh(recipe.mesh).sparse_sizes(), (Mesh::Sparse{1, 4, 1})) << word;
  }
}

TEST(RecipeRanks, SizesMakeTheMesh) {
  const Recipe recipe = recipe_of(8, {{"distributed",
                                       "{strategy: fsdp2, dp_size: 8, "
                                       "dp_replicate_size: 2, ep_size: 4}"}});
  EXPECT_EQ(Mesh(recipe.mesh).sizes(), (Mesh::Dense{1, 2, 4, 1, 1}));
  EXPECT_EQ(Mesh(recipe.mesh).sparse_sizes(), (Mesh::Sparse{1, 2, 4}));
  const Recipe again = parse_recipe(print_recipe(recipe), "printed.yaml", {}, 8);
  EXPECT_EQ(Mesh(again.mesh).sizes(), Mesh(recipe.mesh).sizes());
  EXPECT_EQ(Mesh(again.mesh).sparse_sizes(), Mesh(recipe.mesh).sparse_sizes());
}

TEST(RecipeRanks, EveryRuleOfTheMesh) {
  EXPECT_THAT(complaint(8, {{"distributed.dp_size", "4"}}),
              HasSubstr("--distributed.dp_size: distributed.dp_size 4 is not what is left"));
  EXPECT_THAT(complaint(8, {{"distributed.tp_size", "3"}}), HasSubstr("does not divide 8 ranks"));
  EXPECT_THAT(complaint(8, {{"distributed.dp_replicate_size", "3"}}),
              HasSubstr("distributed.dp_replicate_size 3 does not divide dp_size 8"));
  EXPECT_THAT(complaint(8, {{"distributed.dp_replicate_size", "8"}}),
              HasSubstr("leaves nothing to shard"));
  EXPECT_THAT(complaint(8, {{"distributed.ep_size", "3"}}),
              HasSubstr("distributed.ep_size 3 does not divide dp x cp x tp, 8 ranks"));
  EXPECT_THAT(complaint(2, {{"distributed.ep_size", "4"}}),
              HasSubstr("distributed.ep_size 4 needs 4 ranks, there are 2"));
  EXPECT_THAT(complaint(2, {{"distributed.ep_size", "0"}}), HasSubstr("0 is not a size"));
  EXPECT_THAT(complaint(2, {{"distributed.ep_size", "two"}}),
              HasSubstr("\"two\" is not a whole number"));
}

TEST(RecipeRanks, WhatTheModelDoesNotSupportIsSaidWithTheRest) {
  const std::string both = complaint(
      8, {{"distributed.tp_size", "2"}, {"distributed.cp_size", "2"}, {"optimizer.rl", "1"}});
  EXPECT_THAT(both, HasSubstr("3 mistakes"));
  EXPECT_THAT(both, HasSubstr("--distributed.tp_size: distributed.tp_size 2 is not supported by "
                              "this model: the model has experts; use ep"));
  EXPECT_THAT(both,
              HasSubstr("--distributed.cp_size: distributed.cp_size 2 is not in this version"));
  EXPECT_THAT(both, HasSubstr("unknown key optimizer.rl"));
  EXPECT_THAT(complaint(2, {{"distributed.ep_size", "2"}}, "31b"),
              HasSubstr("distributed.ep_size 2 is not supported by this model: the model has no "
                        "experts"));
  EXPECT_THAT(
      complaint(256, {{"distributed.ep_size", "256"}, {"step_scheduler.global_batch_size", "256"}}),
      HasSubstr("256 is more than the model has experts; use at most 128"));
  EXPECT_EQ(
      complaint(128, {{"distributed.ep_size", "128"}, {"step_scheduler.global_batch_size", "128"}}),
      "");
  // A configuration that is not there is the business of whoever builds the model.
  EXPECT_EQ(complaint(2, {{"distributed.ep_size", "2"}}, "/nonexistent"), "");
}

TEST(RecipeRanks, TheBatchIsSharedByTheRanks) {
  const auto says = [](int64_t ranks, const char* global, const char* local) {
    return complaint(ranks, {{"step_scheduler.global_batch_size", global},
                             {"step_scheduler.local_batch_size", local}});
  };
  EXPECT_EQ(says(4, "16", "2"), "");
  EXPECT_EQ(says(1, "6", "2"), "");
  EXPECT_THAT(says(4, "12", "2"),
              HasSubstr("--step_scheduler.global_batch_size: step_scheduler.global_batch_size 12 "
                        "is not a multiple of local_batch_size 2 on each of 4 data parallel "
                        "ranks; use e.g. 8"));
  EXPECT_THAT(says(4, "7", "2"), HasSubstr("use e.g. 8"));
  EXPECT_THAT(says(4, "2", "2"), HasSubstr("use e.g. 8"));
  const RecipeOverrides accumulated = {{"step_scheduler.global_batch_size", "24"},
                                       {"step_scheduler.local_batch_size", "2"},
                                       {"distributed.ep_size", "2"}};
  EXPECT_EQ(recipe_of(4, accumulated).gradient_accumulation(), 3);
}

TEST(RecipeRanks, TheOptimizerInBackwardTakesOneMicroBatchOfEachRank) {
  const auto says = [](int64_t ranks, const char* global) {
    return complaint(ranks, {{"optimizer_in_bwd", "true"},
                             {"step_scheduler.global_batch_size", global},
                             {"step_scheduler.local_batch_size", "2"}});
  };
  EXPECT_EQ(says(4, "8"), "");
  EXPECT_EQ(says(1, "2"), "");
  EXPECT_THAT(says(4, "16"),
              HasSubstr("optimizer_in_bwd needs one micro-batch a step on each of 4 data parallel "
                        "ranks; set step_scheduler.global_batch_size to 8"));
  EXPECT_THAT(says(1, "4"), HasSubstr("set step_scheduler.global_batch_size to 2"));
}

TEST(RecipeRanks, HowShardsAreKept) {
  const auto sharding = [](const char* block) {
    return recipe_of(2, {{"distributed", block}}).sharding;
  };
  EXPECT_TRUE(sharding("{reshard_after_forward: false}").resident_weights());
  EXPECT_FALSE(sharding("{reshard_after_forward: none}").resident_weights());
  EXPECT_FALSE(sharding("{defer_fsdp_grad_sync: false}").defer_fsdp_grad_sync);
  EXPECT_TRUE(sharding("{moe: {reshard_after_forward: false}}").resident_weights());
  EXPECT_FALSE(sharding("{reshard_after_forward: false, moe: {reshard_after_forward: true}}")
                   .resident_weights());
  EXPECT_THAT(complaint(2, {{"distributed.reshard_after_forward", "maybe"}}),
              HasSubstr("\"maybe\" is not true or false"));
  for (const char* strategy : {"ddp", "megatron_fsdp"}) {
    EXPECT_THAT(complaint(2, {{"distributed.strategy", strategy}}),
                AllOf(HasSubstr(std::string("distributed.strategy \"") + strategy +
                                "\" is not in this version; use fsdp2"),
                      HasSubstr("reshard_after_forward: false")));
  }
  const Recipe resident = recipe_of(2, {{"distributed.moe.reshard_after_forward", "false"},
                                        {"dist_env.timeout_minutes", "0.25"}});
  const Recipe again = parse_recipe(print_recipe(resident), "printed.yaml", {}, 2);
  EXPECT_TRUE(again.sharding.resident_weights());
  EXPECT_EQ(again.dist_timeout_minutes, 0.25);
}

TEST(RecipeRanks, TheRestOfNemosFieldsIsKnown) {
  const Recipe plain = recipe_of(2, {{"distributed", R"({strategy: fsdp2, sequence_parallel: false,
      tp_plan: none, patch_is_packed_sequence: true, mp_policy: none, offload_policy: ~,
      autocast_dtype: null, activation_checkpointing: false, activation_checkpointing_scope: all,
      enable_async_tensor_parallel: False, enable_compile: false, enable_fsdp2_prefetch: true,
      multimodal: {frozen_sharding: root, vision: {frame_sharding: true}},
      moe: {ignore_router_for_ac: true, wrap_outer_model: true, lm_head_precision: none}})"}});
  EXPECT_THAT(plain.notes, IsEmpty());
  const Recipe noted = recipe_of(2, {{"distributed", R"({sequence_parallel: true,
      mp_policy: {param_dtype: bfloat16}, offload_policy: {pin_memory: true},
      autocast_dtype: bfloat16, enable_compile: true, moe: {lm_head_precision: float32}})"},
                                     {"dist_env.backend", "nccl"}});
  EXPECT_EQ(noted.notes.size(), 7U);
  EXPECT_THAT(noted.notes, Each(HasSubstr("has no effect")));
  EXPECT_THAT(noted.notes,
              ::testing::Contains(HasSubstr("mp_policy a mapping has no effect: layers "
                                            "compute in model.torch_dtype")));
  EXPECT_THAT(complaint(2, {{"distributed.reshard_after_foward", "true"}}),
              HasSubstr("did you mean distributed.reshard_after_forward?"));
  EXPECT_THAT(complaint(2, {{"distributed.ep", "2"}}), HasSubstr("unknown key distributed.ep"));
}

TEST(RecipeRanks, TheTimeoutIsAPositiveNumber) {
  const auto says = [](const char* minutes) {
    return complaint(2, {{"dist_env.timeout_minutes", minutes}});
  };
  EXPECT_EQ(says("0.5"), "");
  EXPECT_THAT(says("0"), HasSubstr("dist_env.timeout_minutes \"0\" is out of range"));
  EXPECT_THAT(says("-1"), HasSubstr("use a number > 0"));
  EXPECT_THAT(says(".inf"), HasSubstr("is not finite"));
  EXPECT_THAT(complaint(2, {{"dist_env", "{timeout: 5}"}}),
              HasSubstr("unknown key dist_env.timeout"));
}

}  // namespace
}  // namespace lapidary
