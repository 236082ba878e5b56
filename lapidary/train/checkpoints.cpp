#include "lapidary/train/checkpoints.h"

#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "lapidary/core/error.h"

namespace lapidary {
namespace {

namespace fs = std::filesystem;

bool of_a_run(const std::string& name) {
  return name == "training.jsonl" || name == "validation.jsonl" || name == "LATEST" ||
         name.rfind("epoch_", 0) == 0;
}

void write_text(const fs::path& path, const std::string& text) {
  std::ofstream out(path, std::ios::binary);
  out << text;
  out.close();
  if (!out) fail(path.string(), "cannot be written", "is the disk full?");
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
  if (error) return write_text(folder / "LATEST.txt", name + "\n");  // no links on this disk
  fs::rename(temporary, folder / "LATEST");
}

// Removes a half-written checkpoint when saving fails.
class Incomplete {
 public:
  explicit Incomplete(fs::path path) : path_(std::move(path)) {
    fs::remove_all(path_);
    fs::create_directories(path_ / "model");
  }
  ~Incomplete() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  Incomplete(const Incomplete&) = delete;
  Incomplete& operator=(const Incomplete&) = delete;
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

}  // namespace

CheckpointStore::CheckpointStore(const std::string& folder) : folder_(folder) {
  file_work(folder, [&] {
    fs::create_directories(folder_);
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
    for (const fs::path& path : old) {
      fs::rename(path, fs::path(folder_) / moved_to_ / path.filename());
    }
  });
}

std::string CheckpointStore::save(gemma4::Gemma4ForConditionalGeneration& model,
                                  const Contents& contents) {
  const std::string name =
      "epoch_" + std::to_string(contents.epoch) + "_step_" + std::to_string(contents.step);
  const fs::path target = fs::path(folder_) / name;
  file_work(target.string(), [&] {
    const Incomplete temporary(target.string() + ".incomplete");
    gemma4::SaveOptions options{.dtype = model.dtype()};
    options.tokenizer_source = contents.tokenizer_source;
    model.save_pretrained((temporary.path() / "model" / "consolidated").string(), options);
    write_text(temporary.path() / "config.yaml", contents.config_yaml);
    write_text(temporary.path() / "losses.json", contents.losses_json);
    fs::rename(temporary.path(), target);
    point_latest(folder_, name);
  });
  return (target / "model" / "consolidated").string();
}

}  // namespace lapidary
