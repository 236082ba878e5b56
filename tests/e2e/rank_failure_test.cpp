#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <csignal>
#include <thread>

#include "lapidary/core/rng.h"
#include "lapidary/train/checkpoint_search.h"
#include "tests/e2e/program.h"
#include "tests/support/mpirun.h"

// A rank that fails ends the whole job, soon, and says why.
namespace lapidary::test {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;

ProcessResult run_failing(const std::string& how, int64_t rank) {
  return run_process(on_ranks(4, {LAPIDARY_FAILING_RANK, how, std::to_string(rank)}),
                     {.environment = mpi_environment(), .timeout_seconds = 60.0});
}

void sleep_ms(int ms) { std::this_thread::sleep_for(std::chrono::milliseconds(ms)); }

class RankFailure : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!has_mpirun()) GTEST_SKIP() << "there is no mpirun";
  }
};

TEST_F(RankFailure, AnExceptionEndsTheJob) {
  const ProcessResult result = run_failing("throws", 2);
  EXPECT_NE(result.exit_code, 0);
  EXPECT_THAT(result.err, HasSubstr("rank 2: the disk: is on fire; put it out"));
  EXPECT_LT(result.seconds, 15.0);
}

TEST_F(RankFailure, AKilledRankEndsTheJob) {
  const ProcessResult result = run_failing("dies", 1);
  EXPECT_NE(result.exit_code, 0);
  EXPECT_THAT(result.err + result.out, AllOf(HasSubstr("rank 1"), HasSubstr("signal 9")));
  EXPECT_LT(result.seconds, 15.0);
}

TEST_F(RankFailure, ARankThatHangsIsNamedWhenTheTimeIsOver) {
  const ProcessResult result = run_failing("hangs", 3);
  EXPECT_NE(result.exit_code, 0);
  EXPECT_THAT(result.err,
              AllOf(HasSubstr("all_reduce over world (ranks 0, 1, 2, 3)"),
                    HasSubstr("has waited 4.0 s for rank 3"), HasSubstr("timeout_minutes")));
  EXPECT_LT(result.seconds, 25.0);
}

// Whenever a rank dies, the job ends, what is named as a checkpoint is one, and the run goes on.
TEST_F(RankFailure, RanksKilledAtRandomStepsLeaveWholeCheckpoints) {
  constexpr int64_t kRanks = 4;
  const Workspace work;
  const ProcessOptions options{.directory = work.path("").string(),
                               .environment = mpi_environment()};
  const auto command = [](const std::string& restore) {
    return on_ranks(
        kRanks,
        lapidary_command(
            {"train", "tiny.yaml", "--distributed.ep_size=2", "--step_scheduler.num_epochs=100000",
             "--step_scheduler.val_every_steps=100000", "--step_scheduler.local_batch_size=1",
             "--step_scheduler.ckpt_every_steps=3", "--checkpoint.restore_from=" + restore}));
  };
  Rng rng(2026);
  std::string restore;
  int64_t reached = 0;
  for (int round = 0; round < 4; ++round) {
    Process run(command(restore), options);
    const int64_t until = reached + 4 + rng.below(6);  // and a random moment of a step or a save
    const auto steps = [&] {
      return fs::exists(work.path("run/training.jsonl"))
                 ? static_cast<int64_t>(lines_of(read_file(work.path("run/training.jsonl"))).size())
                 : 0;
    };
    for (int i = 0; i < 2000 && steps() < until; ++i) sleep_ms(10);
    ASSERT_GE(steps(), until);
    sleep_ms(static_cast<int>(rng.below(60)));
    const std::vector<int> ranks = rank_processes(run.pid(), kRanks);
    const auto victim = static_cast<size_t>(rng.below(kRanks));
    ASSERT_GT(ranks[victim], 0);
    const auto killed = std::chrono::steady_clock::now();
    ASSERT_EQ(::kill(ranks[victim], SIGKILL), 0);
    const ProcessResult result = run.wait();
    EXPECT_NE(result.exit_code, 0);
    EXPECT_LT(std::chrono::steady_clock::now() - killed, std::chrono::seconds(30));
    for (const fs::directory_entry& entry : fs::directory_iterator(work.path("run"))) {
      const std::string name = entry.path().filename().string();
      if (name.rfind("epoch_", 0) != 0 || contains(name, "incomplete")) continue;
      TrainingState state;
      EXPECT_EQ(incompleteness(entry.path().string(), &state), "") << name;
    }
    SelfGroup alone;
    const auto found = find_checkpoint(work.text_path("run"), "LATEST", alone);
    ASSERT_TRUE(found.has_value());
    EXPECT_GE(found->state.step, reached);
    reached = found->state.step;
    restore = "LATEST";
  }
}

