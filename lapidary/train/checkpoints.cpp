#include "lapidary/train/checkpoints.h"

#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

#include "lapidary/checkpoint/agreement.h"
#include "lapidary/checkpoint/files.h"
#include "lapidary/core/error.h"

namespace lapidary {
namespace {

namespace fs = std::filesystem;

bool of_a_run(const std::string& name) {
  return name == "training.jsonl" || name == "validation.jsonl" || name == "LATEST" ||
         name == "LATEST.txt" || name.rfind("epoch_", 0) == 0;
}

// What a save, or the cutting of a log, leaves when it is killed.
bool unfinished(const std::string& name) {
  const bool ours = of_a_run(name.substr(0, name.find(".incomplete")));
  return (ours && name.find(".incomplete") != std::string::npos) || name.rfind(".LATEST-", 0) == 0;
}

// What the code below reports as one Error, whatever step of it fails.
template <class F>
void file_work(const std::string& where, F&& work) {
  try {
    work();
  } catch (const fs::filesystem_error& error) {
    fail(where, error.code().message(), "check the folder's permissions and free space");
  }
}

// LATEST points to the new checkpoint in one step: a reader never finds it missing.
void point_latest(const fs::path& folder, const std::string& name) {
  const fs::path temporary = folder / (".LATEST-" + std::to_string(::getpid()));
  fs::remove(temporary);
  std::error_code error;
  fs::create_directory_symlink(name, temporary, error);
  if (error)  // no links on this disk
    return write_text_file((folder / "LATEST.txt").string(), name + "\n");
  fs::rename(temporary, folder / "LATEST");
}

// A checkpoint of the same name is from steps that are being repeated: the new one takes its place.
void put_in_place(const fs::path& written, const fs::path& target) {
  if (!fs::exists(target)) return fs::rename(written, target);
  if (::renameat2(AT_FDCWD, written.c_str(), AT_FDCWD, target.c_str(), RENAME_EXCHANGE) != 0) {
    fs::rename(target, fs::path(target) += ".incomplete-old");
    fs::rename(written, target);
  }
}

// Removes a half-written checkpoint when saving fails, or one that was replaced.
class Incomplete {
 public:
  explicit Incomplete(fs::path path) : path_(std::move(path)) {
    fs::remove_all(path_);
    fs::create_directories(path_ / "model");
  }
  ~Incomplete() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
    fs::remove_all(fs::path(path_) += "-old", ignored);
  }
  Incomplete(const Incomplete&) = delete;
  Incomplete& operator=(const Incomplete&) = delete;

 private:
  fs::path path_;
};

}  // namespace

CheckpointStore::CheckpointStore(const std::string& folder) : folder_(folder), group_(&alone_) {
  begin_anew();
}

CheckpointStore::CheckpointStore(const std::string& folder, ProcessGroup& group,
                                 const std::optional<FoundCheckpoint>& resumed)
    : folder_(folder), group_(&group) {
  if (!resumed || !resumed->in_folder) {
    begin_anew();
    return;
  }
  on_first_rank(group, folder_, [&] {
    file_work(folder_, [&] { clean(); });
    for (const char* log : {"training.jsonl", "validation.jsonl"})
      cut_log((fs::path(folder_) / log).string(), resumed->state.step);
  });
}

void CheckpointStore::clean() const {
  std::vector<fs::path> left;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder_))
    if (unfinished(entry.path().filename().string())) left.push_back(entry.path());
  for (const fs::path& path : left) fs::remove_all(path);
}

void CheckpointStore::begin_anew() {
  const auto move = [&] {
    fs::create_directories(folder_);
    clean();
    std::vector<fs::path> old;
    int previous = 1;
    for (const fs::directory_entry& entry : fs::directory_iterator(folder_)) {
      const std::string name = entry.path().filename().string();
      if (of_a_run(name)) old.push_back(entry.path());
    }
    if (old.empty()) return;
    while (fs::exists(fs::path(folder_) / ("previous-" + std::to_string(previous)))) ++previous;
    moved_to_ = "previous-" + std::to_string(previous);
    fs::create_directory(fs::path(folder_) / moved_to_);
    for (const fs::path& path : old)
      fs::rename(path, fs::path(folder_) / moved_to_ / path.filename());
  };
  on_first_rank(*group_, folder_, [&] { file_work(folder_, move); });
}

// The small files, then the names.
void CheckpointStore::publish(const std::string& written, const std::string& name,
                              const Contents& contents) const {
  const auto write = [&](const char* file, const std::string& text) {
    write_text_file((fs::path(written) / file).string(), text);
  };
  write("config.yaml", contents.config_yaml);
  write("losses.json", contents.losses_json);
  if (contents.state) write("state.json", to_json(*contents.state));
  sync_directory(written);
  put_in_place(written, fs::path(folder_) / name);
  sync_directory(folder_);
  point_latest(folder_, name);
  sync_directory(folder_);
}

std::string CheckpointStore::save(const SaveModel& save_model, const Contents& contents) {
  const std::string name =
      "epoch_" + std::to_string(contents.epoch) + "_step_" + std::to_string(contents.step);
  const std::string target = (fs::path(folder_) / name).string();
  const std::string written = target + ".incomplete";
  std::optional<Incomplete> temporary;  // of the first rank
  on_first_rank(*group_, target, [&] { file_work(target, [&] { temporary.emplace(written); }); });
  save_model(written + "/model/consolidated");
  if (contents.state) {
    std::vector<StateTensor> tensors;
    together(*group_, target, [&] { tensors = contents.optimizer_state(); });
    write_state_tensors(written + "/optim", tensors, *group_);
  }
  on_first_rank(*group_, target,
                [&] { file_work(target, [&] { publish(written, name, contents); }); });
  return (fs::path(target) / "model" / "consolidated").string();
}

std::string CheckpointStore::save(gemma4::Gemma4ForConditionalGeneration& model,
                                  const Contents& contents) {
  const auto save_model = [&](const std::string& directory) {
    gemma4::SaveOptions options{.dtype = model.dtype()};
    options.tokenizer_source = contents.tokenizer_source;
    model.save_pretrained(directory, options);
  };
  return save(save_model, contents);
}

}  // namespace lapidary
