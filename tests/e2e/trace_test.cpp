#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/e2e/program.h"
#include "tests/support/golden.h"
#include "tests/support/tensors.h"

namespace lapidary::test {
namespace {

ProcessResult trace(const std::string& name, const std::string& output,
                    const std::vector<std::string>& more = {}) {
  std::vector<std::string> arguments = {
      "trace", golden(name), "--inputs", golden(name) + "/inputs.safetensors", "--output", output};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return lapidary_program(arguments);
}

constexpr const char* kGradients[] = {"grad.model.language_model.embed_tokens.weight",
                                      "grad.model.language_model.layers.0.mlp.down_proj.weight",
                                      "grad.model.language_model.layers.5.self_attn.q_proj.weight"};

void expect_expected(const std::string& name, const std::string& output, double logits,
                     double gradient) {
  const std::string expected = golden(name) + "/expected.safetensors";
  // Logits of padding are nobody's business.
  const TokenError error =
      token_error(load_tensor(output, "logits").get(), load_tensor(expected, "logits").get(),
                  GoldenCase(name).inputs.real());
  EXPECT_LT(error.peak, logits) << name;
  for (const char* tensor : kGradients) {
    EXPECT_LT(l2_error(load_tensor(output, tensor).get(), load_tensor(expected, tensor).get()),
              gradient)
        << name << " " << tensor;
  }
}

TEST(Trace, DoubleAgreesWithTheGoldenCases) {
  const TemporaryDirectory folder;
  const std::string output = folder.path() / "out.safetensors";
  for (const char* name : {"moe_text", "dense_text", "e_text"}) {
    expect_success(trace(name, output, {"--grads", "--dtype", "fp64"}));
    // What is recorded is rounded to float.
    expect_expected(name, output, 5e-7, 5e-7);
  }
}

TEST(Trace, FloatAgreesWithTheGoldenCases) {
  const TemporaryDirectory folder;
  const std::string output = folder.path() / "out.safetensors";
  for (const char* name : {"moe_text", "dense_text", "e_text"}) {
    expect_success(trace(name, output, {"--grads"}));
    expect_expected(name, output, 1e-5, 1e-4);
  }
}

TEST(Trace, RecomputingChangesNoBit) {
  const TemporaryDirectory folder;
  const std::string none = folder.path() / "none.safetensors";
  const std::string other = folder.path() / "other.safetensors";
  for (const char* name : {"moe_text", "e_text"}) {
    expect_success(trace(name, none, {"--grads"}));
    for (const char* policy : {"light", "block"}) {
      expect_success(trace(name, other, {"--grads", "--recompute", policy}));
      EXPECT_TRUE(read_file(none) == read_file(other)) << name << " " << policy;
    }
  }
}

TEST(Trace, HoldsGradientsOnlyWhenAsked) {
  const TemporaryDirectory folder;
  const std::string output = folder.path() / "out.safetensors";
  expect_success(trace("moe_text", output));
  const SafetensorsReader reader(output);
  EXPECT_NE(reader.find("loss"), nullptr);
  EXPECT_NE(reader.find("hidden_states.0"), nullptr);
  EXPECT_NE(reader.find("router_indices.0"), nullptr);
  for (const TensorEntry& entry : reader.entries()) {
    EXPECT_NE(entry.name.rfind("grad.", 0), 0U) << entry.name;
  }
}

TEST(Trace, NamesWhatTheInputsLack) {
  const TemporaryDirectory folder;
  const std::string output = folder.path() / "out.safetensors";
  const std::string inputs = folder.path() / "in.safetensors";
  const auto run = [&](const std::vector<std::string>& more) {
    std::vector<std::string> arguments = {"trace", golden("moe_text"), "--inputs",
                                          inputs,  "--output",         output};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return lapidary_program(arguments);
  };
  expect_error(run({}), {inputs, "can't be opened"});
  const std::vector<int64_t> ids = {2, 5, 7};
  const TensorSource tensor{
      .shape = {1, 3}, .dtype = Dtype::i64, .target = Dtype::i64, .data = ids.data()};
  const auto named = [&](const std::string& name) {
    TensorSource source = tensor;
    source.name = name;
    return source;
  };
  write_safetensors(inputs, {named("prompt")});
  expect_error(run({}), {inputs, "input_ids"});
  write_safetensors(inputs, {named("input_ids")});
  expect_success(run({}));
  std::filesystem::remove(output);
  expect_error(run({"--grads"}), {inputs, "labels", "--grads"});
  EXPECT_FALSE(std::filesystem::exists(output));
}

TEST(Trace, RefusesIdsAndLabelsOutsideTheVocabulary) {
  const TemporaryDirectory folder;
  const std::string inputs = folder.path() / "in.safetensors";
  std::vector<int64_t> ids = {2, 5, 7}, labels = {-100, 5, 300};
  const auto source = [](const char* name, const std::vector<int64_t>& values) {
    return TensorSource{.name = name,
                        .shape = {1, 3},
                        .dtype = Dtype::i64,
                        .target = Dtype::i64,
                        .data = values.data()};
  };
  const auto run = [&] {
    write_safetensors(inputs, {source("input_ids", ids), source("labels", labels)});
    return lapidary_program({"trace", golden("moe_text"), "--inputs", inputs, "--output",
                             (folder.path() / "out.safetensors").string(), "--grads"});
  };
  expect_error(run(), {"label", "300"});
  labels = {-100, 5, 7};
  ids = {2, 5, 300};
  expect_error(run(), {"token id 300", "vocabulary of 300"});
}

}  // namespace
}  // namespace lapidary::test
