#include "lapidary/train/checkpoints.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "lapidary/checkpoint/hf.h"
#include "lapidary/core/error.h"
#include "tests/support/tensors.h"
#include "tests/support/thread_group.h"
#include "tests/unit/checkpoint/temporary_directory.h"

namespace lapidary {
namespace {

namespace fs = std::filesystem;
using lapidary::testing::read_bytes;
using lapidary::testing::TemporaryDirectory;
using lapidary::testing::write_bytes;
using ::testing::AllOf;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::UnorderedElementsAre;

constexpr int64_t kElements = 1000;

using Body = std::function<void(int64_t, ProcessGroup&)>;

std::string alone(const Body& body) { return test::errors_of_ranks(1, body)[0]; }

std::vector<std::string> names(const std::string& directory) {
  std::vector<std::string> out;
  for (const auto& entry : fs::directory_iterator(directory))
    out.push_back(entry.path().filename().string());
  return out;
}

// One tensor of `kElements` times `value`; rank `broken` fails.
void save(CheckpointStore& store, ProcessGroup& group, int64_t steps, float value,
          int64_t broken = -1) {
  const Interval part = chunk_of(kElements, group.size(), group.rank());
  const std::vector<float> numbers(static_cast<size_t>(part.size()), value);
  std::vector<float> memory = numbers;
  CheckpointStore::Contents contents;
  contents.step = steps - 1;
  contents.config_yaml = "seed: 1\n";
  contents.losses_json = "{}\n";
  contents.state = TrainingState{.step = steps, .optimizer_steps = steps, .total_steps = 100};
  contents.optimizer_state = [&]() -> std::vector<StateTensor> {
    if (group.rank() == broken) fail("memory", "is gone");
    return {{.name = "w.exp_avg",
             .shape = {kElements},
             .part = part,
             .value = Tensor(memory.data(), Dtype::f32, {part.size()})}};
  };
  const auto save_model = [&](const std::string& directory) {
    write_hf_model(directory,
                   {{.name = "w", .shape = {kElements}, .data = numbers.data(), .part = part}},
                   {.files = {{"config.json", "{}"}}}, group);
  };
  store.save(save_model, contents);
}

float first_number(const std::string& model) {
  float x = 0.0F;
  convert_range(HfReader(model).at("w"), 0, Tensor(&x, Dtype::f32, {1}));
  return x;
}

std::string log_of(int from, int to) {
  std::string text;
  for (int i = from; i < to; ++i) text += "{\"step\":" + std::to_string(i) + ",\"loss\":1.5}\n";
  return text;
}

TEST(CheckpointStore, RanksSaveOneCheckpoint) {
  for (const int64_t ranks : {1, 3, 4}) {
    const TemporaryDirectory dir;
    EXPECT_THAT(test::errors_of_ranks(ranks,
                                      [&](int64_t, ProcessGroup& group) {
                                        CheckpointStore store(dir / "run", group);
                                        save(store, group, 3, 3.0F);
                                        save(store, group, 5, 5.0F);
                                      }),
                Each(""));
    EXPECT_THAT(names(dir / "run"),
                UnorderedElementsAre("LATEST", "epoch_0_step_2", "epoch_0_step_4"));
    EXPECT_EQ(fs::read_symlink(dir / "run/LATEST"), "epoch_0_step_4");
    EXPECT_THAT(names(dir / "run/LATEST/"),
                UnorderedElementsAre("config.yaml", "losses.json", "state.json", "model", "optim"));
    EXPECT_EQ(first_number(dir / "run/epoch_0_step_2/model/consolidated"), 3.0F);
    EXPECT_EQ(HfReader(dir / "run/LATEST/optim", "optimizer").at("w.exp_avg").shape,
              (Shape{kElements}));
  }
}

TEST(CheckpointStore, AFailureOfARankLeavesTheEarlierCheckpoint) {
  const TemporaryDirectory dir;
  for (int64_t broken = 0; broken < 3; ++broken) {
    const auto said = test::errors_of_ranks(3, [&](int64_t, ProcessGroup& group) {
      CheckpointStore store(dir / "run", group);
      save(store, group, 3, 3.0F);
      save(store, group, 5, 5.0F, broken);
    });
    EXPECT_THAT(said, Each(HasSubstr("memory: is gone")));
    EXPECT_EQ(said[static_cast<size_t>(broken)], "memory: is gone");
    EXPECT_EQ(fs::read_symlink(dir / "run/LATEST"), "epoch_0_step_2");
    EXPECT_FALSE(fs::exists(dir / "run/epoch_0_step_4"));
    EXPECT_FALSE(fs::exists(dir / "run/epoch_0_step_4.incomplete"));
  }
  EXPECT_TRUE(fs::exists(dir / "run/previous-2/epoch_0_step_2"));
}

// Three checkpoints, logs of eight steps, and what a save that was killed left.
void make_run(const std::string& folder) {
  ASSERT_EQ(alone([&](int64_t, ProcessGroup& group) {
              CheckpointStore store(folder, group);
              for (const int64_t steps : {2, 4, 6}) save(store, group, steps, 1.0F);
            }),
            "");
  write_bytes(folder + "/training.jsonl", log_of(0, 8) + "{\"step\":8,\"lo");
  write_bytes(folder + "/validation.jsonl", log_of(0, 1) + log_of(5, 6) + log_of(7, 8));
  fs::create_directories(folder + "/epoch_0_step_7.incomplete/model");
}

TEST(CheckpointStore, ResumesFromTheLatest) {
  const TemporaryDirectory dir;
  const std::string folder = dir / "run";
  make_run(folder);
  EXPECT_THAT(test::errors_of_ranks(3,
                                    [&](int64_t, ProcessGroup& group) {
                                      const auto found = find_checkpoint(folder, "LATEST", group);
                                      ASSERT_TRUE(found);
                                      EXPECT_EQ(found->state.step, 6);
                                      EXPECT_TRUE(found->in_folder);
                                      EXPECT_EQ(found->directory,
                                                fs::canonical(folder).string() + "/epoch_0_step_5");
                                      EXPECT_EQ(first_number(found->model_directory()), 1.0F);
                                      const CheckpointStore store(folder, group, found);
                                      EXPECT_EQ(store.moved_to(), "");
                                    }),
              Each(""));
  EXPECT_EQ(read_bytes(folder + "/training.jsonl"), log_of(0, 6));
  EXPECT_EQ(read_bytes(folder + "/validation.jsonl"), log_of(0, 1) + log_of(5, 6));
  EXPECT_THAT(names(folder),
              UnorderedElementsAre("LATEST", "epoch_0_step_1", "epoch_0_step_3", "epoch_0_step_5",
                                   "training.jsonl", "validation.jsonl"));
}

TEST(CheckpointStore, PassesOverWhatIsNotComplete) {
  const TemporaryDirectory dir;
  const std::string folder = dir / "run";
  make_run(folder);
  const auto latest = [&] {
    SelfGroup group;
    return *find_checkpoint(folder, "LATEST", group);
  };
  // LATEST points to nothing, or to a checkpoint that was cut off.
  fs::remove(folder + "/LATEST");
  fs::create_directory_symlink("epoch_0_step_9", folder + "/LATEST");
  EXPECT_EQ(latest().state.step, 6);
  EXPECT_THAT(latest().messages, ElementsAre("epoch_0_step_9 is passed over: is not a directory"));
  const std::string file = folder + "/epoch_0_step_5/optim/optimizer.safetensors";
  fs::resize_file(file, fs::file_size(file) - 1);
  EXPECT_EQ(latest().state.step, 4);
  EXPECT_EQ(latest().messages.size(), 2U);
  fs::remove(folder + "/LATEST");
  write_bytes(folder + "/LATEST.txt", "epoch_0_step_1\n");
  EXPECT_EQ(latest().state.step, 2);  // what it names, not the highest
  write_bytes(folder + "/epoch_0_step_1/state.json", "{}");
  EXPECT_EQ(latest().state.step, 4);
  fs::remove(folder + "/epoch_0_step_3/state.json");
  const auto said = test::errors_of_ranks(
      2, [&](int64_t, ProcessGroup& group) { find_checkpoint(folder, "LATEST", group); });
  EXPECT_THAT(said, Each(AllOf(HasSubstr("no complete checkpoint"), HasSubstr("epoch_0_step_1: "),
                               HasSubstr("epoch_0_step_3: has no state.json"),
                               HasSubstr("epoch_0_step_5: "))));
}

TEST(CheckpointStore, TakesANameOrAPath) {
  const TemporaryDirectory dir;
  const std::string folder = dir / "run";
  make_run(folder);
  const auto find = [&](const std::string& in, const std::string& what) {
    SelfGroup group;
    return find_checkpoint(in, what, group);
  };
  EXPECT_FALSE(find(folder, ""));
  EXPECT_EQ(find(folder, "epoch_0_step_1")->state.step, 2);
  EXPECT_TRUE(find(folder, folder + "/epoch_0_step_3")->in_folder);
  EXPECT_TRUE(find(folder, folder + "/LATEST")->in_folder);
  EXPECT_FALSE(find(dir / "other", folder + "/epoch_0_step_3")->in_folder);
  for (const std::string what : {"epoch_0_step_2", "epoch_0_step_7.incomplete", "nothing"}) {
    const std::string said = alone([&](int64_t, ProcessGroup&) { find(folder, what); });
    EXPECT_THAT(said, AllOf(HasSubstr("restore_from: " + what), HasSubstr("is not a directory"),
                            HasSubstr("epoch_0_step_5: complete")));
  }
  EXPECT_THAT(alone([&](int64_t, ProcessGroup&) { find(dir / "none", "LATEST"); }),
              HasSubstr("there is no checkpoint in"));
  EXPECT_THAT(
      alone([&](int64_t, ProcessGroup&) { find(folder, folder + "/epoch_0_step_7.incomplete"); }),
      HasSubstr("is not finished"));
}

TEST(CheckpointStore, RepeatedStepsReplaceTheirCheckpoint) {
  const TemporaryDirectory dir;
  const std::string folder = dir / "run";
  make_run(folder);
  EXPECT_THAT(test::errors_of_ranks(2,
                                    [&](int64_t, ProcessGroup& group) {
                                      const auto found =
                                          find_checkpoint(folder, "epoch_0_step_1", group);
                                      CheckpointStore store(folder, group, found);
                                      save(store, group, 4, 44.0F);
                                    }),
              Each(""));
  EXPECT_EQ(read_bytes(folder + "/training.jsonl"), log_of(0, 2));
  EXPECT_EQ(first_number(folder + "/epoch_0_step_3/model/consolidated"), 44.0F);
  EXPECT_EQ(fs::read_symlink(folder + "/LATEST"), "epoch_0_step_3");
  EXPECT_FALSE(fs::exists(folder + "/epoch_0_step_3.incomplete"));
}

TEST(CheckpointStore, ACheckpointFromElsewhereBeginsANewFolder) {
  const TemporaryDirectory dir;
  make_run(dir / "run");
  make_run(dir / "other");
  SelfGroup group;
  const auto found = find_checkpoint(dir / "other", dir / "run/epoch_0_step_1", group);
  const CheckpointStore store(dir / "other", group, found);
  EXPECT_EQ(store.moved_to(), "previous-1");
  EXPECT_THAT(names(dir / "other"), ElementsAre("previous-1"));
  EXPECT_TRUE(fs::exists(dir / "run/epoch_0_step_7.incomplete"));  // not ours to remove
}

TEST(CutLog, KeepsFinishedStepsAlone) {
  const TemporaryDirectory dir;
  const std::string path = dir / "training.jsonl";
  cut_log(path, 3);
  EXPECT_FALSE(fs::exists(path));
  write_bytes(path, log_of(0, 5));
  const auto before = fs::last_write_time(path);
  cut_log(path, 5);
  EXPECT_EQ(fs::last_write_time(path), before);  // nothing to cut
  write_bytes(path, log_of(0, 2) + "\n{\"step\":1\n[1]\n{\"step\":\"1\"}\n{}\n" + log_of(2, 5));
  cut_log(path, 4);
  EXPECT_EQ(read_bytes(path), log_of(0, 4));
  cut_log(path, 0);
  EXPECT_EQ(read_bytes(path), "");
  EXPECT_EQ(dir.count(), 1U);
}

}  // namespace
}  // namespace lapidary
