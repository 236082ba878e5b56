#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "lapidary/checkpoint/state.h"
#include "lapidary/comm/process_group.h"

namespace lapidary {

// A complete checkpoint that a run can go on from.
struct FoundCheckpoint {
  std::string directory;   // absolute, without links
  bool in_folder = false;  // it belongs to the run's own folder
  TrainingState state;
  std::vector<std::string> messages;  // what was passed over, on the first rank

  std::string model_directory() const { return directory + "/model/consolidated"; }
  std::string optimizer_directory() const { return directory + "/optim"; }
};

// What restore_from asks for; nullopt for "". "LATEST": the checkpoint that LATEST (or LATEST.txt)
// of the folder names or, where that is not complete, the complete one of the highest step. A name:
// that checkpoint of the folder. Otherwise a path of a checkpoint. Moves and changes nothing. Error
// that lists what the folder has when there is no such checkpoint, or when it is not complete.
// Collective; the first rank alone looks.
std::optional<FoundCheckpoint> find_checkpoint(const std::string& folder,
                                               const std::string& restore_from,
                                               ProcessGroup& group);

// Why a directory is no complete checkpoint, "" when it is one: config.yaml, losses.json,
// state.json, model and optimiser, with files of their full length.
std::string incompleteness(const std::string& directory, TrainingState* state);

// Leaves the lines of a log of finished steps, those whose "step" is below `steps`; what is torn
// goes too. The file changes in one step or not at all; none is no error.
void cut_log(const std::string& path, int64_t steps);

}  // namespace lapidary
