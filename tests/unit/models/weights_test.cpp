#include "lapidary/models/gemma4/weights.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "lapidary/checkpoint/hf.h"
#include "lapidary/core/error.h"
#include "tests/support/golden.h"
#include "tests/support/tensors.h"
#include "tests/unit/checkpoint/temporary_directory.h"

// Loading and saving whole models.
namespace lapidary::test {
namespace {

using lapidary::testing::read_bytes;
using lapidary::testing::TemporaryDirectory;
using lapidary::testing::write_bytes;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::UnorderedElementsAre;
using Json = nlohmann::ordered_json;
using Model = Gemma4ForConditionalGeneration;

const std::string kLayer = "model.language_model.layers.";

// The tensors of a golden case in f64, to be changed and written as another checkpoint.
class Checkpoint {
 public:
  explicit Checkpoint(const std::string& name) {
    const GoldenCase golden(name);
    config = Json::parse(read_bytes(golden.directory + "/config.json"));
    const HfReader reader(golden.directory);
    for (const TensorEntry* entry : reader.entries()) {
      OwnedTensor tensor = zeros(Dtype::f64, entry->shape);
      convert(*entry, tensor.get());
      tensors.emplace(entry->name, std::move(tensor));
    }
  }
  void rename(const std::string& from, const std::string& to) {
    auto node = tensors.extract(from);
    if (node.empty()) fail("test", "no tensor " + from);
    node.key() = to;
    tensors.insert(std::move(node));
  }
  void add(const std::string& name, const Shape& shape, Dtype dtype = Dtype::f64) {
    tensors.insert_or_assign(name, zeros(dtype, shape));
  }
  // [E, N, K] -> [E, K, N]
  void transpose(const std::string& name) {
    const OwnedTensor& from = tensors.at(name);
    const int64_t n = from->dim(1), k = from->dim(2);
    OwnedTensor to = zeros(Dtype::f64, {from->dim(0), k, n});
    for (int64_t i = 0; i < from->numel(); ++i) {
      set(to.get(), i / (n * k) * n * k + i % k * n + i / k % n, at(from.get(), i));
    }
    tensors.insert_or_assign(name, std::move(to));
  }
  std::string write(const std::string& directory) const {
    std::vector<TensorSource> sources;
    for (const auto& [name, t] : tensors) {
      const Dtype dtype = t->dtype();
      sources.push_back(
          {.name = name, .shape = t->shape(), .dtype = dtype, .target = dtype, .data = t->data()});
    }
    write_hf_model(directory, sources, {.files = {{"config.json", config.dump(2)}}});
    return directory;
  }

