#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "lapidary/core/gpu.h"
#include "tests/e2e/program.h"

// Recipes and data that cannot be trained on. Every one is refused before the first step, with one
// message, and what an earlier run left stays where it is.
namespace lapidary::test {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using ::testing::Not;

void expect_refused(const Workspace& work, const std::vector<std::string>& changes,
                    const std::vector<std::string>& fragments) {
  fs::create_directory(work.path("run"));
  work.write("run/training.jsonl", "earlier\n");
  const ProcessResult result = work.train(changes);
  expect_error(result, fragments);
  EXPECT_EQ(result.out, "");
  EXPECT_EQ(read_file(work.path("run/training.jsonl")), "earlier\n");
}

const std::string kFineRow =
    R"({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})"
    "\n";

// The third line of the training data, and of the validation data, is malformed.
void expect_row_refused(const std::string& row, const std::vector<std::string>& fragments) {
  const Workspace work;
  work.write("bad.jsonl", kFineRow + kFineRow + row + "\n" + kFineRow);
  std::vector<std::string> all = {"bad.jsonl:3"};
  all.insert(all.end(), fragments.begin(), fragments.end());
  expect_refused(work, {"--dataset.path_or_dataset=bad.jsonl"}, all);
  expect_refused(
      work, {"--validation_dataset.path_or_dataset=bad.jsonl", "--validation_dataset.split=train"},
      all);
}

TEST(BadData, LineThatIsNotJson) {
  expect_row_refused("{\"messages\": [", {"JSON"});
  expect_row_refused("\xff\xfe", {"JSON"});
}

TEST(BadData, RowsOfNoKnownKind) {
  expect_row_refused("[1, 2]", {"object"});
  expect_row_refused("{\"prompt\": \"a\"}", {"messages", "input_ids", "text"});
  expect_row_refused("{\"text\": 7}", {"text"});
}

TEST(BadData, ConversationsThatAreNone) {
  expect_row_refused(R"({"messages": []})", {"messages"});
  expect_row_refused(R"({"messages": [{"content": "a"}]})", {"messages[0]", "role"});
  expect_row_refused(R"({"messages": [{"role": "user"}]})", {"messages[0].content"});
  expect_row_refused(R"({"messages": [{"role": "user", "content": [{"type": "image"}]}]})",
                     {"messages[0].content[0]", "text"});
}

TEST(BadData, IdsOutsideTheVocabulary) {
  expect_row_refused(R"({"input_ids": [2, 4096], "labels": [2, 3]})", {"input_ids[1]", "4096"});
  expect_row_refused(R"({"input_ids": [2, -1], "labels": [2, 3]})", {"input_ids[1]", "-1"});
  expect_row_refused(R"({"input_ids": [2, 3], "labels": [2, 4096]})", {"labels[1]", "4096"});
  expect_row_refused(R"({"input_ids": [2, 1e30], "labels": [2, 3]})", {"input_ids[1]"});
  expect_row_refused(R"({"input_ids": [2, 99999999999999999999], "labels": [2, 3]})",
                     {"input_ids[1]"});
}

TEST(BadData, ListsOfDifferentLength) {
  expect_row_refused(R"({"input_ids": [2, 3], "labels": [2]})", {"labels", "1", "2"});
  expect_row_refused(R"({"input_ids": [], "labels": []})", {"no tokens"});
}

TEST(BadData, EmptyFiles) {
  const Workspace work;
  for (const char* text : {"", "\n\n  \n"}) {
    work.write("empty.jsonl", text);
    expect_refused(work, {"--dataset.path_or_dataset=empty.jsonl"}, {"empty.jsonl", "no rows"});
    expect_refused(work, {"--validation_dataset.path_or_dataset=empty.jsonl"}, {"empty.jsonl"});
  }
  expect_refused(work, {"--dataset.split=train[100:200]"}, {"chat.jsonl", "no rows"});
}

TEST(BadData, FilesThatAreNot) {
  const Workspace work;
  expect_refused(work, {"--dataset.path_or_dataset=nowhere.jsonl"}, {"nowhere.jsonl"});
  expect_refused(work, {"--dataset.path_or_dataset=."}, {"folder"});
  expect_refused(work, {"--dataset.tokenizer=nowhere"}, {"nowhere"});
}

TEST(BadData, SamplesThatAreAllTooLong) {
  const Workspace work;
  expect_refused(work, {"--dataset.max_length=4"}, {"chat.jsonl", "12", "max_length 4"});
}

TEST(BadData, LongSamplesAreCutOrLeftOutAsAsked) {
  const Workspace work;
  const ProcessResult dropped =
      work.train({"--dataset.max_length=26", "--lr_scheduler.lr_warmup_steps=0"});
  expect_success(dropped);
  EXPECT_THAT(dropped.out, HasSubstr("0 truncated"));
  EXPECT_THAT(dropped.out, Not(HasSubstr(" 0 dropped")));
  const ProcessResult cut = work.train(
      {"--dataset.max_length=26", "--dataset.truncate=true", "--lr_scheduler.lr_warmup_steps=0"});
  expect_success(cut);
  EXPECT_THAT(cut.out, HasSubstr("longest 26 tokens"));
  EXPECT_THAT(cut.out, HasSubstr("0 dropped"));
}

TEST(BadRecipe, MistakesAreReportedTogetherWithTheirLines) {
  const Workspace work;
  std::string text = read_file(work.path("tiny.yaml"));
  const auto replace = [&](const std::string& from, const std::string& to) {
    const size_t at = text.find(from);
    ASSERT_NE(at, std::string::npos) << from;
    text.replace(at, from.size(), to);
  };
  replace("  global_batch_size: 4", "  global_batch_size: 5");
  replace("  num_epochs: 2", "  num_epoch: 2");
  replace("  lr: 5.0e-3", "  lr: fast");
  work.write("tiny.yaml", text);
  const auto line_of = [&](const std::string& part) {
    const std::string before = text.substr(0, text.find(part));
    return "tiny.yaml:" + std::to_string(1 + std::count(before.begin(), before.end(), '\n'));
  };
  expect_refused(
      work, {},
      {"3 mistakes", line_of("global_batch_size: 5") + ": ", line_of("num_epoch: 2") + ": ",
       "step_scheduler.num_epochs?", line_of("lr: fast") + ": ", "\"fast\""});
}

TEST(BadRecipe, TextThatIsNotYaml) {
  const Workspace work;
  work.write("tiny.yaml", "seed: 7\nmodel: {a: [1, 2\noptimizer: ]\n");
  expect_refused(work, {}, {"tiny.yaml:", "YAML"});
  work.write("tiny.yaml", "");
  expect_refused(work, {}, {"tiny.yaml"});
  work.write("tiny.yaml", "- 1\n- 2\n");
  expect_refused(work, {}, {"tiny.yaml", "mapping"});
  work.write("tiny.yaml", "a: &a [*a, *a]\n");
  expect_refused(work, {}, {"tiny.yaml"});
}

TEST(BadRecipe, ParallelAxesAreRefusedBeforeAnythingIsRead) {
  const Workspace work;
  fs::remove(work.path("chat.jsonl"));
  fs::remove(work.path("tokenizer.json"));
  expect_refused(work, {"--distributed.tp_size=2"}, {"distributed.tp_size 2", "1"});
  expect_refused(work, {"--distributed.ep_size=4"}, {"distributed.ep_size 4"});
}

TEST(BadRecipe, DeviceThatIsNotThere) {
  const Workspace work;
  if (!gpu::unavailable().empty())
    expect_refused(work, {"--device=cuda"}, {"cuda", "use device: cpu"});
  expect_refused(work, {"--device=abacus"}, {"device", "abacus"});
}

TEST(BadRecipe, ModelFolderThatIsNone) {
  const Workspace work;
  const std::string text = read_file(work.path("tiny.yaml"));
  const size_t begin = text.find("model:\n"), end = text.find("dataset:\n");
  work.write("tiny.yaml", text.substr(0, begin) +
                              "model:\n  pretrained_model_name_or_path: nowhere\n" +
                              text.substr(end));
  expect_refused(work, {}, {"nowhere"});
  fs::create_directory(work.path("nowhere"));
  expect_refused(work, {}, {"nowhere/config.json"});
}

TEST(BadRecipe, OutputFolderThatCannotBeMade) {
  const Workspace work;
  expect_refused(work, {"--checkpoint.checkpoint_dir=chat.jsonl/run"}, {"chat.jsonl/run"});
  expect_refused(work, {"--checkpoint.checkpoint_dir=/proc/lapidary"}, {"/proc/lapidary"});
}

TEST(BadRecipe, LossThatIsNotFinite) {
  const Workspace work;
  const ProcessResult result =
      work.train({"--optimizer.lr=1e38", "--lr_scheduler.init_lr=1e38",
                  "--step_scheduler.val_every_steps=1000", "--step_scheduler.ckpt_every_steps=1"});
  expect_error(result, {"step ", "not finite", "lower optimizer.lr"});
  for (const auto& row : work.training_log()) EXPECT_TRUE(row.at("loss").is_number());
}

}  // namespace
}  // namespace lapidary::test
