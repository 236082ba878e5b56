#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <thread>

#include "tests/e2e/program.h"
#include "tests/support/mpirun.h"

// Training and tracing as users start them on several ranks: mpirun -n N lapidary ...
namespace lapidary::test {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using ::testing::Not;

#define NEEDS_MPIRUN() \
  if (!has_mpirun()) GTEST_SKIP() << "mpirun was not found: install openmpi-bin"

std::vector<std::string> program_on(int64_t ranks, const std::vector<std::string>& arguments) {
  return on_ranks(ranks, lapidary_command(arguments));
}

ProcessOptions options_in(const fs::path& folder) {
  return {.directory = folder.string(), .environment = mpi_environment()};
}

ProcessResult mpirun(const Workspace& work, int64_t ranks,
                     const std::vector<std::string>& arguments) {
  return run_process(program_on(ranks, arguments), options_in(work.path("")));
}

ProcessResult train_on(const Workspace& work, int64_t ranks, const std::string& folder,
                       std::vector<std::string> changes) {
  std::vector<std::string> arguments = {"train", "tiny.yaml",
                                        "--checkpoint.checkpoint_dir=" + folder};
  arguments.insert(arguments.end(), changes.begin(), changes.end());
  return mpirun(work, ranks, arguments);
}

void expect_close(const std::vector<double>& got, const std::vector<double>& expected,
                  double tolerance, const std::string& which) {
  ASSERT_EQ(got.size(), expected.size()) << which;
  for (size_t i = 0; i < got.size(); ++i) {
    EXPECT_NEAR(got[i], expected[i], tolerance * std::abs(expected[i])) << which << " " << i;
  }
}

// What must not depend on the mesh: every log, and the last checkpoint.
void expect_same_run(const Workspace& work, const std::string& got, const std::string& expected) {
  const auto steps = work.training_log(got), wanted = work.training_log(expected);
  for (const char* name : {"step", "epoch", "lr", "num_label_tokens", "num_tokens_per_step"}) {
    EXPECT_EQ(column(steps, name), column(wanted, name)) << got << " " << name;
  }
  expect_close(column(steps, "loss"), column(wanted, "loss"), 1e-5, got + " loss");
  expect_close(column(steps, "grad_norm"), column(wanted, "grad_norm"), 1e-4, got + " grad_norm");
  expect_close(column(steps, "moe/cv_mean"), column(wanted, "moe/cv_mean"), 1e-6, got + " loads");
  const auto validation = read_jsonl(work.path(got) / "validation.jsonl");
  const auto validation_wanted = read_jsonl(work.path(expected) / "validation.jsonl");
  EXPECT_EQ(column(validation, "num_label_tokens"), column(validation_wanted, "num_label_tokens"));
  expect_close(column(validation, "val_loss"), column(validation_wanted, "val_loss"), 1e-5,
               got + " val_loss");
}

void expect_same_weights(const Workspace& work, const std::string& got,
                         const std::string& expected) {
  const std::string file = "/LATEST/model/consolidated/model.safetensors";
  const std::string a = work.text_path(got + file), b = work.text_path(expected + file);
  const SafetensorsReader have(a), want(b);
  ASSERT_EQ(have.entries().size(), want.entries().size());
  for (const TensorEntry& entry : want.entries()) {
    const OwnedTensor x = load_tensor(a, entry.name), y = load_tensor(b, entry.name);
    ASSERT_EQ(x->shape(), y->shape()) << entry.name;
    double difference = 0.0, size = 0.0;
    for (int64_t i = 0; i < x->numel(); ++i) {
      difference += std::pow(x->as<double>()[i] - y->as<double>()[i], 2.0);
      size += std::pow(y->as<double>()[i], 2.0);
    }
    EXPECT_LE(std::sqrt(difference), 1e-4 * std::sqrt(size)) << got << " " << entry.name;
  }
}

TEST(RanksTrain, AnyMeshLearnsWhatOneRankLearns) {
  NEEDS_MPIRUN();
  const Workspace work;
  // 12 samples in micro-batches of 1 and steps of 8: an epoch ends with half a step.
  const std::vector<std::string> base = {"--step_scheduler.global_batch_size=8",
                                         "--step_scheduler.local_batch_size=1",
                                         "--step_scheduler.num_epochs=3"};
  const auto with = [&](std::vector<std::string> more) {
    more.insert(more.begin(), base.begin(), base.end());
    return more;
  };
  expect_success(work.train(with({"--checkpoint.checkpoint_dir=one"})));
  struct Mesh {
    int64_t ranks;
    std::string name;
    std::vector<std::string> changes;
  };
  const Mesh meshes[] = {
      {2, "shards", {}},
      {2, "experts", {"--distributed.ep_size=2", "--distributed.reshard_after_forward=false"}},
      {4, "both", {"--distributed.ep_size=2", "--distributed.dp_replicate_size=2"}},
      {4, "eager", {"--distributed.ep_size=4", "--distributed.defer_fsdp_grad_sync=false"}}};
  for (const Mesh& mesh : meshes) {
    SCOPED_TRACE(mesh.name);
    const ProcessResult run = train_on(work, mesh.ranks, mesh.name, with(mesh.changes));
    expect_success(run);
    expect_same_run(work, mesh.name, "one");
    expect_same_weights(work, mesh.name, "one");
  }
}

TEST(RanksTrain, ARankWithoutSamplesLeft) {
  NEEDS_MPIRUN();
  const Workspace work;
  // 10 samples on 4 ranks: two of them go empty in the last step of an epoch. 3 batches to
  // validate.
  const std::vector<std::string> changes = {
      "--dataset.limit_dataset_samples=10", "--validation_dataset.split=train[:3]",
      "--step_scheduler.local_batch_size=1", "--step_scheduler.num_epochs=2",
      "--checkpoint.enabled=false"};
  std::vector<std::string> alone = changes;
  alone.emplace_back("--checkpoint.checkpoint_dir=one");
  expect_success(work.train(alone));
  expect_success(train_on(work, 4, "four", changes));
  expect_same_run(work, "four", "one");
}

// Stopped on one mesh, resumed on another: as if it had never stopped.
TEST(RanksTrain, ARunGoesOnOnAnotherMesh) {
  NEEDS_MPIRUN();
  const Workspace work;
  const std::vector<std::string> base = {"--step_scheduler.num_epochs=4",
                                         "--step_scheduler.local_batch_size=1",
                                         "--lr_scheduler.lr_decay_steps=12"};
  const auto with = [&](std::vector<std::string> more) {
    more.insert(more.begin(), base.begin(), base.end());
    return more;
  };
  expect_success(work.train(with({"--checkpoint.checkpoint_dir=one"})));
  ASSERT_EQ(work.training_log("one").size(), 12U);
  const std::string stop = "--step_scheduler.max_steps=";
  const std::string on = "--checkpoint.restore_from=LATEST";
  expect_success(train_on(work, 4, "many", with({"--distributed.ep_size=2", stop + "4"})));
  const ProcessResult second =
      train_on(work, 2, "many", with({"--distributed.ep_size=2", stop + "8", on}));
  expect_success(second);
  EXPECT_THAT(second.out, HasSubstr("resumed: after 4 steps"));
  expect_success(work.train(with({"--checkpoint.checkpoint_dir=many", on})));
  expect_same_run(work, "many", "one");
  expect_same_weights(work, "many", "one");
}

TEST(RanksTrain, OnlyTheFirstRankReports) {
  NEEDS_MPIRUN();
  const Workspace work;
  const ProcessResult run = train_on(
      work, 2, "run",
      {"--distributed.ep_size=2", "--samples.num_samples=1", "--samples.max_new_tokens=3"});
  expect_success(run);
  const auto count = [&](const std::string& text) {
    size_t found = 0;
    for (const std::string& line : lines_of(run.out)) found += contains(line, text) ? 1 : 0;
    return found;
  };
  EXPECT_EQ(count("mesh: 2 ranks: dp_replicate 1 x dp_shard 2, ep 2 x ep_shard 1, ZeRO-3"), 1U);
  EXPECT_EQ(count("grad_norm"), 6U);
  EXPECT_EQ(count("[val]"), 4U);
  EXPECT_EQ(count("--- sample 1"), 1U);
  EXPECT_EQ(count("6 steps, loss"), 1U);
  EXPECT_EQ(work.training_log().size(), 6U);
  for (const auto& row : work.training_log()) {
    EXPECT_NEAR(row.at("tps_per_gpu").get<double>(), row.at("tps").get<double>() / 2.0,
                1e-9 * row.at("tps").get<double>());
  }
}

TEST(RanksTrain, MistakesOfTheMeshAreSaidBeforeAnythingStarts) {
  NEEDS_MPIRUN();
  const Workspace work;
  const ProcessResult run =
      train_on(work, 2, "run", {"--distributed.ep_size=3", "--distributed.tp_size=2"});
  EXPECT_NE(run.exit_code, 0);
  EXPECT_THAT(run.err, HasSubstr("--distributed.ep_size"));
  EXPECT_THAT(run.err, HasSubstr("needs 3 ranks, there are 2"));
  EXPECT_THAT(run.err, HasSubstr("the model has experts; use ep"));
  EXPECT_FALSE(fs::exists(work.path("run")));
}

TEST(RanksTrain, ASignalEndsAllRanksAfterTheSameStep) {
  NEEDS_MPIRUN();
  const Workspace work;
  Process run(program_on(2, {"train", "tiny.yaml", "--step_scheduler.num_epochs=5000"}),
              options_in(work.path("")));
  for (int i = 0; i < 600 && !contains(run.output(), "step 2 |"); ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
  // To one of them; mpirun itself, when it gets the signal, kills its ranks a second later.
  const std::vector<int> ranks = rank_processes(run.pid(), 2);
  ASSERT_GT(ranks[1], 0);
  ASSERT_EQ(::kill(ranks[1], SIGTERM), 0);
  const ProcessResult result = run.wait();
  EXPECT_THAT(result.out, HasSubstr("stopped by a signal")) << result.err;
  const auto log = work.training_log();
  EXPECT_LT(log.size(), 15000U);
  EXPECT_EQ(fs::read_symlink(work.path("run/LATEST")).string(),
            "epoch_" + log.back().at("epoch").dump() + "_step_" + log.back().at("step").dump());
}

TEST(RanksTrace, WritesWhatOneRankWrites) {
  NEEDS_MPIRUN();
  const TemporaryDirectory folder;
  const std::string one = folder.path() / "one.safetensors";
  const std::string many = folder.path() / "many.safetensors";
  const auto arguments = [&](const std::string& output, const std::vector<std::string>& more) {
    std::vector<std::string> all = {"trace",    golden("moe_text"),
                                    "--inputs", golden("moe_text") + "/inputs.safetensors",
                                    "--output", output,
                                    "--grads"};
    all.insert(all.end(), more.begin(), more.end());
    return all;
  };
  expect_success(lapidary_program(arguments(one, {})));
  const std::pair<int64_t, std::vector<std::string>> runs[] = {
      {2, {}}, {2, {"--mesh", "ep=2"}}, {4, {"--mesh", "ep=2,dp_replicate=2,dp_shard=2"}}};
  for (const auto& [ranks, mesh] : runs) {
    fs::remove(many);
    expect_success(
        run_process(program_on(ranks, arguments(many, mesh)), options_in(folder.path())));
    const SafetensorsReader want(one), have(many);
    ASSERT_EQ(have.entries().size(), want.entries().size());
    for (const TensorEntry& entry : want.entries()) {
      if (entry.name.rfind("grad.", 0) != 0 && entry.name != "loss") continue;
      const OwnedTensor x = load_tensor(many, entry.name), y = load_tensor(one, entry.name);
      double difference = 0.0, size = 0.0;
      for (int64_t i = 0; i < y->numel(); ++i) {
        difference += std::pow(x->as<double>()[i] - y->as<double>()[i], 2.0);
        size += std::pow(y->as<double>()[i], 2.0);
      }
      ASSERT_GT(size, 0.0) << entry.name;
      EXPECT_LT(std::sqrt(difference / size), 1e-4) << ranks << " ranks, " << entry.name;
    }
  }
}

TEST(RanksTrace, AMeshNeedsItsRanks) {
  const TemporaryDirectory folder;
  const auto run = [&](const std::string& mesh) {
    return lapidary_program({"trace", golden("moe_text"), "--inputs",
                             golden("moe_text") + "/inputs.safetensors", "--output",
                             (folder.path() / "out.safetensors").string(), "--mesh", mesh});
  };
  expect_success(run("ep=1,dp_shard=1"));
  expect_error(run("ep=2"), {"ep", "needs 2 ranks, there is 1"});
  expect_error(run("experts=2"), {"experts", "is not an axis"});
}

}  // namespace
}  // namespace lapidary::test