  Json config;
  std::map<std::string, OwnedTensor> tensors;
};

std::string load_error(const std::string& directory) {
  try {
    Model::from_pretrained(directory, {});
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

Model load(const std::string& directory, Dtype dtype = Dtype::f32) {
  const bool reference = dtype == Dtype::f64;
  return Model::from_pretrained(
      directory, {.dtype = dtype, .backend = reference ? Backend::ref : Backend::cpu});
}

void expect_same_parameters(Model& got, Model& expected) {
  int count = 0;
  expected.for_each_parameter([&](Parameter& p) {
    EXPECT_TRUE(same_bits(got.parameter(p.name).value, p.value)) << p.name;
    ++count;
  });
  got.for_each_parameter([&](Parameter&) { --count; });
  EXPECT_EQ(count, 0);
}

// ---- loading -----------------------------------------------------------------------------------

TEST(Load, EveryMistakeIsListed) {
  const TemporaryDirectory directory;
  Checkpoint checkpoint("moe_text");
  checkpoint.tensors.erase(kLayer + "0.layer_scalar");
  checkpoint.tensors.erase("model.language_model.norm.weight");
  checkpoint.add(kLayer + "1.mlp.up_proj.weight", {55, 40});
  checkpoint.add(kLayer + "2.mlp.side_proj.weight", {4, 4});
  checkpoint.add(kLayer + "17.mlp.up_proj.weight", {56, 40});
  checkpoint.add("model.language_model.layers.1", {1});
  const std::string error = load_error(checkpoint.write(directory / "model"));
  EXPECT_THAT(error, HasSubstr(kLayer + "0.layer_scalar: is missing, expected [1]"));
  EXPECT_THAT(error, HasSubstr("model.language_model.norm.weight: is missing, expected [40]"));
  EXPECT_THAT(error, HasSubstr(kLayer + "1.mlp.up_proj.weight: is [55, 40], expected [56, 40]"));
  EXPECT_THAT(error, HasSubstr(kLayer + "2.mlp.side_proj.weight: is not a tensor of this model"));
  EXPECT_THAT(error, HasSubstr(kLayer + "17.mlp.up_proj.weight: is not a tensor of this model"));
  EXPECT_THAT(error, HasSubstr("model.language_model.layers.1: is not a tensor of this model"));
  EXPECT_THAT(error, Not(HasSubstr(kLayer + "1.mlp.up_proj.weight: is missing")));
}

TEST(Load, ATensorTwiceIsAMistake) {
  const TemporaryDirectory directory;
  Checkpoint checkpoint("dense_text");
  checkpoint.add("language_model.norm.weight", {40});
  EXPECT_THAT(load_error(checkpoint.write(directory / "model")),
              HasSubstr("which another tensor filled already"));
}

TEST(Load, OldNamesGiveTheSameModel) {
  const TemporaryDirectory directory;
  Checkpoint checkpoint("moe_text");
  for (int i = 0; i < 6; ++i) {
    const std::string layer = kLayer + std::to_string(i) + ".";
    checkpoint.rename(layer + "experts.gate_up_proj", layer + "moe.gate_up_proj");
    checkpoint.rename(layer + "experts.down_proj", layer + "moe.down_proj");
    checkpoint.rename(layer + "router.per_expert_scale", layer + "moe.per_expert_scale");
    checkpoint.rename(layer + "router.proj.weight", layer + "moe.gate.proj.weight");
    checkpoint.rename(layer + "router.scale", layer + "moe.gate.scale");
  }
  checkpoint.rename("model.language_model.norm.weight", "language_model.norm.weight");
  Model got = load(checkpoint.write(directory / "model"));
  Model expected = GoldenCase("moe_text").model(Dtype::f32);
  expect_same_parameters(got, expected);
}

TEST(Load, TransposedExpertsWithTheirScaleFoldedInComputeTheSame) {
  const TemporaryDirectory directory;
  Checkpoint checkpoint("moe_text");
  for (int i = 0; i < 6; ++i) {
    const std::string layer = kLayer + std::to_string(i) + ".";
    const OwnedTensor& scale = checkpoint.tensors.at(layer + "router.per_expert_scale");
    const OwnedTensor& down = checkpoint.tensors.at(layer + "experts.down_proj");
    const int64_t each = down->numel() / scale->numel();
    for (int64_t k = 0; k < down->numel(); ++k) {
      set(down.get(), k, at(down.get(), k) * at(scale.get(), k / each));
    }
    checkpoint.tensors.erase(layer + "router.per_expert_scale");
    checkpoint.transpose(layer + "experts.gate_up_proj");
    checkpoint.transpose(layer + "experts.down_proj");
    checkpoint.rename(layer + "experts.gate_up_proj", layer + "moe.experts.gate_and_up_projs");
    checkpoint.rename(layer + "experts.down_proj", layer + "moe.experts.down_projs");
    checkpoint.rename(layer + "router.proj.weight", layer + "moe.gate.proj.weight");
    checkpoint.rename(layer + "router.scale", layer + "moe.gate.scale");
  }
  Model folded = load(checkpoint.write(directory / "model"), Dtype::f64);
  const GoldenCase golden("moe_text");
  Model plain = golden.model(Dtype::f64);
  const Tensor& scale = folded.parameter(kLayer + "0.router.per_expert_scale").value;
  for (const double v : values(scale)) EXPECT_EQ(v, 1.0);
  const gemma4::ForwardOutput got = run_forward(folded, golden.inputs.text());
  const gemma4::ForwardOutput expected = run_forward(plain, golden.inputs.text());
  EXPECT_LT(peak_error(got.logits.get(), expected.logits.get()), 1e-12);
}

TEST(Load, AMissingExpertScaleIsAnErrorUnlessItIsFoldedIn) {
  const TemporaryDirectory directory;
  Checkpoint checkpoint("moe_text");
  checkpoint.tensors.erase(kLayer + "3.router.per_expert_scale");
  EXPECT_THAT(load_error(checkpoint.write(directory / "missing")),
              HasSubstr(kLayer + "3.router.per_expert_scale: is missing"));
  // One layer's folded scale says nothing about another's.
  const std::string other = kLayer + "1.experts.down_proj";
  checkpoint.transpose(other);
  checkpoint.rename(other, kLayer + "1.moe.experts.down_projs");
  EXPECT_THAT(load_error(checkpoint.write(directory / "mixed")),
              HasSubstr(kLayer + "3.router.per_expert_scale: is missing"));
}

TEST(Load, WhatIsIgnoredWithAWordAndWithout) {
  const TemporaryDirectory directory;
  Checkpoint moe("moe_text");
  moe.add(kLayer + "5.self_attn.v_proj.weight", {16, 40});
  moe.add("lm_head.weight", {300, 40});
  Model model = load(moe.write(directory / "moe"));
  EXPECT_THAT(model.load_report().warnings,
              UnorderedElementsAre(HasSubstr("layers.5.self_attn.v_proj.weight"),
                                   HasSubstr("lm_head.weight")));
  Checkpoint shared("e_text");
  shared.add(kLayer + "6.self_attn.k_proj.weight", {8, 40});
  shared.add(kLayer + "6.self_attn.v_proj.weight", {8, 40});
  shared.add(kLayer + "6.self_attn.k_norm.weight", {8});
  shared.add("model.language_model.rotary_emb.inv_freq", {4});
  Model quiet = load(shared.write(directory / "shared"));
  EXPECT_THAT(quiet.load_report().warnings, IsEmpty());
  Model expected = GoldenCase("e_text").model(Dtype::f32);
  expect_same_parameters(quiet, expected);
}

TEST(Load, AHeadOfItsOwnIsRead) {
  const TemporaryDirectory directory;
  Checkpoint checkpoint("dense_text");
  checkpoint.config["tie_word_embeddings"] = false;
  EXPECT_THAT(load_error(checkpoint.write(directory / "without")),
              HasSubstr("lm_head.weight: is missing, expected [300, 40]"));
  checkpoint.add("lm_head.weight", {300, 40});
  Rng rng(1);
  const OwnedTensor head = random(Dtype::f64, {300, 40}, rng, 0.1);
  copy(head.get(), checkpoint.tensors.at("lm_head.weight").get());
  Model model = load(checkpoint.write(directory / "with"), Dtype::f64);
  EXPECT_FALSE(model.tie_weights());
  EXPECT_TRUE(same_bits(model.parameter("lm_head.weight").value, head.get()));
  const GoldenCase golden("dense_text");
  const LossAndGradients got = run_gradients(model, golden.inputs);
  EXPECT_EQ(got.gradients.count("lm_head.weight"), 1U);
  // Ids that do not occur have no gradient now that the head is elsewhere.
  const Tensor& table = got.gradients.at("model.language_model.embed_tokens.weight").get();
  for (const double g : values(table.slice(0, 0, 1))) EXPECT_EQ(g, 0.0);
}

// ---- saving ------------------------------------------------------------------------------------

class RoundTrip : public ::testing::TestWithParam<const char*> {
 protected:
  void expect_round_trip(Model& model, Dtype file) const {
    const TemporaryDirectory directory;
    model.save_pretrained(directory / "model", {.dtype = file});
    Model again = load(directory / "model", model.dtype());
    expect_same_parameters(again, model);
  }
  const GoldenCase golden_{GetParam()};
};

TEST_P(RoundTrip, KeepsEveryBit) {
  Model single = golden_.model(Dtype::f32);
  expect_round_trip(single, Dtype::f32);
  Model narrow = golden_.model(Dtype::bf16);
  expect_round_trip(narrow, Dtype::bf16);
  expect_round_trip(narrow, Dtype::f32);
  single.for_each_parameter([](Parameter& p) { copy(cast(p.value, Dtype::f16).get(), p.value); });
  expect_round_trip(single, Dtype::f16);
}

TEST_P(RoundTrip, WritesTodaysNames) {
  const TemporaryDirectory directory;
  Model model = golden_.model(Dtype::f32);
  model.save_pretrained(directory / "model", {.dtype = Dtype::f32});
  const HfReader before(golden_.directory), after(directory / "model");
  EXPECT_EQ(after.entries().size(), before.entries().size());
  for (const TensorEntry* entry : before.entries()) {
    EXPECT_EQ(after.at(entry->name).shape, entry->shape) << entry->name;
  }
}

TEST_P(RoundTrip, KeepsTheConfiguration) {
  const TemporaryDirectory directory;
  Model model = golden_.model(Dtype::f32);
  model.save_pretrained(directory / "model", {.dtype = Dtype::bf16});
  Json expected = Json::parse(read_bytes(golden_.directory + "/config.json"));
  expected["dtype"] = "bfloat16";
  expected["text_config"]["dtype"] = "bfloat16";
  EXPECT_EQ(Json::parse(read_bytes(directory / "model/config.json")), expected);
}

TEST_P(RoundTrip, InShards) {
  const TemporaryDirectory directory;
  Model model = golden_.model(Dtype::bf16);
  model.save_pretrained(directory / "model", {.max_shard_bytes = 60'000});
  EXPECT_FALSE(std::filesystem::exists(directory / "model/model.safetensors"));
  EXPECT_TRUE(std::filesystem::exists(directory / "model/model.safetensors.index.json"));
  EXPECT_TRUE(std::filesystem::exists(directory / "model/config.json"));
  Model again = load(directory / "model", Dtype::bf16);
  expect_same_parameters(again, model);
}

INSTANTIATE_TEST_SUITE_P(Models, RoundTrip, ::testing::Values("moe_text", "dense_text", "e_text"));

TEST(Save, PublishedFormOfTheConfigurationStays) {
  const TemporaryDirectory directory;
  Checkpoint checkpoint("moe_text");
  checkpoint.config["text_config"].erase("per_layer_config");
  checkpoint.config["text_config"]["global_head_dim"] = 16;
  checkpoint.config["text_config"]["num_global_key_value_heads"] = 1;
  Model model = load(checkpoint.write(directory / "flat"));
  Model expected = GoldenCase("moe_text").model(Dtype::f32);
  expect_same_parameters(model, expected);
  model.save_pretrained(directory / "saved", {.dtype = Dtype::f32});
  EXPECT_EQ(Json::parse(read_bytes(directory / "saved/config.json")), checkpoint.config);
  Model again = load(directory / "saved");
  expect_same_parameters(again, model);
}

TEST(Save, TextModelsAlone) {
  const TemporaryDirectory directory;
  Checkpoint checkpoint("dense_text");
  checkpoint.config = Json(checkpoint.config["text_config"]);
  checkpoint.config["architectures"] = {"Gemma4ForCausalLM"};
  std::vector<std::string> names;
  for (const auto& [name, tensor] : checkpoint.tensors) names.push_back(name);
  for (const std::string& name : names) {
    checkpoint.rename(name, "model." + name.substr(std::string("model.language_model.").size()));
  }
  Model model = load(checkpoint.write(directory / "text"));
  model.save_pretrained(directory / "saved", {.dtype = Dtype::f32});
  const HfReader reader(directory / "saved");
  EXPECT_EQ(reader.entries().size(), names.size());
  EXPECT_NE(reader.find("model.layers.0.mlp.up_proj.weight"), nullptr);
  Model again = load(directory / "saved");
  expect_same_parameters(again, model);
}

TEST(Save, ExpertScalesAreNotFolded) {
  const TemporaryDirectory directory;
  Model model = GoldenCase("moe_text").model(Dtype::f32);
  Parameter& scale = model.parameter(kLayer + "2.router.per_expert_scale");
  for (int64_t e = 0; e < 8; ++e) set(scale.value, e, 0.1 + 0.37 * static_cast<double>(e));
  model.save_pretrained(directory / "model", {.dtype = Dtype::f32});
  Model again = load(directory / "model");
  expect_same_parameters(again, model);
}

TEST(Save, TowersAreCopied) {
  const TemporaryDirectory directory;
  Checkpoint checkpoint("dense_text");
  const std::string weight = "model.vision_tower.encoder.layers.0.mlp.up_proj.linear.weight";
  Rng rng(5);
  checkpoint.tensors.emplace(weight, random(Dtype::bf16, {6, 10}, rng));
  checkpoint.tensors.emplace("model.audio_tower.table",
                             from_values(Dtype::i64, {3}, {1, -2, 300000}));
  checkpoint.config["vision_config"] = {{"model_type", "gemma4_vision"}, {"hidden_size", 64}};
  Model model = load(checkpoint.write(directory / "model"));
  EXPECT_TRUE(model.config().has_vision_tower);
  const GoldenCase golden("dense_text");
  Model text = golden.model(Dtype::f32);
  expect_same_parameters(model, text);
  EXPECT_TRUE(same_bits(run_forward(model, golden.inputs.text()).logits.get(),
                        run_forward(text, golden.inputs.text()).logits.get()));
  EXPECT_THAT(model.load_report().passthrough,
              UnorderedElementsAre(weight, "model.audio_tower.table"));
  EXPECT_THAT(model.load_report().warnings, IsEmpty());
  model.save_pretrained(directory / "saved", {.dtype = Dtype::bf16});
  const HfReader reader(directory / "saved");
  const OwnedTensor got = zeros(Dtype::bf16, {6, 10});
  convert(reader.at(weight), got.get());
  EXPECT_TRUE(same_bits(got.get(), checkpoint.tensors.at(weight).get()));
  const OwnedTensor table = zeros(Dtype::i64, {3});
  convert(reader.at("model.audio_tower.table"), table.get());
  EXPECT_THAT(integers(table.get()), ElementsAre(1, -2, 300000));
}

TEST(Save, OtherFilesComeAlong) {
  const TemporaryDirectory directory;
  const Checkpoint checkpoint("dense_text");
  checkpoint.write(directory / "model");
  write_bytes(directory / "model/tokenizer.json", "{\"of\": \"model\"}");
  Model model = load(directory / "model");
  model.save_pretrained(directory / "saved", {.files = {{"generation_config.json", "{}"}}});
  EXPECT_EQ(read_bytes(directory / "saved/tokenizer.json"), "{\"of\": \"model\"}");
  EXPECT_EQ(read_bytes(directory / "saved/generation_config.json"), "{}");
}

TEST(Save, AnExistingModelIsKeptUnlessToldOtherwise) {
  const TemporaryDirectory directory;
  Model model = GoldenCase("dense_text").model(Dtype::f32);
  model.save_pretrained(directory / "model", {.dtype = Dtype::f32});
  set(model.parameter("model.language_model.norm.weight").value, 0, 42.0);
  EXPECT_THROW(model.save_pretrained(directory / "model", {.dtype = Dtype::f32}), Error);
  EXPECT_NE(at(load(directory / "model").parameter("model.language_model.norm.weight").value, 0),
            42.0);
  model.save_pretrained(directory / "model", {.dtype = Dtype::f32, .overwrite = true});
  EXPECT_EQ(at(load(directory / "model").parameter("model.language_model.norm.weight").value, 0),
            42.0);
  EXPECT_EQ(directory.count(), 1U);
}

}  // namespace
}  // namespace lapidary::test