// The recipe's own limit, in a run: six seconds.
TEST_F(RankFailure, ARunEndsWhenARankHangsForTooLong) {
  const Workspace work;
  Process run(on_ranks(2, lapidary_command({"train", "tiny.yaml", "--distributed.ep_size=2",
                                            "--step_scheduler.num_epochs=100000",
                                            "--dist_env.timeout_minutes=0.1"})),
              {.directory = work.path("").string(), .environment = mpi_environment()});
  for (int i = 0; i < 2000 && !contains(run.output(), "step 3 |"); ++i) sleep_ms(10);
  const std::vector<int> ranks = rank_processes(run.pid(), 2);
  ASSERT_GT(ranks[1], 0);
  ASSERT_EQ(::kill(ranks[1], SIGSTOP), 0);
  const auto stopped = std::chrono::steady_clock::now();
  const ProcessResult result = run.wait();
  EXPECT_NE(result.exit_code, 0);
  EXPECT_THAT(result.err, AllOf(HasSubstr("lapidary: rank 0: error: "),
                                HasSubstr("has waited 6.0 s for rank 1"),
                                HasSubstr("dist_env.timeout_minutes")));
  EXPECT_LT(std::chrono::steady_clock::now() - stopped, std::chrono::seconds(30));
}

// What MPI does by itself waits without an end.
TEST_F(RankFailure, ARankThatHangsWhereOthersMakeAGroupOrLeave) {
  const ProcessResult late = run_failing("starts late", 1);
  EXPECT_NE(late.exit_code, 0);
  EXPECT_THAT(late.err, HasSubstr("has waited 4.0 s for rank 1"));
  EXPECT_LT(late.seconds, 25.0);
  const ProcessResult lags = run_failing("lags", 1);
  EXPECT_NE(lags.exit_code, 0);
  EXPECT_LT(lags.seconds, 25.0);
}

TEST_F(RankFailure, ARankThatLeavesEndsTheJob) {
  const ProcessResult result = run_failing("leaves", 0);
  EXPECT_NE(result.exit_code, 0);
  EXPECT_LT(result.seconds, 25.0);
}

// Processes that were started together and can't join: none of them runs as if it were alone.
std::string refusal(const std::vector<std::string>& environment) {
  const ProcessResult result =
      run_process({LAPIDARY_FAILING_RANK, "leaves", "0"}, {.environment = environment});
  EXPECT_EQ(result.exit_code, 1);
  return result.err;
}

TEST(RankRefusal, NoLibraryOrAnotherOne) {
  EXPECT_THAT(refusal({"OMPI_COMM_WORLD_SIZE=2", "LAPIDARY_MPI=/no/such/libmpi.so"}),
              AllOf(HasSubstr("/no/such/libmpi.so can't be opened"), HasSubstr("openmpi-bin")));
  EXPECT_THAT(refusal({"OMPI_COMM_WORLD_SIZE=2", "LAPIDARY_MPI=libm.so.6"}),
              HasSubstr("it is not Open MPI"));
}

TEST_F(RankFailure, ALauncherThatOpenMpiDoesNotKnow) {
  EXPECT_THAT(
      refusal({"SLURM_STEP_NUM_TASKS=2"}),
      AllOf(HasSubstr("finds 1 processes where the launcher started 2"), HasSubstr("--mpi=pmix")));
}

}  // namespace
}  // namespace lapidary::test
