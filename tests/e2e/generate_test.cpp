#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "tests/e2e/program.h"

namespace lapidary::test {
namespace {

ProcessResult generate(const std::string& model, const std::vector<std::string>& more) {
  std::vector<std::string> arguments = {"generate", model};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return lapidary_program(arguments);
}

// New ids after a short prompt, with an end that never comes.
std::string ids_of(const std::vector<std::string>& more) {
  std::vector<std::string> arguments = {"--input-ids", "2,5,7", "--print-ids", "--ignore-eos"};
  arguments.insert(arguments.end(), more.begin(), more.end());
  const ProcessResult result = generate(golden("moe_text"), arguments);
  expect_success(result);
  return result.out;
}

TEST(Generate, GreedyTokensAreTheGoldenOnes) {
  for (const char* name : {"moe_text", "dense_text", "e_text"}) {
    const std::string file = golden(name) + "/generate.safetensors";
    const std::vector<int64_t> expected = load_ids(file, "tokens");
    const ProcessResult result = generate(
        golden(name), {"--input-ids", joined(load_ids(file, "prompt")), "--print-ids",
                       "--ignore-eos", "--max-new-tokens", std::to_string(expected.size())});
    expect_success(result);
    EXPECT_EQ(result.out, joined(expected) + "\n") << name;
  }
}

TEST(Generate, StopsAtTheEndOfATurn) {
  // Greedy ids, and the same model told that the third of them ends a turn.
  const Workspace work;
  const std::string model = work.copy_model("moe_text");
  const std::vector<std::string> arguments = {
      "generate", model, "--input-ids", "2,5,7", "--print-ids", "--max-new-tokens", "6"};
  std::vector<std::string> ignoring = arguments;
  ignoring.emplace_back("--ignore-eos");
  const ProcessResult all = work.run(ignoring);
  expect_success(all);
  std::vector<int64_t> ids;
  std::istringstream stream(all.out);
  for (std::string id; std::getline(stream, id, ',');) ids.push_back(std::stoll(id));
  ASSERT_EQ(ids.size(), 6U);
  auto config = nlohmann::json::parse(read_file(work.path("model/config.json")));
  config["text_config"]["eos_token_id"] = ids[2];
  work.write("model/config.json", config.dump());
  std::vector<int64_t> before;
  for (const int64_t id : ids) {
    if (id == ids[2]) break;
    before.push_back(id);
  }
  const ProcessResult stopped = work.run(arguments);
  expect_success(stopped);
  EXPECT_EQ(stopped.out, joined(before) + "\n");
}

TEST(Generate, SeedDecidesWhatIsSampled) {
  const auto sampled = [](const char* seed) {
    return ids_of({"--temperature", "1", "--max-new-tokens", "24", "--seed", seed});
  };
  EXPECT_EQ(sampled("1"), sampled("1"));
  EXPECT_NE(sampled("1"), sampled("2"));
}

TEST(Generate, TopKAndTopPNarrowToTheGreedyChoice) {
  const std::string greedy = ids_of({"--max-new-tokens", "12"});
  EXPECT_EQ(ids_of({"--temperature", "5", "--top-k", "1", "--max-new-tokens", "12"}), greedy);
  EXPECT_EQ(ids_of({"--temperature", "5", "--top-p", "1e-9", "--max-new-tokens", "12"}), greedy);
  EXPECT_EQ(ids_of({"--temperature", "1e-4", "--max-new-tokens", "12"}), greedy);
  EXPECT_NE(ids_of({"--temperature", "5", "--max-new-tokens", "12"}), greedy);
}

TEST(Generate, TopKTwoSamplesTwoFirstTokens) {
  std::set<std::string> seen;
  for (int seed = 0; seed < 24; ++seed) {
    seen.insert(ids_of({"--temperature", "50", "--top-k", "2", "--max-new-tokens", "1", "--seed",
                        std::to_string(seed)}));
  }
  EXPECT_EQ(seen.size(), 2U);
}

TEST(Generate, TakesTheModelInEitherType) {
  const std::string wide = ids_of({"--dtype", "fp32", "--max-new-tokens", "4"});
  EXPECT_EQ(wide, ids_of({"--max-new-tokens", "4"}));  // the checkpoint's own type
  EXPECT_EQ(std::count(wide.begin(), wide.end(), ','), 3);
  const std::string narrow = ids_of({"--dtype", "bf16", "--max-new-tokens", "4"});
  EXPECT_EQ(std::count(narrow.begin(), narrow.end(), ','), 3);
}

TEST(Generate, NoNewTokensIsAnEmptyAnswer) { EXPECT_EQ(ids_of({"--max-new-tokens", "0"}), "\n"); }

TEST(Generate, StreamsTextOfATrainedModel) {
  const Workspace work;
  expect_success(work.train({"--step_scheduler.max_steps=2", "--lr_scheduler.lr_warmup_steps=1"}));
  const std::vector<std::string> arguments = {
      "generate",     kLatestModel,       "--prompt", "How many legs has a cat?",
      "--ignore-eos", "--max-new-tokens", "12"};
  const ProcessResult text = work.run(arguments);
  expect_success(text);
  EXPECT_EQ(text.err, "");
  ASSERT_GT(text.out.size(), 1U);
  EXPECT_EQ(text.out.back(), '\n');
  // The ids of the same run, decoded by hand: piece by piece is the same as all at once.
  std::vector<std::string> with_ids = arguments;
  with_ids.emplace_back("--print-ids");
  const ProcessResult ids = work.run(with_ids);
  expect_success(ids);
  EXPECT_EQ(std::count(ids.out.begin(), ids.out.end(), ','), 11);
  const ProcessResult raw = work.run({"generate", kLatestModel, "--prompt", "legs", "--raw",
                                      "--print-ids", "--max-new-tokens", "3"});
  expect_success(raw);
  EXPECT_NE(raw.out, ids.out);
}

TEST(Generate, RefusesPromptsItCannotRead) {
  const std::string model = golden("moe_text");
  expect_error(generate(model, {"--prompt", "hello"}), {"tokenizer.json", "--input-ids"});
  expect_error(generate(model, {"--input-ids", "2,x"}), {"--input-ids", "2,x"});
  expect_error(generate(model, {"--input-ids", "2,99999999999999999999"}), {"--input-ids"});
  expect_error(generate(model, {"--input-ids", "2,300"}), {"300", "vocabulary"});
  expect_error(generate(model, {"--input-ids", "2,-1"}), {"-1", "vocabulary"});
  expect_error(generate(model, {"--input-ids", "2", "--device", "cuda"}),
               {"cuda", "use device cpu"});
}

}  // namespace
}  // namespace lapidary::test
