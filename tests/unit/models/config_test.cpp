#include "lapidary/models/gemma4/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <sstream>

#include "lapidary/core/error.h"

namespace lapidary::gemma4 {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using Json = nlohmann::json;

std::string golden(const std::string& name) {
  return std::string(LAPIDARY_SOURCE_DIR) + "/tests/golden/data/" + name;
}

Json published(const std::string& name) { return Json::parse(named_config(name).json); }

std::string error_of(const std::string& json) {
  try {
    parse_config(json, "config.json");
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

std::string error_of(const Json& json) { return error_of(json.dump()); }

Json with(const std::string& name, const std::function<void(Json&)>& change) {
  Json json = published(name);
  change(json);
  return json;
}

TEST(NamedConfig, CountsOfThePublishedSizes) {
  EXPECT_THAT(named_configs(), ElementsAre("26b-a4b", "31b", "e2b", "e4b"));
  EXPECT_EQ(num_parameters(named_config("26b-a4b")), 25'233'141'760);
  EXPECT_EQ(num_parameters(named_config("31b")), 30'697'345'280);
  EXPECT_EQ(num_parameters(named_config("e2b")), 4'628'569'344);
  EXPECT_EQ(num_parameters(named_config("e4b")), 7'463'013'376);
}

TEST(NamedConfig, UntiedHeadCountsTwice) {
  const Json json = with("e2b", [](Json& j) { j["tie_word_embeddings"] = false; });
  EXPECT_EQ(num_parameters(parse_config(json.dump(), "x")), 4'628'569'344 + 262144 * 1536);
}

TEST(NamedConfig, NoWarnings) {
  for (const std::string& name : named_configs())
    EXPECT_THAT(named_config(name).warnings, IsEmpty()) << name;
}

TEST(NamedConfig, GeometryOfMoe) {
  const Config config = named_config("26b-a4b");
  const TextConfig& t = config.text;
  EXPECT_TRUE(config.nested);
  EXPECT_EQ(config.prefix(), "model.language_model.");
  EXPECT_EQ(config.torch_dtype, "bfloat16");
  EXPECT_EQ(config.image_token_id, 258880);
  EXPECT_TRUE(t.use_bidirectional_attention_vision);
  ASSERT_EQ(t.layers.size(), 30U);
  EXPECT_EQ(t.layers[4].type, LayerType::sliding_attention);
  EXPECT_EQ(t.layers[4].head_dim, 256);
  EXPECT_EQ(t.layers[4].num_key_value_heads, 8);
  EXPECT_FALSE(t.layers[4].k_eq_v);
  EXPECT_EQ(t.layers[5].type, LayerType::full_attention);
  EXPECT_EQ(t.layers[5].head_dim, 512);
  EXPECT_EQ(t.layers[5].num_key_value_heads, 2);
  EXPECT_TRUE(t.layers[5].k_eq_v);
  EXPECT_EQ(t.num_experts, 128);
  EXPECT_EQ(t.top_k_experts, 8);
  EXPECT_EQ(t.rope(LayerType::full_attention).rope_theta, 1e6);
  EXPECT_TRUE(t.rope(LayerType::full_attention).proportional);
  EXPECT_EQ(t.rope(LayerType::full_attention).partial_rotary_factor, 0.25);
  EXPECT_FALSE(t.rope(LayerType::sliding_attention).proportional);
}

TEST(NamedConfig, SharingAndDoubleWidthOfE2b) {
  const TextConfig t = named_config("e2b").text;
  ASSERT_EQ(t.layers.size(), 35U);
  for (size_t i = 0; i < 35; ++i) {
    const LayerConfig& layer = t.layers[i];
    EXPECT_EQ(layer.type == LayerType::full_attention, i % 5 == 4) << i;
    EXPECT_EQ(layer.kv_shared, i >= 15) << i;
    EXPECT_EQ(layer.kv_is_source, i == 13 || i == 14) << i;
    EXPECT_EQ(layer.intermediate_size, i >= 15 ? 12288 : 6144) << i;
    const int64_t source = i < 15 ? static_cast<int64_t>(i) : i % 5 == 4 ? 14 : 13;
    EXPECT_EQ(layer.kv_source, source) << i;
    EXPECT_EQ(layer.num_key_value_heads, 1);
    EXPECT_FALSE(layer.k_eq_v);
  }
  const TextConfig e4b = named_config("e4b").text;
  EXPECT_EQ(e4b.layers[24].kv_source, 22);
  EXPECT_EQ(e4b.layers[29].kv_source, 23);
  EXPECT_FALSE(e4b.layers[23].kv_shared);
  EXPECT_EQ(e4b.layers[41].intermediate_size, 10240);
}

TEST(LoadConfig, GoldenInTheNewerForm) {
  const Config config = load_config(golden("moe_text"));
  EXPECT_THAT(config.warnings, IsEmpty());
  EXPECT_EQ(config.torch_dtype, "float32");
  const TextConfig& t = config.text;
  EXPECT_EQ(t.layers[5].head_dim, 16);
  EXPECT_EQ(t.layers[5].num_key_value_heads, 1);
  EXPECT_EQ(t.layers[4].head_dim, 8);
  EXPECT_EQ(t.layers[4].num_key_value_heads, 2);
  EXPECT_EQ(t.hidden_size_per_layer_input, 0);
  EXPECT_FALSE(config.has_vision_tower);

  const TextConfig e = load_config(golden("e_text") + "/config.json").text;
  EXPECT_EQ(e.layers[6].kv_source, 2);
  EXPECT_EQ(e.layers[7].kv_source, 3);
  EXPECT_EQ(e.layers[7].intermediate_size, 112);
  EXPECT_EQ(e.layers[7].head_dim, 16);
  EXPECT_EQ(load_config(golden("moe_trained")).torch_dtype, "bfloat16");
}

TEST(LoadConfig, GoldenCounts) {
  // Elements of the case's model.safetensors without layer_scalar.
  EXPECT_EQ(num_parameters(load_config(golden("moe_text"))), 219560);
  EXPECT_EQ(num_parameters(load_config(golden("e_text"))), 169316);
  EXPECT_EQ(num_parameters(load_config(golden("dense_text"))), 78392);
  EXPECT_EQ(num_parameters(load_config(golden("moe_trained"))), 3664544);
}

TEST(LoadConfig, KeepsTheTextAndKnowsNames) {
  std::ifstream file(golden("e_text") + "/config.json");
  std::stringstream text;
  text << file.rdbuf();
  EXPECT_EQ(load_config(golden("e_text")).json, text.str());
  EXPECT_EQ(num_parameters(load_config("E2B")), 4'628'569'344);
  EXPECT_THROW(load_config("/nonexistent/model"), Error);
  try {
    load_config("27b");
    FAIL();
  } catch (const Error& e) {
    EXPECT_THAT(e.what(), HasSubstr("26b-a4b, 31b, e2b, e4b"));
  }
  EXPECT_THROW(load_config("/dev/zero"), Error);
  EXPECT_THROW(named_config("27b"), Error);
}

TEST(ParseConfig, TextAlone) {
  Json json = published("26b-a4b")["text_config"];
  json["tie_word_embeddings"] = false;
  const Config config = parse_config(json.dump(), "x");
  EXPECT_FALSE(config.nested);
  EXPECT_FALSE(config.tie_word_embeddings);
  EXPECT_EQ(config.prefix(), "model.");
  EXPECT_FALSE(config.image_token_id.has_value());
}

TEST(ParseConfig, DefaultsOfAbsentFields) {
  const Config config = parse_config(R"({"model_type": "gemma4_text"})", "x");
  const TextConfig& t = config.text;
  EXPECT_EQ(t.vocab_size, 262144);
  EXPECT_EQ(t.hidden_size, 2304);
  EXPECT_EQ(t.hidden_size_per_layer_input, 256);
  EXPECT_EQ(t.final_logit_softcapping, 0.0);
  EXPECT_EQ(t.layers[5].head_dim, 512);  // global_head_dim's default
  EXPECT_EQ(t.layers[5].type, LayerType::full_attention);
  EXPECT_TRUE(t.rope_full.proportional);
  EXPECT_EQ(t.rope_full.partial_rotary_factor, 0.25);
  EXPECT_THAT(t.eos_token_id, ElementsAre(1));
  EXPECT_EQ(config.warnings.size(), 2U);  // hidden_size, intermediate_size
}

TEST(ParseConfig, GlobalHeadsNeedKEqV) {
  const Json json = with("31b", [](Json& j) { j["text_config"]["attention_k_eq_v"] = false; });
  EXPECT_EQ(parse_config(json.dump(), "x").text.layers[5].num_key_value_heads, 16);
}

TEST(ParseConfig, NewerFormIgnoresGlobalFields) {
  const Json json = with("26b-a4b", [](Json& j) {
    j["text_config"]["per_layer_config"] = Json::object();
    for (int i = 5; i < 30; i += 6)
      j["text_config"]["per_layer_config"][std::to_string(i)] = {{"head_dim", 128}};
  });
  const Config config = parse_config(json.dump(), "x");
  EXPECT_EQ(config.text.layers[5].head_dim, 128);
  EXPECT_EQ(config.text.layers[5].num_key_value_heads, 8);
  ASSERT_EQ(config.warnings.size(), 1U);
  EXPECT_THAT(config.warnings[0], HasSubstr("are ignored"));
}

TEST(ParseConfig, Warnings) {
  const Json json = with("e2b", [](Json& j) {
    j["text_config"]["layer_types"][34] = "sliding_attention";
    j["text_config"]["tie_word_embeddings"] = false;
    j["text_config"]["rope_parameters"]["full_attention"].erase("rope_type");
  });
  const Config config = parse_config(json.dump(), "config.json");
  EXPECT_TRUE(config.tie_word_embeddings);
  EXPECT_EQ(config.text.layers[34].type, LayerType::full_attention);
  EXPECT_EQ(config.text.layers[34].head_dim, 512);
  EXPECT_FALSE(config.text.rope_full.proportional);
  EXPECT_EQ(config.text.rope_full.partial_rotary_factor, 1.0);
  EXPECT_THAT(config.warnings, ElementsAre(HasSubstr("last layer"), HasSubstr("rope_type"),
                                           HasSubstr("top-level flag")));
}

TEST(ParseConfig, NullsAndLists) {
  const Json json = with("26b-a4b", [](Json& j) {
    j["text_config"]["pad_token_id"] = nullptr;
    j["text_config"]["eos_token_id"] = {1, 106};
    j["text_config"]["final_logit_softcapping"] = nullptr;
    j["text_config"]["use_bidirectional_attention"] = nullptr;
    j["vision_config"] = Json::object();
  });
  const Config config = parse_config(json.dump(), "x");
  EXPECT_FALSE(config.text.pad_token_id.has_value());
  EXPECT_THAT(config.text.eos_token_id, ElementsAre(1, 106));
  EXPECT_EQ(config.text.final_logit_softcapping, 0.0);
  EXPECT_FALSE(config.text.use_bidirectional_attention_vision);
  EXPECT_TRUE(config.has_vision_tower);
}

TEST(ParseConfig, AllMistakesAtOnce) {
  const std::string message = error_of(with("26b-a4b", [](Json& j) {
    Json& t = j["text_config"];
    t["hidden_size"] = "2816";
    t["vocab_size"] = -1;
    t["num_experts"] = nullptr;
    t["attention_bias"] = true;
    t["hidden_activation"] = "silu";
    t["use_bidirectional_attention"] = "all";
    t["layer_types"][3] = "linear_attention";
    t["num_key_value_heads"] = 3;
    t["rope_parameters"]["full_attention"].erase("rope_theta");
    t["sliding_window"] = 0;
    t["eos_token_id"] = {1, 262144};
  }));
  for (const char* key :
       {"text_config.hidden_size", "text_config.vocab_size", "text_config.num_experts",
        "text_config.attention_bias", "text_config.hidden_activation",
        "text_config.use_bidirectional_attention", "text_config.layer_types[3]",
        "num_key_value_heads 3", "full_attention.rope_theta", "text_config.sliding_window",
        "text_config.eos_token_id"})
    EXPECT_THAT(message, HasSubstr(key));
  EXPECT_THAT(message, HasSubstr("11 mistakes"));
}

struct Mistake {
  const char* name;
  std::function<void(Json&)> change;
  const char* message;
};

class ParseConfigMistake : public ::testing::TestWithParam<Mistake> {};

TEST_P(ParseConfigMistake, IsReported) {
  EXPECT_THAT(error_of(with("e2b", GetParam().change)), HasSubstr(GetParam().message));
}

Json& text(Json& j) { return j["text_config"]; }

INSTANTIATE_TEST_SUITE_P(
    All, ParseConfigMistake,
    ::testing::Values(
        Mistake{"layer_count", [](Json& j) { text(j)["num_hidden_layers"] = 34; }, "35 entries"},
        Mistake{"layers_huge", [](Json& j) { text(j)["num_hidden_layers"] = 1000000000000; },
                "num_hidden_layers"},
        Mistake{"unsigned", [](Json& j) { text(j)["hidden_size"] = 18446744073709551615U; },
                "hidden_size"},
        Mistake{"fraction", [](Json& j) { text(j)["hidden_size"] = 1536.5; }, "must be an integer"},
        Mistake{"null_size", [](Json& j) { text(j)["hidden_size"] = nullptr; }, "hidden_size"},
        Mistake{"product",
                [](Json& j) {
                  text(j)["vocab_size_per_layer_input"] = 2147483647;
                  text(j)["hidden_size_per_layer_input"] = 16777216;
                },
                "2^56"},
        Mistake{"odd_head", [](Json& j) { text(j)["head_dim"] = 255; }, "is odd"},
        Mistake{"eps", [](Json& j) { text(j)["rms_norm_eps"] = -1e-6; }, "rms_norm_eps"},
        Mistake{"flag", [](Json& j) { text(j)["use_double_wide_mlp"] = 1; }, "true or false"},
        Mistake{"types_object", [](Json& j) { text(j)["layer_types"] = Json::object(); },
                "must be an array"},
        Mistake{"shared_all", [](Json& j) { text(j)["num_kv_shared_layers"] = 35; }, "leaves none"},
        Mistake{"shared_no_full", [](Json& j) { text(j)["num_kv_shared_layers"] = 32; },
                "no full_attention layer comes before"},
        Mistake{
            "rope_kind",
            [](Json& j) { text(j)["rope_parameters"]["sliding_attention"]["rope_type"] = "yarn"; },
            "yarn"},
        Mistake{"rope_flat",
                [](Json& j) {
                  text(j)["rope_parameters"] = {{"rope_theta", 1e4}};
                },
                "one set for all layers"},
        Mistake{"rope_missing",
                [](Json& j) { text(j)["rope_parameters"].erase("sliding_attention"); },
                "sliding_attention: is missing"},
        Mistake{"theta",
                [](Json& j) { text(j)["rope_parameters"]["sliding_attention"]["rope_theta"] = 0; },
                "rope_theta"},
        Mistake{"pad", [](Json& j) { text(j)["pad_token_id"] = 262144; }, "vocab_size"},
        Mistake{"pad_ple", [](Json& j) { text(j)["vocab_size_per_layer_input"] = 2; },
                "vocab_size_per_layer_input 2"},
        Mistake{"image", [](Json& j) { j["image_token_id"] = 300000; }, "image_token_id"},
        Mistake{"dropout", [](Json& j) { text(j)["attention_dropout"] = 0.1; },
                "attention_dropout"},
        Mistake{"kind", [](Json& j) { j["model_type"] = "llama"; }, "llama"},
        Mistake{"no_kind", [](Json& j) { j.erase("model_type"); }, "model_type: is missing"},
        Mistake{"inner", [](Json& j) { j["text_config"] = 3; }, "must be an object"},
        Mistake{"quantised", [](Json& j) { j["quantization_config"] = Json::object(); },
                "quantised"},
        Mistake{"layer_key", [](Json& j) { text(j)["per_layer_config"]["35"] = Json::object(); },
                "is not a layer"},
        Mistake{"layer_key_sign",
                [](Json& j) { text(j)["per_layer_config"]["-1"] = Json::object(); },
                "is not a layer"},
        Mistake{"layer_field",
                [](Json& j) {
                  text(j)["per_layer_config"]["4"] = {{"hidden_size", 3}};
                },
                "can't differ per layer"},
        Mistake{"mixed_heads",
                [](Json& j) {
                  text(j)["per_layer_config"]["4"] = {{"head_dim", 512}};
                },
                "differs from the 512"}),
    [](const auto& param) { return std::string(param.param.name); });

TEST(ParseConfig, BrokenText) {
  EXPECT_THAT(error_of(std::string("")), HasSubstr("not valid JSON"));
  EXPECT_THAT(error_of(std::string("[]")), HasSubstr("one JSON object"));
  EXPECT_THAT(error_of(std::string(R"({"a": NaN})")), HasSubstr("not valid JSON"));
  EXPECT_THAT(error_of(std::string(R"({"a": 1e999})")), HasSubstr("not valid JSON"));
  EXPECT_THAT(error_of(std::string(R"({"a": 1, "a": 2})")), HasSubstr("occurs twice"));
  EXPECT_THAT(error_of("{\"a\": " + std::string(100000, '[')), HasSubstr("deeper"));
  EXPECT_THAT(error_of(std::string(5 << 20, ' ')), HasSubstr("longer"));
  EXPECT_THAT(error_of(std::string("{\"\xff\": 1}")), HasSubstr("not valid JSON"));
}

}  // namespace
}  // namespace lapidary::gemma4
