#include "lapidary/train/schedule.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <string>

#include "lapidary/core/error.h"

namespace lapidary {
namespace {

std::string digits(double lr) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.2e", lr);
  return text;
}

LrScheduleOptions style(DecayStyle decay) { return {.decay_style = decay}; }

// The rates of a public run: lr 2e-4, a cosine block with nothing else in it, 3 epochs of 2,659
// samples, 8 a step. The schedule has 997 steps, the run 999: every epoch ends in a partial step.
// The log of step n shows the rate after n + 1 updates.
TEST(LrSchedule, ReproducesThePublicLog) {
  const LrSchedule schedule = LrSchedule::make({}, 2e-4, scheduled_steps(3, 2659, 8, {}));
  EXPECT_EQ(schedule.warmup_steps(), 99);
  EXPECT_EQ(schedule.decay_steps(), 997);
  EXPECT_DOUBLE_EQ(schedule.init_lr(), 2e-5);
  EXPECT_DOUBLE_EQ(schedule.min_lr(), 2e-6);
  EXPECT_EQ(digits(schedule.lr(0 + 1)), "2.18e-05");
  EXPECT_EQ(digits(schedule.lr(1 + 1)), "2.36e-05");
  EXPECT_EQ(digits(schedule.lr(50 + 1)), "1.13e-04");
  EXPECT_EQ(digits(schedule.lr(100 + 1)), "2.00e-04");
  EXPECT_EQ(digits(schedule.lr(500 + 1)), "1.17e-04");
  EXPECT_EQ(digits(schedule.lr(998 + 1)), "2.00e-06");
}

TEST(LrSchedule, StepsOfASchedule) {
  EXPECT_EQ(scheduled_steps(2, 10, 4, {}), 5);
  EXPECT_EQ(scheduled_steps(2, 10, 4, 3), 3);
  EXPECT_EQ(scheduled_steps(2, 10, 4, 100), 5);
  EXPECT_THROW(scheduled_steps(1, 10, 0, {}), Error);
  EXPECT_THROW(scheduled_steps(INT64_MAX, 10, 1, {}), Error);
}

TEST(LrSchedule, WithoutABlockTheRateIsConstant) {
  const LrSchedule schedule = LrSchedule::constant(1e-5);
  EXPECT_EQ(schedule.lr(0), 1e-5);
  EXPECT_EQ(schedule.lr(1000000), 1e-5);
}

TEST(LrSchedule, WarmupIsCappedAtAThousandSteps) {
  EXPECT_EQ(LrSchedule::make({}, 1.0, 50000).warmup_steps(), 1000);
  EXPECT_EQ(LrSchedule::make({}, 1.0, 9).warmup_steps(), 0);
}

TEST(LrSchedule, AConstantBlockStillWarmsUp) {
  const LrSchedule schedule = LrSchedule::make(style(DecayStyle::constant), 1.0, 100);
  EXPECT_DOUBLE_EQ(schedule.lr(0), 0.1);
  EXPECT_DOUBLE_EQ(schedule.lr(5), 0.55);
  EXPECT_DOUBLE_EQ(schedule.lr(10), 1.0);
  EXPECT_DOUBLE_EQ(schedule.lr(500), 1.0);
}

TEST(LrSchedule, LinearAndAfterTheEnd) {
  LrScheduleOptions options = style(DecayStyle::linear);
  options.warmup_steps = 0;
  options.min_lr = 0.2;
  const LrSchedule schedule = LrSchedule::make(options, 1.0, 10);
  EXPECT_DOUBLE_EQ(schedule.lr(0), 1.0);
  EXPECT_DOUBLE_EQ(schedule.lr(5), 0.6);
  EXPECT_DOUBLE_EQ(schedule.lr(10), 0.2);
  EXPECT_DOUBLE_EQ(schedule.lr(11), 0.2);
}

TEST(LrSchedule, InverseSquareRootHasAFloor) {
  LrScheduleOptions options = style(DecayStyle::inverse_square_root);
  options.warmup_steps = 4;
  options.min_lr = 0.25;
  const LrSchedule schedule = LrSchedule::make(options, 1.0, 1000);
  EXPECT_DOUBLE_EQ(schedule.lr(4), 1.0);
  EXPECT_DOUBLE_EQ(schedule.lr(16), 0.5);
  EXPECT_DOUBLE_EQ(schedule.lr(400), 0.25);
  options.warmup_steps = 0;
  EXPECT_DOUBLE_EQ(LrSchedule::make(options, 1.0, 1000).lr(0), 1.0);
}

TEST(LrSchedule, WsdTails) {
  LrScheduleOptions options = style(DecayStyle::wsd);
  options.warmup_steps = 10;
  options.wsd_decay_steps = 40;
  options.min_lr = 0.0;
  const auto at = [&](WsdStyle tail, int64_t steps) {
    options.wsd_style = tail;
    return LrSchedule::make(options, 1.0, 100).lr(steps);
  };
  for (const WsdStyle tail :
       {WsdStyle::linear, WsdStyle::cosine, WsdStyle::exponential, WsdStyle::minus_sqrt}) {
    EXPECT_DOUBLE_EQ(at(tail, 11), 1.0);
    EXPECT_DOUBLE_EQ(at(tail, 60), 1.0);
    EXPECT_NEAR(at(tail, 100), 0.0, 1e-15);
  }
  EXPECT_DOUBLE_EQ(at(WsdStyle::linear, 70), 0.75);
  EXPECT_DOUBLE_EQ(at(WsdStyle::cosine, 80), 0.5);
  EXPECT_DOUBLE_EQ(at(WsdStyle::exponential, 80), 2.0 * std::sqrt(0.5) - 1.0);
  EXPECT_DOUBLE_EQ(at(WsdStyle::minus_sqrt, 70), 0.5);
}

TEST(LrSchedule, Words) {
  EXPECT_EQ(parse_decay_style("inverse-square-root"), DecayStyle::inverse_square_root);
  EXPECT_EQ(parse_decay_style("WSD"), DecayStyle::wsd);
  EXPECT_EQ(parse_decay_style("step"), std::nullopt);
  EXPECT_EQ(parse_wsd_style("minus_sqrt"), WsdStyle::minus_sqrt);
  EXPECT_EQ(parse_wsd_style("sqrt"), std::nullopt);
}

TEST(LrSchedule, ReportsEveryMistake) {
  LrScheduleOptions options = style(DecayStyle::wsd);
  options.init_lr = 2.0;
  options.min_lr = std::nan("");
  options.warmup_steps = 20;
  try {
    LrSchedule::make(options, 1.0, 10);
    FAIL() << "accepted";
  } catch (const Error& error) {
    const std::string text = error.what();
    EXPECT_THAT(text, testing::HasSubstr("lr_scheduler.init_lr: above optimizer.lr"));
    EXPECT_THAT(text, testing::HasSubstr("nan is not a rate"));
    EXPECT_THAT(text, testing::HasSubstr("20 steps of warm-up leave nothing of the 10 steps"));
    EXPECT_THAT(text, testing::HasSubstr("wsd_decay_steps: 0 is not the length of a tail"));
  }
  EXPECT_THROW(LrSchedule::make({}, 1.0, 0), Error);
}

}  // namespace
}  // namespace lapidary
