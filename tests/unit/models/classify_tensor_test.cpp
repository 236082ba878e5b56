#include <gtest/gtest.h>

#include <functional>
#include <nlohmann/json.hpp>

#include "lapidary/models/gemma4/weights.h"

// What each name of a checkpoint means.
namespace lapidary::gemma4 {
namespace {

Config config_of(const std::string& name, const std::function<void(nlohmann::json&)>& change = {}) {
  const Config config = load_config(LAPIDARY_SOURCE_DIR "/tests/golden/data/" + name);
  if (!change) return config;
  nlohmann::json json = nlohmann::json::parse(config.json);
  change(json);
  return parse_config(json.dump(), "config.json");
}

void expect_parameter(const Config& config, const std::string& name, const std::string& parameter) {
  const TensorRole role = classify_tensor(config, name);
  EXPECT_EQ(role.kind, TensorRole::parameter) << name;
  EXPECT_EQ(role.name, parameter) << name;
  EXPECT_EQ(role.warning, "") << name;
  EXPECT_FALSE(role.transposed) << name;
  EXPECT_FALSE(role.unit_scale) << name;
}

TensorRole::Kind kind_of(const Config& config, const std::string& name) {
  return classify_tensor(config, name).kind;
}

const char* const kNames[] = {
    "embed_tokens.weight",
    "norm.weight",
    "layers.3.self_attn.q_proj.weight",
    "layers.3.self_attn.q_norm.weight",
    "layers.3.self_attn.o_proj.weight",
    "layers.3.self_attn.k_proj.weight",
    "layers.3.self_attn.k_norm.weight",
    "layers.3.self_attn.v_proj.weight",
    "layers.3.mlp.gate_proj.weight",
    "layers.3.mlp.up_proj.weight",
    "layers.3.mlp.down_proj.weight",
    "layers.3.input_layernorm.weight",
    "layers.3.post_attention_layernorm.weight",
    "layers.3.pre_feedforward_layernorm.weight",
    "layers.3.post_feedforward_layernorm.weight",
    "layers.3.post_feedforward_layernorm_1.weight",
    "layers.3.post_feedforward_layernorm_2.weight",
    "layers.3.pre_feedforward_layernorm_2.weight",
    "layers.3.router.proj.weight",
    "layers.3.router.scale",
    "layers.3.router.per_expert_scale",
    "layers.3.experts.gate_up_proj",
    "layers.3.experts.down_proj",
    "layers.3.layer_scalar",
};

TEST(ClassifyTensor, TodaysNamesUnderEveryPrefix) {
  const Config config = config_of("moe_text");
  for (const char* name : kNames) {
    const std::string full = std::string("model.language_model.") + name;
    expect_parameter(config, full, full);
    expect_parameter(config, std::string("language_model.") + name, full);
    expect_parameter(config, std::string("language_model.model.") + name, full);
    expect_parameter(config, std::string("model.") + name, full);
  }
}

TEST(ClassifyTensor, TextModelsAloneHaveAShorterPrefix) {
  const Config config = config_of("dense_text", [](nlohmann::json& json) {
    json = nlohmann::json(json["text_config"]);
    json["architectures"] = {"Gemma4ForCausalLM"};
  });
  ASSERT_FALSE(config.nested);
  expect_parameter(config, "model.layers.0.mlp.up_proj.weight",
                   "model.layers.0.mlp.up_proj.weight");
  expect_parameter(config, "model.language_model.norm.weight", "model.norm.weight");
}

TEST(ClassifyTensor, PerLayerEmbeddings) {
  const Config config = config_of("e_text");
  const std::string prefix = "model.language_model.";
  for (const char* name :
       {"embed_tokens_per_layer.weight", "per_layer_model_projection.weight",
        "per_layer_projection_norm.weight", "layers.7.per_layer_input_gate.weight",
        "layers.7.per_layer_projection.weight", "layers.7.post_per_layer_input_norm.weight"}) {
    expect_parameter(config, prefix + name, prefix + name);
  }
}

TEST(ClassifyTensor, OldNamesOfExpertsAndRouter) {
  const Config config = config_of("moe_text");
  const std::string layer = "model.language_model.layers.2.";
  expect_parameter(config, layer + "moe.gate_up_proj", layer + "experts.gate_up_proj");
  expect_parameter(config, layer + "moe.down_proj", layer + "experts.down_proj");
  expect_parameter(config, layer + "moe.per_expert_scale", layer + "router.per_expert_scale");
  expect_parameter(config, layer + "moe.gate.proj.weight", layer + "router.proj.weight");
  expect_parameter(config, layer + "moe.gate.scale", layer + "router.scale");
}

TEST(ClassifyTensor, TransposedExpertsHaveTheirScaleFoldedIn) {
  const Config config = config_of("moe_text");
  const std::string layer = "model.language_model.layers.2.";
  const TensorRole up = classify_tensor(config, layer + "moe.experts.gate_and_up_projs");
  EXPECT_EQ(up.kind, TensorRole::parameter);
  EXPECT_EQ(up.name, layer + "experts.gate_up_proj");
  EXPECT_TRUE(up.transposed);
  EXPECT_FALSE(up.unit_scale);  // the scale goes into the second product
  const TensorRole down = classify_tensor(config, layer + "moe.experts.down_projs");
  EXPECT_EQ(down.name, layer + "experts.down_proj");
  EXPECT_TRUE(down.transposed);
  EXPECT_TRUE(down.unit_scale);
}

TEST(ClassifyTensor, KeysOfSharingLayersAreDead) {
  const Config config = config_of("e_text");  // layers 4 to 7 share
  for (const char* name : {"k_proj.weight", "v_proj.weight", "k_norm.weight"}) {
    const std::string sharing = std::string("model.language_model.layers.4.self_attn.") + name;
    const TensorRole role = classify_tensor(config, sharing);
    EXPECT_EQ(role.kind, TensorRole::ignored) << sharing;
    EXPECT_EQ(role.warning, "") << sharing;
    const std::string own = std::string("model.language_model.layers.3.self_attn.") + name;
    EXPECT_EQ(kind_of(config, own), TensorRole::parameter) << own;
  }
  EXPECT_EQ(kind_of(config, "model.language_model.layers.4.self_attn.q_proj.weight"),
            TensorRole::parameter);
}

TEST(ClassifyTensor, WhatContradictsTheConfigIsToldAbout) {
  const Config config = config_of("moe_text");
  const TensorRole value =
      classify_tensor(config, "model.language_model.layers.5.self_attn.v_proj.weight");
  EXPECT_EQ(value.kind, TensorRole::ignored);
  EXPECT_NE(value.warning, "");
  const TensorRole head = classify_tensor(config, "lm_head.weight");
  EXPECT_EQ(head.kind, TensorRole::ignored);
  EXPECT_NE(head.warning, "");
}

TEST(ClassifyTensor, AHeadOfItsOwn) {
  const Config config =
      config_of("dense_text", [](nlohmann::json& json) { json["tie_word_embeddings"] = false; });
  expect_parameter(config, "lm_head.weight", "lm_head.weight");
  expect_parameter(config, "language_model.lm_head.weight", "lm_head.weight");
}

TEST(ClassifyTensor, ConstantsAreIgnored) {
  const Config config = config_of("dense_text");
  for (const char* name :
       {"model.language_model.rotary_emb.full_attention_inv_freq",
        "model.language_model.rotary_emb.inv_freq", "model.language_model.embed_tokens.embed_scale",
        "model.language_model.layers.0.self_attn.rotary_emb.inv_freq"}) {
    const TensorRole role = classify_tensor(config, name);
    EXPECT_EQ(role.kind, TensorRole::ignored) << name;
    EXPECT_EQ(role.warning, "") << name;
  }
}

TEST(ClassifyTensor, TowersPassThrough) {
  const Config config = config_of("moe_text");
  for (const char* name : {"model.vision_tower.encoder.layers.0.mlp.up_proj.linear.weight",
                           "model.audio_tower.conv.weight", "model.embed_vision.projection.weight",
                           "model.embed_audio.projection.weight", "vision_tower.x"}) {
    EXPECT_EQ(kind_of(config, name), TensorRole::passthrough) << name;
  }
}

TEST(ClassifyTensor, LayersThatTheModelDoesNotHaveAreSurplus) {
  const Config config = config_of("moe_text");
  EXPECT_EQ(kind_of(config, "model.language_model.layers.6.layer_scalar"), TensorRole::surplus);
  EXPECT_EQ(kind_of(config, "model.language_model.layers.99999999999999999999.layer_scalar"),
            TensorRole::parameter);  // no layer's name at all; no parameter has it either
}

}  // namespace
}  // namespace lapidary::gemma4
