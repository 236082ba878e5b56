#pragma once

#include <string>

#include "lapidary/checkpoint/hf.h"

namespace lapidary {

// A model directory under construction: made beside its target as
// `<target>.incomplete-<pid>-<n>`, removed with its contents unless it was published.
class ModelDirectory {
 public:
  // Error when the target is there already and must not be replaced: see HfWriteOptions.
  ModelDirectory(const std::string& target, bool overwrite);
  ~ModelDirectory();
  ModelDirectory(const ModelDirectory&) = delete;
  ModelDirectory& operator=(const ModelDirectory&) = delete;

  const std::string& path() const { return path_; }
  // options.files and the files of options.tokenizer_source.
  void write_small_files(const HfWriteOptions& options) const;
  // Gives it the target's name, in one step where the file system can; an old directory of that
  // name is removed with this object.
  void publish();

 private:
  void exchange_in_steps();
  std::string target_, path_;
  bool overwrite_;
};

}  // namespace lapidary
