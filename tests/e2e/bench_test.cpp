#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/e2e/program.h"

namespace lapidary::test {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;

std::vector<std::string> command(const std::string& what, const std::string& model,
                                 const std::vector<std::string>& more = {}) {
  std::vector<std::string> out = {"bench", what, "--config", golden(model), "--repeat", "3"};
  out.insert(out.end(), more.begin(), more.end());
  return out;
}

// Every line of a benchmark: what it says of itself, and numbers that make sense.
std::vector<nlohmann::json> lines_of_bench(const std::string& what, const std::string& model,
                                           const std::vector<std::string>& more = {}) {
  const ProcessResult result = lapidary_program(command(what, model, more));
  expect_success(result);
  EXPECT_EQ(result.err, "");
  std::vector<nlohmann::json> lines;
  for (const std::string& text : lines_of(result.out)) {
    const nlohmann::json& line = lines.emplace_back(nlohmann::json::parse(text));
    EXPECT_EQ(line.at("what"), what);
    EXPECT_EQ(line.at("config"), golden(model));
    EXPECT_EQ(line.at("backend"), "cpu");
    EXPECT_NE(line.at("device"), "");
    EXPECT_NE(line.at("shape"), "");
    for (const char* key :
         {"ms", "ms_min", "ms_max", "ms_p10", "ms_p90", "gb_per_s", "tokens_per_s", "matmul_tflops",
          "copy_gb_per_s", "share_of_copy", "peak_bytes"}) {
      EXPECT_GT(line.at(key).get<double>(), 0.0) << key << " of " << text;
    }
    EXPECT_LE(line.at("ms_min"), line.at("ms_p10"));
    EXPECT_LE(line.at("ms_p10"), line.at("ms"));
    EXPECT_LE(line.at("ms"), line.at("ms_p90"));
    EXPECT_LE(line.at("ms_p90"), line.at("ms_max"));
    EXPECT_GE(line.at("tflops").get<double>(), 0.0);
  }
  return lines;
}

std::vector<std::string> parts(const std::vector<nlohmann::json>& lines) {
  std::vector<std::string> out;
  for (const nlohmann::json& line : lines) out.push_back(line.at("part"));
  return out;
}

const std::vector<std::string> kSmall = {"--seq", "12", "--batch", "2", "--dtype", "fp32"};

TEST(Bench, PeriodOfEveryKindOfModel) {
  for (const char* model : {"moe_text", "dense_text", "e_text"}) {
    const auto lines = lines_of_bench("period", model, kSmall);
    EXPECT_THAT(parts(lines), ElementsAre("forward", "forward and backward"));
    for (const auto& line : lines) EXPECT_GT(line.at("tflops").get<double>(), 0.0);
  }
}

TEST(Bench, PeriodRecomputesAndProfiles) {
  const auto lines =
      lines_of_bench("period", "moe_text", {"--seq", "8", "--recompute", "block", "--profile"});
  ASSERT_EQ(lines.size(), 2U);
  EXPECT_EQ(lines[1].at("recompute"), "block");
  EXPECT_GT(lines[1].at("op_ms").at("grouped_matmul_wgrad").get<double>(), 0.0);
}

TEST(Bench, HeadTellsItsScratch) {
  const auto lines = lines_of_bench("head", "moe_text", kSmall);
  EXPECT_THAT(parts(lines), ElementsAre("forward", "forward and backward"));
  for (const auto& line : lines) EXPECT_GT(line.at("scratch_bytes").get<int64_t>(), 0);
}

TEST(Bench, StepOfAllLayersOrTheFirst) {
  const auto all = lines_of_bench("step", "e_text", kSmall);
  EXPECT_THAT(parts(all), ElementsAre("loss and backward", "step"));
  std::vector<std::string> fewer = kSmall;
  fewer.insert(fewer.end(), {"--layers", "6"});
  const auto first = lines_of_bench("step", "e_text", fewer);
  EXPECT_THAT(first.at(0).at("shape").get<std::string>(), ::testing::HasSubstr("6 layers"));
}

TEST(Bench, AttentionOfBothTypes) {
  const auto lines = lines_of_bench("attention", "dense_text", kSmall);
  EXPECT_THAT(parts(lines),
              ElementsAre("sliding forward", "sliding backward", "full forward", "full backward"));
}

TEST(Bench, ExpertsAloneAndTogether) {
  const auto names = parts(lines_of_bench("experts", "moe_text", kSmall));
  for (const char* name :
       {"sort", "gather", "gate_up", "geglu", "down", "combine", "forward", "down dgrad",
        "down wgrad", "geglu_bwd", "gate_up wgrad", "gate_up dgrad", "forward and backward"}) {
    EXPECT_THAT(names, Contains(name));
  }
}

TEST(Bench, ProductsOfALayer) {
  const auto names = parts(lines_of_bench("gemm", "e_text", kSmall));
  for (const char* name : {"sliding.q_proj forward", "sliding.q_proj dgrad", "full.o_proj wgrad",
                           "per_layer_model_projection forward"}) {
    EXPECT_THAT(names, Contains(name));
  }
}

TEST(Bench, DecodeOfEveryKindOfModel) {
  for (const char* model : {"moe_text", "dense_text", "e_text"}) {
    const auto lines = lines_of_bench("decode", model, {"--batch", "2", "--prompt", "9"});
    EXPECT_THAT(parts(lines), ElementsAre("prefill", "token"));
  }
}

TEST(Bench, SaysWhatIsWrong) {
  expect_usage_error(lapidary_program({"bench"}), "what");
  expect_usage_error(lapidary_program({"bench", "period"}), "--config");
  expect_usage_error(lapidary_program(command("polish", "moe_text")), "polish");
  expect_usage_error(lapidary_program(command("head", "moe_text", {"--seq", "0"})), "--seq");
  expect_usage_error(lapidary_program(command("head", "moe_text", {"--dtype", "int8"})), "int8");
  expect_usage_error(lapidary_program(command("head", "moe_text", {"--layers", "6"})),
                     "--layers: does not belong to head");
  expect_usage_error(lapidary_program(command("gemm", "moe_text", {"--recompute", "block"})),
                     "--recompute");
  expect_error(lapidary_program(command("experts", "dense_text")), {"no experts"});
  expect_error(lapidary_program(command("step", "moe_text", {"--layers", "2"})),
               {"--layers", "multiple of 6"});
  expect_error(lapidary_program(command("head", "moe_text", {"--device", "tpu"})), {"tpu"});
  expect_error(lapidary_program({"bench", "head", "--config", "/no/such"}), {"/no/such"});
}

TEST(Inspect, PrintsTheConfigurationItself) {
  const ProcessResult named = lapidary_program({"inspect", "26b-a4b", "--print-config"});
  expect_success(named);
  EXPECT_EQ(nlohmann::json::parse(named.out).at("text_config").at("num_experts"), 128);
  const ProcessResult file = lapidary_program({"inspect", golden("e_text"), "--print-config"});
  EXPECT_EQ(file.out, read_file(golden("e_text") + "/config.json"));
}

}  // namespace
}  // namespace lapidary::test
