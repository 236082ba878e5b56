#pragma once

#include <functional>
#include <ostream>
#include <string>

#include "lapidary/train/metrics.h"

namespace lapidary {

// "step 3 | epoch 0 | loss 2.1234 | grad_norm 1.2000 | lr 1.00e-05 | mem 1.50 GiB | ..."
std::string console_line(const TrainRecord& record);
// "[val] step 3 | epoch 0 | loss 2.1234 | lr 1.00e-05 | num_label_tokens 512"
std::string console_line(const ValidationRecord& record);
// "0:07", "12:34", "1:02:03", "2d 03:04:05"
std::string duration_text(double seconds);

// Reports a run to a stream: one line for each record and, on a terminal, a bar below the lines
// that is rewritten in place.
//   [=======>            ]  38%  76/200  0:41 < 1:07
class Progress {
 public:
  using Clock = std::function<double()>;  // seconds, from any start

  struct Options {
    bool terminal = false;    // rewrite in place; the caller asks isatty
    int64_t first_step = 0;   // not 0 when a run is resumed
    int64_t total_steps = 0;  // index of the last step, plus one
    int columns = 80;         // of the terminal
    Clock clock = {};         // unset: std::chrono::steady_clock
  };

  // out outlives the object. The clock starts here.
  Progress(std::ostream& out, const Options& options);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void write(const TrainRecord& record);
  void write(const ValidationRecord& record);
  void message(const std::string& line);
  // Removes the bar; further records bring it back. The destructor does it too.
  void finish();

  // The bar for a number of finished steps, at the current time.
  std::string bar(int64_t steps_done) const;

 private:
  void line(const std::string& text);

  std::ostream& out_;
  Options options_;
  double start_ = 0.0;
  int64_t steps_done_ = 0;
  bool shown_ = false;
};

}  // namespace lapidary
