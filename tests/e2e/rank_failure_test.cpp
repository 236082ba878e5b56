#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/mpirun.h"

// A rank that fails ends the whole job, soon, and says why.
namespace lapidary::test {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

ProcessResult run_failing(const std::string& how, int64_t rank) {
  return run_process(on_ranks(4, {LAPIDARY_FAILING_RANK, how, std::to_string(rank)}),
                     {.environment = mpi_environment(), .timeout_seconds = 60.0});
}

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
                    HasSubstr("has waited 2.0 s for rank 3"), HasSubstr("timeout_minutes")));
  EXPECT_LT(result.seconds, 25.0);
}

// What MPI does by itself waits without an end.
TEST_F(RankFailure, ARankThatHangsWhereOthersMakeAGroupOrLeave) {
  const ProcessResult late = run_failing("starts late", 1);
  EXPECT_NE(late.exit_code, 0);
  EXPECT_THAT(late.err, HasSubstr("has waited 2.0 s for rank 1"));
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
