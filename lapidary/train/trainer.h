#pragma once

#include <atomic>
#include <memory>
#include <optional>
#include <ostream>

#include "lapidary/comm/process_group.h"
#include "lapidary/data/loader.h"
#include "lapidary/parallel/data_parallel.h"
#include "lapidary/train/checkpoints.h"
#include "lapidary/train/evaluator.h"
#include "lapidary/train/metrics.h"
#include "lapidary/train/optimizer.h"
#include "lapidary/train/progress.h"
#include "lapidary/train/run_setup.h"
#include "lapidary/train/train_step.h"

namespace lapidary {

// Where a run reports to, and how it is told to stop.
struct TrainerConsole {
  std::ostream* out = nullptr;
  bool terminal = false;
  int columns = 80;
  const std::atomic<bool>* stop = nullptr;  // set (SIGTERM): finish the step, save, return
};

struct TrainResult {
  int64_t steps = 0;
  double loss = 0.0;                     // of the last step
  std::optional<double> first_val_loss;  // before the first step
  std::optional<double> val_loss;        // the last one
  std::string model_directory;           // of the last checkpoint, "" without any
  bool stopped = false;                  // by console.stop
};

// Fine-tuning as a recipe says, from its model to its last checkpoint.
class Trainer {
 public:
  // Reads model and data. Errors: everything that can be wrong with them, before the first step.
  Trainer(const Recipe& recipe, const TrainerConsole& console);

  TrainResult run();

  // One optimiser step over these micro-batches: gradients of the sum of losses over all of them,
  // divided by their label tokens, clipped, applied.
  TrainRecord train_step(const std::vector<Batch>& batches);

  gemma4::Gemma4ForConditionalGeneration& model() { return model_; }

 private:
  void plan_memory();
  void describe();
  std::vector<Batch> next_batches();
  void validate();
  void save_checkpoint();
  void sample_answers();
  bool due(std::optional<int64_t> every) const;
  void message(const std::string& line);
  void end_of_step(bool last);

  Recipe recipe_;
  TrainerConsole console_;
  SelfGroup group_;
  DataParallel data_parallel_{group_};
  gemma4::Gemma4ForConditionalGeneration model_;
  std::shared_ptr<const Tokenizer> tokenizer_;
  PreparedData data_;
  std::optional<PreparedData> validation_data_;
  std::optional<Evaluator> evaluator_;
  std::optional<DataLoader> loader_;
  std::optional<AdamW> optimizer_;
  std::optional<TrainStep> step_on_device_;
  std::optional<LrSchedule> schedule_;
  std::optional<CheckpointStore> store_;
  std::optional<MetricsWriter> metrics_;
  std::unique_ptr<Progress> progress_;
  Context ctx_;
  int64_t step_ = 0;  // finished optimiser steps
  int64_t epoch_ = 0;
  int64_t total_steps_ = 0;
  int64_t batches_of_epoch_ = 0;  // micro-batches taken in this epoch
  bool epoch_ended_ = false;
  double last_loss_ = 0.0;
  std::optional<double> val_loss_;
  std::string last_model_directory_;
};

}  // namespace lapidary
