#include "lapidary/train/trainer.h"

namespace lapidary {

TrainingState Trainer::training_state() const {
  const LoaderState next = loader_->state();
  return {.step = step_,
          .epoch = next.epoch,
          .position = next.position,
          .optimizer_steps = optimizer_->steps(),
          .total_steps = total_steps_,
          .schedule_steps = steps_of_schedule(),
          .seed = recipe_.seed,
          .micro_batch_size = recipe_.step_scheduler.local_batch_size,
          .global_batch_size = recipe_.step_scheduler.global_batch_size,
          .samples = static_cast<int64_t>(data_.samples->size())};
}

std::vector<StateTensor> Trainer::optimizer_state() {
  return optimizer_->state([this](const Parameter& p) {
    const Fsdp::Shard shard = model_.fsdp().shard_of(p);
    return ParameterShard{
        .whole = shard.whole, .part = shard.interval, .writes = shard.first_replica};
  });
}

void Trainer::go_on() {
  const TrainingState& saved = resumed_->state;
  require_same_data(saved, training_state(), resumed_->directory);
  read_state_tensors(resumed_->optimizer_directory(), optimizer_state());
  optimizer_->set_steps(saved.optimizer_steps);
  step_ = saved.step;
  epoch_ = saved.epoch;
  loader_->seek({.epoch = saved.epoch, .position = saved.position});
  // Steps are whole turns of all ranks, but for the last one of an epoch.
  batches_of_epoch_ = (saved.position + data_parallel_.size() - 1) / data_parallel_.size();
}

}  // namespace lapidary
