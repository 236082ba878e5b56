#pragma once

#include <cstdint>
#include <string>

#include "lapidary/models/gemma4/conditional_generation.h"

namespace lapidary {

// The folder of a run, laid out as NeMo does:
//   training.jsonl  validation.jsonl  LATEST -> epoch_E_step_S
//   epoch_E_step_S/  config.yaml  losses.json  model/consolidated/ (a Hugging Face directory)
// A checkpoint appears under its name only when it is complete; LATEST moves last.
class CheckpointStore {
 public:
  // Makes the folder. What an earlier run left there moves to previous-N/ below it.
  explicit CheckpointStore(const std::string& folder);

  const std::string& folder() const { return folder_; }
  // "previous-3" if the constructor moved something, else "".
  const std::string& moved_to() const { return moved_to_; }

  struct Contents {
    int64_t epoch = 0;
    int64_t step = 0;
    std::string config_yaml;
    std::string losses_json;
    std::string tokenizer_source;  // directory, or "" for the model's own
  };
  // Returns the Hugging Face directory. On an error (a full disk) earlier checkpoints stay.
  std::string save(gemma4::Gemma4ForConditionalGeneration& model, const Contents& contents);

 private:
  std::string folder_;
  std::string moved_to_;
};

}  // namespace lapidary
