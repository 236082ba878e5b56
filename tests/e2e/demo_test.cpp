#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/e2e/program.h"

// recipes/demo.yaml as it is: what README says of it holds.
namespace lapidary::test {
namespace {

// README: "validation loss falls from 8.35 to below 3.7".
constexpr double kFirstLoss = 8.35;
constexpr double kLastLoss = 3.7;
constexpr double kMaxSeconds = 180.0;  // on two cores

TEST(Demo, DoesWhatTheReadmeSays) {
  EXPECT_THAT(read_file(source_file("README.md")),
              ::testing::HasSubstr("validation loss falls from 8.35 to below 3.7"));
  const TemporaryDirectory folder;
  const std::string run = (folder.path() / "run").string();
  const ProcessResult result = run_process(
      lapidary_command({"train", "recipes/demo.yaml", "--checkpoint.checkpoint_dir=" + run}),
      {.directory = LAPIDARY_SOURCE_DIR, .timeout_seconds = 550.0});
  expect_success(result);

  const std::vector<double> losses =
      column(read_jsonl(folder.path() / "run" / "validation.jsonl"), "val_loss");
  EXPECT_NEAR(losses.front(), kFirstLoss, 0.01);
  EXPECT_LT(losses.back(), kLastLoss);
  EXPECT_LT(result.seconds, kMaxSeconds);

  const size_t at = result.out.find("model: ");
  ASSERT_NE(at, std::string::npos);
  const double millions = std::stod(result.out.substr(at + 7));
  EXPECT_GE(millions, 4.0);
  EXPECT_LE(millions, 10.0);
  EXPECT_THAT(result.out, ::testing::HasSubstr("--- sample 2"));

  const std::string model = run + "/LATEST/model/consolidated";
  const ProcessResult answer = lapidary_program(
      {"generate", model, "--prompt", "How many legs have two cats?", "--max-new-tokens", "8"});
  expect_success(answer);
  EXPECT_GT(answer.out.size(), 1U);
}

}  // namespace
}  // namespace lapidary::test
