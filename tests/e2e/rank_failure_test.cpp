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
              AllOf(HasSubstr("all_reduce over world"), HasSubstr("has waited 2.0 s for rank"),
                    HasSubstr("timeout_minutes")));
  EXPECT_THAT(result.err, HasSubstr("for rank 3"));
  EXPECT_LT(result.seconds, 25.0);
}

TEST_F(RankFailure, ARankThatLeavesEndsTheJob) {
  const ProcessResult result = run_failing("leaves", 0);
  EXPECT_NE(result.exit_code, 0);
  EXPECT_LT(result.seconds, 25.0);
}

}  // namespace
}  // namespace lapidary::test
