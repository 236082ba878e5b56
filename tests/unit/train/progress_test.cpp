#include "lapidary/train/progress.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <sstream>

namespace lapidary {
namespace {

TrainRecord train_record(int64_t step) {
  return {.step = step,
          .epoch = 1,
          .loss = 2.12341,
          .grad_norm = 0.5,
          .lr = 2.18e-5,
          .mem_gib = 1.5,
          .tps = 1000.0,
          .tps_per_gpu = 500.0,
          .num_label_tokens = 321};
}

TEST(Progress, Lines) {
  EXPECT_EQ(console_line(train_record(7)),
            "step 7 | epoch 1 | loss 2.1234 | grad_norm 0.5000 | lr 2.18e-05 | mem 1.50 GiB | "
            "tps 1000.00(500.00/gpu) | num_label_tokens 321");
  EXPECT_EQ(console_line(ValidationRecord{
                .step = 7, .epoch = 1, .val_loss = 3.0, .lr = 1e-5, .num_label_tokens = 9}),
            "[val] step 7 | epoch 1 | loss 3.0000 | lr 1.00e-05 | num_label_tokens 9");
}

TEST(Progress, Durations) {
  EXPECT_EQ(duration_text(7.4), "0:07");
  EXPECT_EQ(duration_text(754), "12:34");
  EXPECT_EQ(duration_text(3723), "1:02:03");
  EXPECT_EQ(duration_text(2 * 86400 + 3 * 3600 + 4 * 60 + 5), "2d 03:04:05");
  EXPECT_EQ(duration_text(-1), "?");
}

TEST(Progress, PlainLinesWithoutATerminal) {
  std::ostringstream out;
  {
    Progress progress(out, {.total_steps = 10});
    progress.write(train_record(0));
    progress.write(ValidationRecord{});
    progress.message("saved");
  }
  EXPECT_EQ(out.str(),
            console_line(train_record(0)) + "\n" + console_line(ValidationRecord{}) + "\nsaved\n");
}

TEST(Progress, ABarBelowTheLinesOnATerminal) {
  std::ostringstream out;
  double now = 100.0;
  Progress progress(out, {.terminal = true, .total_steps = 8, .clock = [&] { return now; }});
  now = 110.0;
  progress.write(train_record(1));
  const std::string bar = "[==========>                             ]  25%  2/8  0:10 < 0:30";
  EXPECT_EQ(progress.bar(2), bar);
  EXPECT_EQ(out.str(), console_line(train_record(1)) + "\n" + bar);
  progress.message("saved");
  EXPECT_THAT(out.str(), testing::EndsWith(bar + "\r\x1b[Ksaved\n" + bar));
  progress.finish();
  progress.finish();
  EXPECT_THAT(out.str(), testing::EndsWith(bar + "\r\x1b[K"));
}

TEST(Progress, AResumedRunCountsItsOwnStepsOnly) {
  std::ostringstream out;
  double now = 0.0;
  const Progress progress(
      out, {.terminal = true, .first_step = 90, .total_steps = 100, .clock = [&] { return now; }});
  EXPECT_THAT(progress.bar(90), testing::EndsWith(" 90%  90/100  0:00 < ?"));
  now = 20.0;
  EXPECT_THAT(progress.bar(92), testing::EndsWith(" 92%  92/100  0:20 < 1:20"));
}

TEST(Progress, FitsTheTerminal) {
  std::ostringstream out;
  for (const int columns : {0, 20, 40, 60, 200}) {
    const Progress progress(
        out, {.terminal = true, .total_steps = 4, .columns = columns, .clock = [] { return 0.0; }});
    const std::string bar = progress.bar(4);
    EXPECT_THAT(bar, testing::HasSubstr("100%  4/4"));
    EXPECT_LT(bar.size(), static_cast<size_t>(std::max(columns, 40)));
  }
}

}  // namespace
}  // namespace lapidary
