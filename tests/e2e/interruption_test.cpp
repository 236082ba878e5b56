#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <functional>
#include <regex>
#include <thread>

#include "tests/e2e/program.h"

namespace lapidary::test {
namespace {

namespace fs = std::filesystem;

// A run that goes on until it is stopped.
class EndlessRun {
 public:
  explicit EndlessRun(const std::vector<std::string>& changes = {}, ProcessOptions options = {}) {
    options.directory = work_.path("").string();
    options.environment = {"OMP_NUM_THREADS=1"};
    std::vector<std::string> arguments = {"train", "tiny.yaml",
                                          "--step_scheduler.num_epochs=1000000",
                                          "--step_scheduler.val_every_steps=1000000"};
    arguments.insert(arguments.end(), changes.begin(), changes.end());
    process_.emplace(lapidary_command(arguments), options);
  }

  const Workspace& work() const { return work_; }
  Process& process() { return *process_; }

  bool wait_for(const std::string& text) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(60);
    while (std::chrono::steady_clock::now() < end) {
      if (contains(process_->output(), text)) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    return false;
  }

 private:
  Workspace work_;
  std::optional<Process> process_;
};

int64_t last_printed_step(const std::string& out) {
  int64_t last = -1;
  for (const std::string& line : lines_of(out)) {
    if (line.rfind("step ", 0) == 0) last = std::max<int64_t>(last, std::stoll(line.substr(5)));
  }
  return last;
}

TEST(Interruption, KilledRunHasLoggedEveryFinishedStep) {
  EndlessRun run({"--step_scheduler.ckpt_every_steps=1000000"});
  ASSERT_TRUE(run.wait_for("\nstep 20 "));
  run.process().send(SIGKILL);
  const ProcessResult result = run.process().wait();
  EXPECT_EQ(result.signal, SIGKILL);
  std::vector<std::string> lines = lines_of(read_file(run.work().path("run/training.jsonl")));
  const int64_t printed = last_printed_step(result.out);
  ASSERT_GE(printed, 20);
  ASSERT_GT(static_cast<int64_t>(lines.size()), printed);
  for (int64_t i = 0; i <= printed; ++i) {
    const auto row = nlohmann::json::parse(lines[static_cast<size_t>(i)]);
    EXPECT_EQ(row.at("step"), i);
    EXPECT_TRUE(row.at("loss").is_number());
  }
}

TEST(Interruption, KilledRunLeavesItsLastCheckpointWhole) {
  EndlessRun run({"--step_scheduler.ckpt_every_steps=5"});
  ASSERT_TRUE(run.wait_for("\nstep 23 "));
  run.process().send(SIGKILL);
  run.process().wait();
  expect_success(run.work().run(
      {"generate", kLatestModel, "--input-ids", "2,5", "--print-ids", "--max-new-tokens", "2"}));
  // Starting again in the same folder is possible, and moves what is there.
  expect_success(run.work().train());
  EXPECT_TRUE(fs::exists(run.work().path("run/previous-1/LATEST/losses.json")));
}

void expect_saved_on(int signal) {
  EndlessRun run({"--step_scheduler.ckpt_every_steps=1000000"});
  ASSERT_TRUE(run.wait_for("\nstep 3 "));
  run.process().send(signal);
  const ProcessResult result = run.process().wait();
  expect_success(result);
  EXPECT_THAT(result.out, ::testing::HasSubstr("stopped by a signal"));
  const auto log = run.work().training_log();
  const std::string name = "epoch_" + std::to_string(log.back().at("epoch").get<int64_t>()) +
                           "_step_" + std::to_string(log.back().at("step").get<int64_t>());
  EXPECT_EQ(fs::read_symlink(run.work().path("run/LATEST")), name);
  expect_success(run.work().run(
      {"generate", kLatestModel, "--input-ids", "2,5", "--print-ids", "--max-new-tokens", "2"}));
}

TEST(Interruption, TerminationSavesACheckpoint) { expect_saved_on(SIGTERM); }

TEST(Interruption, InterruptSavesACheckpoint) { expect_saved_on(SIGINT); }

TEST(Interruption, FullDiskKeepsTheEarlierCheckpoint) {
  ProcessOptions options;
  options.max_file_bytes = uint64_t{1} << 30;
  EndlessRun run({"--step_scheduler.ckpt_every_steps=50"}, options);
  ASSERT_TRUE(run.wait_for("checkpoint: "));
  // A model is 0.6 MB; the logs of a few hundred steps are far less.
  run.process().limit_file_bytes(uint64_t{400} << 10);
  const ProcessResult result = run.process().wait();
  expect_error(result, {"model.safetensors", "can't be written"});
  const fs::path latest = fs::read_symlink(run.work().path("run/LATEST"));
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(run.work().path("run"))) {
    names.push_back(entry.path().filename());
  }
  EXPECT_THAT(names, ::testing::Contains(latest.string()));
  for (const std::string& name : names) {
    EXPECT_THAT(name, ::testing::Not(::testing::HasSubstr("incomplete")));
    if (name.rfind("epoch_", 0) != 0) continue;
    expect_success(run.work().run({"generate", "run/" + name + "/model/consolidated", "--input-ids",
                                   "2,5", "--print-ids", "--max-new-tokens", "1"}));
  }
  // Every step that was finished is in the log.
  EXPECT_GE(static_cast<int64_t>(run.work().training_log().size()),
            last_printed_step(result.out) + 1);
}

TEST(Interruption, FullDiskLeavesNoHalfTrace) {
  const TemporaryDirectory folder;
  ProcessOptions options;
  options.max_file_bytes = 4096;
  const std::string output = folder.path() / "out.safetensors";
  const ProcessResult result =
      lapidary_program({"trace", golden("moe_text"), "--inputs",
                        golden("moe_text") + "/inputs.safetensors", "--output", output, "--grads"},
                       options);
  expect_error(result, {"out.safetensors", "can't be written"});
  EXPECT_TRUE(fs::is_empty(folder.path()));
}

}  // namespace
}  // namespace lapidary::test
