#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/e2e/program.h"

namespace lapidary::test {
namespace {

using ::testing::HasSubstr;

struct Command {
  const char* name;
  std::vector<std::string> options;
};

const std::vector<Command>& commands() {
  static const std::vector<Command> all = {
      {"train", {"recipe", "--section.name=value"}},
      {"generate",
       {"--prompt", "--input-ids", "--raw", "--max-new-tokens", "--temperature", "--top-k",
        "--top-p", "--seed", "--print-ids", "--ignore-eos", "--dtype", "--device"}},
      {"trace", {"--inputs", "--output", "--grads", "--recompute", "--dtype", "--device"}},
      {"tokenize", {"--tokenizer"}},
      {"inspect", {"--rows", "--seq-len", "--dtype", "--device", "--print-config"}},
      {"recipe", {"--keys", "--section.name=value"}},
      {"bench",
       {"--config", "--batch", "--seq", "--prompt", "--repeat", "--layers", "--dtype", "--device",
        "--recompute", "--profile"}},
  };
  return all;
}

TEST(Commands, HelpNamesEveryOption) {
  const ProcessResult top = lapidary_program({"--help"});
  expect_success(top);
  for (const Command& command : commands()) {
    EXPECT_THAT(top.out, HasSubstr(command.name));
    const ProcessResult help = lapidary_program({command.name, "--help"});
    expect_success(help);
    EXPECT_EQ(help.err, "");
    for (const std::string& option : command.options) EXPECT_THAT(help.out, HasSubstr(option));
  }
}

TEST(Commands, VersionIsANumber) {
  const ProcessResult version = lapidary_program({"--version"});
  expect_success(version);
  EXPECT_THAT(version.out, ::testing::MatchesRegex("[0-9]+\\.[0-9]+\\.[0-9]+\n"));
}

TEST(Commands, UsageErrorsExitWithTwo) {
  expect_usage_error(lapidary_program({}), "subcommand");
  expect_usage_error(lapidary_program({"polish"}), "subcommand");
  expect_usage_error(lapidary_program({"train"}), "recipe");
  expect_usage_error(lapidary_program({"generate", "m"}), "--prompt or --input-ids");
  expect_usage_error(lapidary_program({"generate", "m", "--prompt", "a", "--input-ids", "1"}),
                     "--input-ids");
  expect_usage_error(lapidary_program({"generate", "m", "--input-ids", "1", "--dtype", "int8"}),
                     "int8");
  expect_usage_error(lapidary_program({"generate", "m", "--input-ids", "1", "--top-p", "2"}),
                     "--top-p");
  expect_usage_error(lapidary_program({"generate", "m", "--input-ids", "1", "--colour"}),
                     "--colour");
  expect_usage_error(lapidary_program({"trace", "m"}), "--inputs");
  expect_usage_error(
      lapidary_program({"trace", "m", "--inputs", "i", "--output", "o", "--recompute", "all"}),
      "--recompute");
  expect_usage_error(lapidary_program({"tokenize"}), "--tokenizer");
  expect_usage_error(lapidary_program({"inspect", "31b", "--rows", "0"}), "--rows");
  expect_usage_error(lapidary_program({"recipe"}), "recipe");
}

TEST(Commands, FailuresLeaveStandardOutputEmpty) {
  const std::vector<std::vector<std::string>> failing = {
      {"train", "/no/such.yaml"},
      {"generate", "/no/such", "--input-ids", "1"},
      {"trace", "/no/such", "--inputs", "/no/such", "--output", "/no/such"},
      {"tokenize", "--tokenizer", "/no/such"},
      {"inspect", "/no/such"},
      {"recipe", "/no/such.yaml"},
      {"bench", "gemm", "--config", "/no/such"}};
  for (const auto& arguments : failing) {
    const ProcessResult result = lapidary_program(arguments);
    expect_error(result, {"/no/such"});
    EXPECT_EQ(result.out, "") << arguments[0];
  }
}

TEST(Tokenize, GivesTheRecordedIds) {
  const auto fixture =
      nlohmann::json::parse(read_file(source_file("tests/fixtures/text/tokenize_small.json")));
  std::string input;
  for (const auto& sample : fixture.at("cases")) {
    input += nlohmann::json{{"text", sample.at("text")}}.dump() + "\n";
  }
  const ProcessResult result = lapidary_program(
      {"tokenize", "--tokenizer", source_file("tests/fixtures/text/small").string()},
      {.input = input});
  expect_success(result);
  const std::vector<std::string> lines = lines_of(result.out);
  ASSERT_EQ(lines.size(), fixture.at("cases").size());
  for (size_t i = 0; i < lines.size(); ++i) {
    const auto row = nlohmann::json::parse(lines[i]);
    EXPECT_EQ(row.at("ids"), fixture.at("cases")[i].at("ids")) << "case " << i;
    EXPECT_EQ(row.at("decoded"), fixture.at("cases")[i].at("decoded")) << "case " << i;
  }
}

TEST(Tokenize, NamesTheLineThatIsMalformed) {
  const std::string tokenizer = source_file("tests/fixtures/text/small/tokenizer.json").string();
  const auto run = [&](const std::string& input) {
    return lapidary_program({"tokenize", "--tokenizer", tokenizer}, {.input = input});
  };
  const ProcessResult second = run("{\"text\": \"fine\"}\n{\"txt\": 1}\n");
  expect_error(second, {"standard input:2", "\"text\""});
  EXPECT_EQ(lines_of(second.out).size(), 1U) << "what came before the line is still answered";
  expect_error(run("{\"text\": 3}\n"), {"standard input:1"});
  expect_error(run("\n\nhello\n"), {"standard input:3", "JSON object"});
  expect_error(run("{\"text\": \"\xff\"}\n"), {"standard input:1"});
  expect_error(run("{\"text\": \"\\ud800\"}\n"), {"standard input:1"});
}

int64_t number_after(const std::string& text, const std::string& label) {
  const size_t at = text.find("\n  " + label + " ");
  EXPECT_NE(at, std::string::npos) << label;
  return at == std::string::npos ? -1 : std::stoll(text.substr(at + 3 + label.size()));
}

double activations(const std::string& text, const std::string& policy) {
  const std::string label = "recompute " + policy;
  const size_t at = text.find("activations ", text.find(label));
  EXPECT_NE(at, std::string::npos) << label;
  return std::stod(text.substr(at + std::string("activations ").size()));
}

// As transformers counts the text parameters of the published configurations.
TEST(Inspect, CountsTheParametersOfTheNamedSizes) {
  const std::pair<const char*, std::pair<int64_t, int64_t>> sizes[] = {
      {"26b-a4b", {25'233'141'760, 30}}, {"31b", {30'697'345'280, 60}}};
  for (const auto& [name, counts] : sizes) {
    const ProcessResult result = lapidary_program({"inspect", name});
    expect_success(result);
    EXPECT_EQ(number_after(result.out, "total"), counts.first) << name;
    EXPECT_EQ(number_after(result.out, "and buffers"), counts.second) << name;
    EXPECT_GT(activations(result.out, "none"), activations(result.out, "light")) << name;
    EXPECT_GT(activations(result.out, "light"), activations(result.out, "block")) << name;
  }
}

TEST(Inspect, PartsSumToTheTotalOfAFolder) {
  for (const char* name : {"moe_text", "dense_text", "e_text"}) {
    const ProcessResult result = lapidary_program({"inspect", golden(name)});
    expect_success(result);
    int64_t parts = 0, in_file = 0;
    bool counting = false;
    for (const std::string& line : lines_of(result.out)) {
      if (contains(line, "  total ")) break;
      if (counting) parts += std::stoll(line.substr(line.find_last_of(' ')));
      counting = counting || line == "parameters";
    }
    const SafetensorsReader reader(golden(name) + "/model.safetensors");
    for (const TensorEntry& entry : reader.entries()) in_file += entry.shape.numel();
    EXPECT_EQ(parts, number_after(result.out, "total")) << name;
    EXPECT_EQ(parts + number_after(result.out, "and buffers"), in_file) << name;
  }
}

TEST(Inspect, MemoryGrowsWithRowsAndTokens) {
  const auto none = [](const std::vector<std::string>& more) {
    std::vector<std::string> arguments = {"inspect", "26b-a4b"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    const ProcessResult result = lapidary_program(arguments);
    expect_success(result);
    return activations(result.out, "none");
  };
  const double one = none({});
  EXPECT_NEAR(none({"--rows", "2"}), 2.0 * one, 0.05 * one);
  EXPECT_LT(none({"--seq-len", "1024"}), 0.3 * one);
}

TEST(RecipeCommand, PrintsARecipeThatReadsBackAsTheSame) {
  const Workspace work;
  const ProcessResult first = work.run({"recipe", "tiny.yaml", "--optimizer.lr=3e-4"});
  expect_success(first);
  EXPECT_THAT(first.out, HasSubstr("0.0003"));
  work.write("printed.yaml", first.out);
  const ProcessResult second = work.run({"recipe", "printed.yaml"});
  expect_success(second);
  EXPECT_EQ(second.out, first.out);
}

TEST(RecipeCommand, ListsTheKeys) {
  const ProcessResult keys = lapidary_program({"recipe", "--keys"});
  expect_success(keys);
  for (const char* key : {"step_scheduler.global_batch_size", "model._target_", "optimizer.lr",
                          "checkpoint.checkpoint_dir", "distributed.tp_size"}) {
    EXPECT_THAT(keys.out, HasSubstr(key));
  }
}

}  // namespace
}  // namespace lapidary::test
