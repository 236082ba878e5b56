#include "lapidary/train/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "lapidary/core/error.h"

namespace lapidary {
namespace {

double cosine_coefficient(double ratio) { return 0.5 * (1.0 + std::cos(std::numbers::pi * ratio)); }

double wsd_coefficient(WsdStyle style, double ratio) {
  switch (style) {
    case WsdStyle::linear: return 1.0 - ratio;
    case WsdStyle::cosine: return cosine_coefficient(ratio);
    case WsdStyle::exponential: return 2.0 * std::pow(0.5, ratio) - 1.0;
    case WsdStyle::minus_sqrt: return 1.0 - std::sqrt(ratio);
  }
  fail("lr_scheduler.wsd_decay_style", "unknown style");
}

}  // namespace

std::optional<DecayStyle> parse_decay_style(const std::string& text) {
  if (text == "constant") return DecayStyle::constant;
  if (text == "cosine") return DecayStyle::cosine;
  if (text == "linear") return DecayStyle::linear;
  if (text == "inverse-square-root") return DecayStyle::inverse_square_root;
  if (text == "WSD" || text == "wsd") return DecayStyle::wsd;
  return std::nullopt;
}

std::optional<WsdStyle> parse_wsd_style(const std::string& text) {
  if (text == "linear") return WsdStyle::linear;
  if (text == "cosine") return WsdStyle::cosine;
  if (text == "exponential") return WsdStyle::exponential;
  if (text == "minus_sqrt") return WsdStyle::minus_sqrt;
  return std::nullopt;
}

int64_t scheduled_steps(int64_t epochs, int64_t batches_per_epoch, int64_t batches_per_step,
                        std::optional<int64_t> max_steps) {
  int64_t batches = 0;
  if (epochs < 0 || batches_per_epoch < 0 || batches_per_step <= 0 ||
      __builtin_mul_overflow(epochs, batches_per_epoch, &batches)) {
    fail("step_scheduler", "no sensible number of steps", "use smaller, positive numbers");
  }
  const int64_t steps = batches / batches_per_step;
  return max_steps ? std::min(steps, *max_steps) : steps;
}

LrSchedule LrSchedule::constant(double lr) {
  LrSchedule schedule;
  schedule.init_lr_ = schedule.max_lr_ = schedule.min_lr_ = lr;
  return schedule;
}

LrSchedule LrSchedule::make(const LrScheduleOptions& options, double max_lr, int64_t total_steps) {
  LrSchedule schedule;
  schedule.decay_style_ = options.decay_style;
  schedule.wsd_style_ = options.wsd_style;
  schedule.max_lr_ = max_lr;
  schedule.init_lr_ = options.init_lr.value_or(0.1 * max_lr);
  schedule.min_lr_ = options.min_lr.value_or(0.01 * max_lr);
  schedule.warmup_steps_ = options.warmup_steps.value_or(std::min<int64_t>(1000, total_steps / 10));
  schedule.decay_steps_ = options.decay_steps.value_or(total_steps);
  schedule.wsd_decay_steps_ = options.wsd_decay_steps.value_or(0);
  schedule.validate();
  return schedule;
}

void LrSchedule::validate() const {
  Problems problems;
  const auto number = [](double value) { return std::to_string(value); };
  for (const double rate : {init_lr_, max_lr_, min_lr_}) {
    if (!std::isfinite(rate) || rate < 0.0) {
      problems.add("learning rate", number(rate) + " is not a rate", "use a number >= 0");
    }
  }
  if (init_lr_ > max_lr_) {
    problems.add("lr_scheduler.init_lr", "above optimizer.lr", "use at most optimizer.lr");
  }
  if (min_lr_ > max_lr_) {
    problems.add("lr_scheduler.min_lr", "above optimizer.lr", "use at most optimizer.lr");
  }
  if (warmup_steps_ < 0) {
    problems.add("lr_scheduler.lr_warmup_steps", "negative", "use a number >= 0");
  }
  if (decay_steps_ <= 0) {
    problems.add("lr_scheduler.lr_decay_steps", "no steps to train", "use a number > 0");
  } else if (warmup_steps_ >= decay_steps_) {
    problems.add("lr_scheduler.lr_warmup_steps",
                 std::to_string(warmup_steps_) + " steps of warm-up leave nothing of the " +
                     std::to_string(decay_steps_) + " steps of the schedule",
                 "use a smaller number");
  }
  if (decay_style_ == DecayStyle::wsd &&
      (wsd_decay_steps_ <= 0 || wsd_decay_steps_ > decay_steps_ - warmup_steps_)) {
    problems.add("lr_scheduler.wsd_decay_steps",
                 std::to_string(wsd_decay_steps_) + " is not the length of a tail",
                 "use 1 .. " + std::to_string(std::max<int64_t>(1, decay_steps_ - warmup_steps_)));
  }
  problems.throw_if_any("lr_scheduler");
}

double LrSchedule::decay_coefficient(int64_t steps_done) const {
  const double ratio = static_cast<double>(steps_done - warmup_steps_) /
                       static_cast<double>(decay_steps_ - warmup_steps_);
  if (decay_style_ == DecayStyle::linear) return 1.0 - ratio;
  if (decay_style_ == DecayStyle::cosine) return cosine_coefficient(ratio);
  const int64_t tail_start = decay_steps_ - wsd_decay_steps_;
  if (steps_done <= tail_start) return 1.0;
  return wsd_coefficient(wsd_style_, static_cast<double>(steps_done - tail_start) /
                                         static_cast<double>(wsd_decay_steps_));
}

double LrSchedule::lr(int64_t steps_done) const {
  if (warmup_steps_ > 0 && steps_done <= warmup_steps_) {
    return init_lr_ + (max_lr_ - init_lr_) * static_cast<double>(steps_done) /
                          static_cast<double>(warmup_steps_);
  }
  if (decay_style_ == DecayStyle::constant) return max_lr_;
  if (steps_done > decay_steps_) return min_lr_;
  if (decay_style_ == DecayStyle::inverse_square_root) {
    const auto warmup = static_cast<double>(std::max<int64_t>(warmup_steps_, 1));
    const auto done = static_cast<double>(std::max<int64_t>(steps_done, 1));
    return std::max(min_lr_, max_lr_ * std::sqrt(warmup) / std::sqrt(done));
  }
  return min_lr_ + (max_lr_ - min_lr_) * decay_coefficient(steps_done);
}

}  // namespace lapidary
