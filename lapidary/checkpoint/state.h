#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "lapidary/checkpoint/safetensors.h"
#include "lapidary/comm/process_group.h"
#include "lapidary/core/device.h"

// What a run needs beside its model to go on where it stopped, on any number of ranks: tensors of
// the optimiser as intervals of whole tensors, and a few numbers.
namespace lapidary {

// The part of a tensor that this rank has in memory.
struct StateTensor {
  std::string name = {};           // "<parameter>.exp_avg"
  Shape shape = {};                // of the whole tensor
  Interval part = {};              // elements of the flattened whole tensor that `value` holds
  bool writes = true;              // false: another rank, which has the same part, writes it
  Tensor value = {};               // [part.size()], contiguous
  Backend backend = Backend::cpu;  // where `value` lies
};

// Writes `directory`, a new one, with the files optimizer*.safetensors: every tensor in its own
// type, bit for bit. Collective, as write_hf_model() is: every rank gives all tensors in the same
// order, the parts of those that write are every element once. The tensors must outlive the call.
void write_state_tensors(const std::string& directory, const std::vector<StateTensor>& tensors,
                         ProcessGroup& group);

// Reads this rank's part of each tensor into `value`, and touches no other element of the files.
// Each rank calls it by itself. Error, with every mistake, unless the files hold exactly these
// names, with these shapes and types.
void read_state_tensors(const std::string& directory, const std::vector<StateTensor>& tensors);

// Where a run stands, between two optimiser steps. Nothing in it depends on the number of ranks.
struct TrainingState {
  int64_t step = 0;               // finished steps of the run
  int64_t epoch = 0;              // of the next step
  int64_t position = 0;           // micro-batches of that epoch, over all ranks, that are used up
  int64_t optimizer_steps = 0;    // updates that the optimiser has counted
  int64_t total_steps = 1;        // of the whole run
  int64_t schedule_steps = 1;     // that the learning rate's schedule is laid out for
  int64_t seed = 0;               // of everything random
  int64_t micro_batch_size = 1;   // samples
  int64_t global_batch_size = 1;  // samples of a step
  int64_t samples = 1;            // of an epoch
  bool operator==(const TrainingState&) const = default;
};

std::string to_json(const TrainingState& state);
// Error, with every mistake, unless `text` is what to_json() makes: the version, exactly these
// keys, whole numbers in their ranges, step <= total_steps, the position inside the epoch.
TrainingState parse_training_state(const std::string& text, const std::string& where);

// Error, with every difference, unless a run with the numbers of `run` sees the same data in the
// same order as the one that was saved: seed, sizes of micro-batch and global batch, number of
// samples. The lengths of the run and of its schedule may differ.
void require_same_data(const TrainingState& saved, const TrainingState& run,
                       const std::string& where);

}  // namespace lapidary
