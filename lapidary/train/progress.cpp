#include "lapidary/train/progress.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>

namespace lapidary {
namespace {

constexpr const char* kClearLine = "\r\x1b[K";

double steady_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

std::string console_line(const TrainRecord& r) {
  return fmt::format(
      "step {} | epoch {} | loss {:.4f} | grad_norm {:.4f} | lr {:.2e} | mem {:.2f} GiB | "
      "tps {:.2f}({:.2f}/gpu) | num_label_tokens {}",
      r.step, r.epoch, r.loss, r.grad_norm, r.lr, r.mem_gib, r.tps, r.tps_per_gpu,
      r.num_label_tokens);
}

std::string console_line(const ValidationRecord& r) {
  return fmt::format("[val] step {} | epoch {} | loss {:.4f} | lr {:.2e} | num_label_tokens {}",
                     r.step, r.epoch, r.val_loss, r.lr, r.num_label_tokens);
}

std::string duration_text(double seconds) {
  if (!std::isfinite(seconds) || seconds < 0.0 || seconds > 1e10) return "?";
  const auto s = static_cast<int64_t>(std::llround(seconds));
  if (s < 3600) return fmt::format("{}:{:02}", s / 60, s % 60);
  if (s < 86400) return fmt::format("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60);
  return fmt::format("{}d {:02}:{:02}:{:02}", s / 86400, s / 3600 % 24, s / 60 % 60, s % 60);
}

Progress::Progress(std::ostream& out, const Options& options) : out_(out), options_(options) {
  if (!options_.clock) options_.clock = steady_seconds;
  steps_done_ = options_.first_step;
  start_ = options_.clock();
}

Progress::~Progress() { finish(); }

void Progress::write(const TrainRecord& record) {
  steps_done_ = record.step + 1;
  line(console_line(record));
}

void Progress::write(const ValidationRecord& record) { line(console_line(record)); }

void Progress::message(const std::string& text) { line(text); }

void Progress::line(const std::string& text) {
  if (shown_) out_ << kClearLine;
  out_ << text << '\n';
  shown_ = options_.terminal && options_.total_steps > 0;
  if (shown_) out_ << bar(steps_done_);
  out_.flush();
}

void Progress::finish() {
  if (shown_) out_ << kClearLine << std::flush;
  shown_ = false;
}

std::string Progress::bar(int64_t steps_done) const {
  const auto total = static_cast<double>(options_.total_steps);
  const double part = std::clamp(static_cast<double>(steps_done) / total, 0.0, 1.0);
  const double elapsed = options_.clock() - start_;
  // The rate of this process: a resumed run did its first steps at another time.
  const auto own_steps = static_cast<double>(steps_done - options_.first_step);
  const auto left_steps = static_cast<double>(options_.total_steps - steps_done);
  const double left = own_steps > 0.0 ? elapsed / own_steps * left_steps : NAN;
  const std::string tail =
      fmt::format("] {:3.0f}%  {}/{}  {} < {}", std::floor(100.0 * part), steps_done,
                  options_.total_steps, duration_text(elapsed), duration_text(left));
  // One column stays free, or some terminals wrap.
  const int width = std::min(options_.columns - 2 - static_cast<int>(tail.size()), 40);
  if (width < 4) return tail.substr(2);
  const int filled = std::min(static_cast<int>(part * width), width);
  std::string text = "[";
  text.append(static_cast<size_t>(filled), '=');
  if (filled < width) {
    text += '>';
    text.append(static_cast<size_t>(width - filled - 1), ' ');
  }
  return text + tail;
}

}  // namespace lapidary
