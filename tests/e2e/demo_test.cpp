#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/e2e/program.h"

namespace lapidary::test {
namespace {

// README.md states these figures.
constexpr double kFirstLoss = 8.35;
constexpr double kLastLoss = 3.7;
constexpr double kSecondsAtMost = 180.0;

int64_t parameters_of(const std::string& model) {
  const SafetensorsReader reader(model + "/model.safetensors");
  int64_t count = 0;
  for (const TensorEntry& entry : reader.entries()) {
    if (!contains(entry.name, "layer_scalar")) count += entry.shape.numel();
  }
  return count;
}

// The recipe as it is, but for the folder that it writes to.
TEST(Demo, LearnsWhatTheReadmeSays) {
  EXPECT_THAT(read_file(source_file("README.md")),
              ::testing::HasSubstr(
                  fmt::format("validation loss falls from {} to below {}", kFirstLoss, kLastLoss)));
  const TemporaryDirectory folder;
  const std::string run = folder.path() / "run";
  const ProcessResult result = run_process(
      lapidary_command({"train", "recipes/demo.yaml", "--checkpoint.checkpoint_dir=" + run}),
      {.directory = LAPIDARY_SOURCE_DIR, .timeout_seconds = 290.0});
  expect_success(result);
  EXPECT_LT(result.seconds, kSecondsAtMost);

  const auto losses = column(read_jsonl(run + "/validation.jsonl"), "val_loss");
  ASSERT_GE(losses.size(), 3U);
  EXPECT_NEAR(losses.front(), kFirstLoss, 0.05);
  EXPECT_LT(losses.back(), kLastLoss);
  EXPECT_THAT(result.out, ::testing::HasSubstr("--- sample 1"));
  EXPECT_THAT(result.out, ::testing::HasSubstr("--- sample 2"));

  const std::string model = run + "/LATEST/model/consolidated";
  const int64_t parameters = parameters_of(model);
  EXPECT_GE(parameters, 4'000'000);
  EXPECT_LE(parameters, 10'000'000);
  const ProcessResult answer = lapidary_program(
      {"generate", model, "--prompt", "Tom has 3 apples and buys 4 more. How many has he?",
       "--max-new-tokens", "24"});
  expect_success(answer);
  EXPECT_GT(answer.out.size(), 1U);
}

}  // namespace
}  // namespace lapidary::test
