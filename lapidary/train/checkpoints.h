#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "lapidary/comm/process_group.h"
#include "lapidary/models/gemma4/conditional_generation.h"
#include "lapidary/train/checkpoint_search.h"

namespace lapidary {

// The folder of a run, laid out as NeMo does:
//   training.jsonl  validation.jsonl  LATEST -> epoch_E_step_S
//   epoch_E_step_S/  config.yaml  losses.json  state.json  optim/
//                    model/consolidated/ (a Hugging Face directory)
// A checkpoint appears under its name only when it is complete, on all ranks; LATEST moves last.
// Every method is collective; only the first rank makes, names, moves and removes.
class CheckpointStore {
 public:
  // Makes the folder, for a run of one rank that begins.
  explicit CheckpointStore(const std::string& folder);
  // The group must outlive the object. What an unfinished save left is removed. Then, unless
  // `resumed` is a checkpoint of this folder, what an earlier run left there moves to previous-N/
  // below it; else nothing moves, and the logs keep the lines of the checkpoint's steps alone.
  CheckpointStore(const std::string& folder, ProcessGroup& group,
                  const std::optional<FoundCheckpoint>& resumed = {});

  const std::string& folder() const { return folder_; }
  // "previous-3" if the constructor moved something, else ""; on the first rank.
  const std::string& moved_to() const { return moved_to_; }

  struct Contents {
    int64_t epoch = 0;
    int64_t step = 0;
    std::string config_yaml;
    std::string losses_json;
    std::string tokenizer_source;  // directory, or "" for the model's own
    // Both set: the run can be resumed from here. optimizer_state is called once, on every rank.
    std::optional<TrainingState> state = {};
    std::function<std::vector<StateTensor>()> optimizer_state = {};
  };
  // Writes a model into this directory, which is not there yet; collective.
  using SaveModel = std::function<void(const std::string& directory)>;
  // Returns the Hugging Face directory. A checkpoint of the same name (of a run that was resumed
  // from an earlier one) is replaced. On an error (a full disk) on any rank every rank throws and
  // earlier checkpoints stay.
  std::string save(const SaveModel& save_model, const Contents& contents);
  std::string save(gemma4::Gemma4ForConditionalGeneration& model, const Contents& contents);

 private:
  void begin_anew();
  void clean() const;
  void publish(const std::string& written, const std::string& name, const Contents& contents) const;

  std::string folder_;
  std::string moved_to_;
  SelfGroup alone_;
  ProcessGroup* group_;
};

}  // namespace lapidary
