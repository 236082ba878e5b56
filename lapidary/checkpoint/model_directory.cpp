#include "lapidary/checkpoint/model_directory.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <stdio.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <filesystem>

#include "lapidary/checkpoint/files.h"
#include "lapidary/checkpoint/json.h"
#include "lapidary/core/error.h"

namespace lapidary {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kMaxCopiedBytes = int64_t{1} << 30;
constexpr const char* kTokenizerFiles[] = {
    "tokenizer.json",         "tokenizer_config.json", "special_tokens_map.json",
    "generation_config.json", "chat_template.jinja",   "processor_config.json",
    "added_tokens.json",      "tokenizer.model",       "preprocessor_config.json"};

std::string system_reason() { return std::strerror(errno); }

// The target without trailing slashes and symbolic links.
fs::path resolve_target(const std::string& directory) {
  std::error_code error;
  fs::path target = fs::weakly_canonical(directory, error);
  if (!error && !target.has_filename()) target = target.parent_path();
  if (directory.empty() || error || !target.has_filename() || !target.has_parent_path())
    fail(directory.empty() ? "output directory" : directory, "can't be a model directory");
  return target;
}

// Flat, with a configuration or weights: what write_hf_model makes.
bool looks_like_model(const fs::path& directory) {
  std::error_code error;
  bool found = false;
  for (const fs::directory_entry& entry : fs::directory_iterator(directory, error)) {
    if (entry.is_directory(error)) return false;
    const fs::path name = entry.path().filename();
    found = found || name == "config.json" || name == "adapter_config.json" ||
            name.extension() == ".safetensors";
  }
  return found;
}

void check_target(const fs::path& target, bool overwrite) {
  std::error_code error;
  if (!fs::exists(target, error)) return;
  if (!fs::is_directory(target, error)) fail(target.string(), "exists and is not a directory");
  if (fs::is_empty(target, error)) return;
  if (!overwrite)
    fail(target.string(), "exists already", "choose another directory or ask for overwriting");
  if (!looks_like_model(target))
    fail(target.string(), "is not a plain model directory, so it is not overwritten",
         "choose another directory");
}

}  // namespace

ModelDirectory::ModelDirectory(const std::string& target, bool overwrite) : overwrite_(overwrite) {
  const fs::path resolved = resolve_target(target);
  check_target(resolved, overwrite);
  target_ = resolved.string();
  const std::string parent = resolved.parent_path().string();
  std::error_code error;
  fs::create_directories(parent, error);
  if (error) fail(parent, "can't be created: " + error.message());
  static std::atomic<int> count{0};
  bool made = false;
  while (!made) {
    path_ = fmt::format("{}.incomplete-{}-{}", target_, ::getpid(), count++);
    made = fs::create_directory(path_, error);
    if (error) fail(path_, "can't be created: " + error.message());
  }
}

ModelDirectory::~ModelDirectory() {
  std::error_code ignored;
  fs::remove_all(path_, ignored);
}

void ModelDirectory::write_small_files(const HfWriteOptions& options) const {
  const fs::path directory = path_;
  for (const auto& [name, contents] : options.files) {
    if (name.empty() || name == "." || name == ".." || name.find('/') != std::string::npos)
      fail(directory.string(), in_quotes(name) + " is not the name of a file");
    write_text_file((directory / name).string(), contents);
  }
  if (options.tokenizer_source.empty()) return;
  std::error_code error;
  const fs::path source = options.tokenizer_source;
  if (!fs::is_directory(source, error))
    fail(source.string(), "is not a directory, so no tokenizer can be copied from it");
  for (const char* name : kTokenizerFiles)
    if (!options.files.contains(name) && fs::exists(source / name, error))
      write_text_file((directory / name).string(),
                      read_text_file((source / name).string(), kMaxCopiedBytes));
}

// Afterwards path_ holds nothing, or the old directory, which the destructor removes.
void ModelDirectory::publish() {
  sync_directory(path_);
  if (::rename(path_.c_str(), target_.c_str()) != 0) {  // works over an empty directory too
    if (!overwrite_ || (errno != ENOTEMPTY && errno != EEXIST))
      fail(target_, "can't be put in place: " + system_reason());
    if (::renameat2(AT_FDCWD, path_.c_str(), AT_FDCWD, target_.c_str(), RENAME_EXCHANGE) != 0)
      exchange_in_steps();
  }
  sync_directory(fs::path(target_).parent_path().string());
}

// For file systems that can't exchange two names at once: the old directory is renamed, never
// removed, before the new one has its name.
void ModelDirectory::exchange_in_steps() {
  const std::string old = path_ + "-old";
  if (::rename(target_.c_str(), old.c_str()) != 0)
    fail(target_, "can't be replaced: " + system_reason());
  if (::rename(path_.c_str(), target_.c_str()) != 0) {
    const std::string reason = system_reason();
    const bool restored = ::rename(old.c_str(), target_.c_str()) == 0;
    fail(target_, "can't be replaced: " + reason,
         restored ? "" : "its former contents are in " + old);
  }
  path_ = old;
}

}  // namespace lapidary
