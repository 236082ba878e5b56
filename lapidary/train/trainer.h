#pragma once

#include <atomic>
#include <memory>
#include <optional>
#include <ostream>

#include "lapidary/comm/mesh_groups.h"
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

// Fine-tuning as a recipe says, from its model to its last checkpoint. On several ranks every one
// makes a trainer and calls the same methods; each reads its own micro-batches, the first one alone
// reports and keeps the logs, and a stop that one is told ends the run of all.
class Trainer {
 public:
  // Reads model and data. Errors: everything that can be wrong with them, before the first step.
  // groups: of the mesh that the recipe was loaded for; they outlive the object.
  Trainer(const Recipe& recipe, const TrainerConsole& console, const MeshGroups& groups);
  // One rank.
  Trainer(const Recipe& recipe, const TrainerConsole& console)
      : Trainer(recipe, console, std::make_shared<MeshGroups>()) {}

  TrainResult run();

  // One optimiser step over these micro-batches: gradients of the sum of losses over all of them,
  // divided by their label tokens, clipped, applied.
  TrainRecord train_step(const std::vector<Batch>& batches);

  gemma4::Gemma4ForConditionalGeneration& model() { return model_; }

 private:
  Trainer(const Recipe& recipe, const TrainerConsole& console,
          std::shared_ptr<const MeshGroups> groups);
  void prepare_steps();
  // Where the run stands, for a checkpoint; and the same from one.
  TrainingState state() const;
  void resume();
  std::vector<StateTensor> optimizer_state();
  void plan_memory();
  void describe();
  std::vector<Batch> next_batches();
  void validate();
  void save_checkpoint();
  void sample_answers();
  bool due(std::optional<int64_t> every) const;
  void message(const std::string& line);
  void end_of_step(bool last);

  bool stop_requested() const;
  bool reports() const { return groups_->rank() == 0; }

  Recipe recipe_;
  TrainerConsole console_;
  std::shared_ptr<const MeshGroups> groups_;
  DataParallel data_parallel_;
  std::optional<FoundCheckpoint> resumed_;  // checkpoint.restore_from
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
  std::optional<MetricsWriter> metrics_;  // of the rank that reports
  std::unique_ptr<Progress> progress_;
  Context ctx_;
  int64_t step_ = 0;  // finished optimiser steps
  int64_t epoch_ = 0;
  int64_t total_steps_ = 0;
  int64_t schedule_steps_ = 0;
  int64_t batches_of_epoch_ = 0;  // micro-batches taken in this epoch
  bool epoch_ended_ = false;
  double last_loss_ = 0.0;
  std::optional<double> val_loss_;
  std::string last_model_directory_;
};

}  // namespace lapidary
