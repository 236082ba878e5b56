#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace lapidary {

enum class DecayStyle { constant, cosine, linear, inverse_square_root, wsd };
enum class WsdStyle { linear, cosine, exponential, minus_sqrt };

// As users write them: "cosine", "inverse-square-root", "WSD", ...; nullopt for other words.
std::optional<DecayStyle> parse_decay_style(const std::string& text);
std::optional<WsdStyle> parse_wsd_style(const std::string& text);

// Unset fields follow from the peak rate and from the length of the run; see LrSchedule::make.
struct LrScheduleOptions {
  DecayStyle decay_style = DecayStyle::cosine;
  std::optional<double> init_lr = {};           // 0.1 lr
  std::optional<double> min_lr = {};            // 0.01 lr
  std::optional<int64_t> warmup_steps = {};     // min(1000, total / 10)
  std::optional<int64_t> decay_steps = {};      // total
  WsdStyle wsd_style = WsdStyle::linear;        // shape of the tail of wsd
  std::optional<int64_t> wsd_decay_steps = {};  // length of the tail; wsd needs it
};

// Optimiser steps that a schedule is laid out for, as NeMo counts them: epochs times micro-batches
// of an epoch over micro-batches of a step, rounded down, at most max_steps. A run whose epochs end
// in a partial step is a little longer; its last steps have the final rate.
int64_t scheduled_steps(int64_t epochs, int64_t batches_per_epoch, int64_t batches_per_step,
                        std::optional<int64_t> max_steps);

// The learning rate as a function of n, the number of optimiser steps done so far: step n + 1 uses
// lr(n), and lr(n + 1) is what NeMo logs for it. With w = warmup, d = decay steps:
//   n <= w, w > 0        init + (max - init) n / w
//   constant             max
//   n > d                min
//   inverse-square-root  max(min, max sqrt(max(w, 1)) / sqrt(max(n, 1)))
//   otherwise            min + (max - min) c, with r = (n - w) / (d - w) and
//     linear  c = 1 - r          cosine  c = (1 + cos(pi r)) / 2
//     wsd     c = 1 up to d - t, then with r = (n - (d - t)) / t over the tail of t steps:
//             linear and cosine as above, exponential 2 0.5^r - 1, minus_sqrt 1 - sqrt(r)
class LrSchedule {
 public:
  // A constant rate without warm-up: a recipe with no lr_scheduler block.
  static LrSchedule constant(double lr);
  // max_lr: the optimiser's lr. total_steps: optimiser steps of the whole run. Throws Error, with
  // every mistake at once, when rates or steps do not fit together.
  static LrSchedule make(const LrScheduleOptions& options, double max_lr, int64_t total_steps);

  double lr(int64_t steps_done) const;

  double max_lr() const { return max_lr_; }
  double init_lr() const { return init_lr_; }
  double min_lr() const { return min_lr_; }
  int64_t warmup_steps() const { return warmup_steps_; }
  int64_t decay_steps() const { return decay_steps_; }

 private:
  LrSchedule() = default;
  double decay_coefficient(int64_t steps_done) const;
  void validate() const;

  DecayStyle decay_style_ = DecayStyle::constant;
  WsdStyle wsd_style_ = WsdStyle::linear;
  double init_lr_ = 0.0;
  double max_lr_ = 0.0;
  double min_lr_ = 0.0;
  int64_t warmup_steps_ = 0;
  int64_t decay_steps_ = 0;
  int64_t wsd_decay_steps_ = 0;
};

}  // namespace lapidary
