#include <fcntl.h>
#include <fmt/format.h>
#include <stdio.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <filesystem>

#include "lapidary/checkpoint/files.h"
#include "lapidary/checkpoint/hf.h"
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

// The directory under construction; removed with its contents unless it was published.
class TemporaryDirectory {
 public:
  explicit TemporaryDirectory(const fs::path& target) : target_(target) {
    std::error_code error;
    fs::create_directories(target.parent_path(), error);
    if (error) fail(target.parent_path().string(), "can't be created: " + error.message());
    static std::atomic<int> count{0};
    bool made = false;
    while (!made) {
      path_ = fmt::format("{}.incomplete-{}-{}", target.string(), ::getpid(), count++);
      made = fs::create_directory(path_, error);
      if (error) fail(path_.string(), "can't be created: " + error.message());
    }
  }
  ~TemporaryDirectory() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;

  const fs::path& path() const { return path_; }

  // Afterwards path_ holds nothing, or the old directory, which the destructor removes.
  void publish(bool overwrite) {
    sync_directory(path_.string());
    if (::rename(path_.c_str(), target_.c_str()) != 0) {  // works over an empty directory too
      if (!overwrite || (errno != ENOTEMPTY && errno != EEXIST))
        fail(target_.string(), "can't be put in place: " + system_reason());
      if (::renameat2(AT_FDCWD, path_.c_str(), AT_FDCWD, target_.c_str(), RENAME_EXCHANGE) != 0)
        exchange_in_steps();
    }
    sync_directory(target_.parent_path().string());
  }

 private:
  // For file systems that can't exchange two names at once: the old directory is renamed, never
  // removed, before the new one has its name.
  void exchange_in_steps() {
    const std::string old = path_.string() + "-old";
    if (::rename(target_.c_str(), old.c_str()) != 0)
      fail(target_.string(), "can't be replaced: " + system_reason());
    if (::rename(path_.c_str(), target_.c_str()) != 0) {
      const std::string reason = system_reason();
      const bool restored = ::rename(old.c_str(), target_.c_str()) == 0;
      fail(target_.string(), "can't be replaced: " + reason,
           restored ? "" : "its former contents are in " + old);
    }
    path_ = old;
  }

  fs::path target_, path_;
};

void write_file(const fs::path& path, const std::string& contents) {
  const std::string name = path.string();
  const Descriptor file(::open(name.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666));
  if (file.get() < 0) fail(name, "can't be written: " + system_reason());
  write_all(file, name, contents.data(), static_cast<int64_t>(contents.size()));
  sync(file, name);
}

void write_small_files(const fs::path& directory, const HfWriteOptions& options) {
  for (const auto& [name, contents] : options.files) {
    if (name.empty() || name == "." || name == ".." || name.find('/') != std::string::npos)
      fail(directory.string(), in_quotes(name) + " is not the name of a file");
    write_file(directory / name, contents);
  }
  if (options.tokenizer_source.empty()) return;
  std::error_code error;
  const fs::path source = options.tokenizer_source;
  if (!fs::is_directory(source, error))
    fail(source.string(), "is not a directory, so no tokenizer can be copied from it");
  for (const char* name : kTokenizerFiles)
    if (!options.files.contains(name) && fs::exists(source / name, error))
      write_file(directory / name, read_text_file((source / name).string(), kMaxCopiedBytes));
}

std::vector<std::vector<TensorSource>> split(const std::vector<TensorSource>& tensors,
                                             int64_t max_bytes) {
  std::vector<std::vector<TensorSource>> shards(1);
  int64_t bytes = 0;
  for (const TensorSource& t : tensors) {
    if (!shards.back().empty() && bytes + t.target_bytes() > max_bytes) {
      shards.emplace_back();
      bytes = 0;
    }
    bytes += t.target_bytes();
    shards.back().push_back(t);
  }
  return shards;
}

void write_shards(const fs::path& directory, const std::vector<TensorSource>& tensors,
                  const HfWriteOptions& options) {
  if (options.max_shard_bytes < 1) fail(directory.string(), "max_shard_bytes must be positive");
  const auto shards = split(tensors, options.max_shard_bytes);
  const std::string single = options.stem + ".safetensors";
  if (shards.size() == 1) return write_safetensors((directory / single).string(), shards[0]);
  nlohmann::json weight_map = nlohmann::json::object();
  int64_t total = 0;
  for (size_t i = 0; i < shards.size(); ++i) {
    const std::string name =
        fmt::format("{}-{:05}-of-{:05}.safetensors", options.stem, i + 1, shards.size());
    for (const TensorSource& t : shards[i]) {
      if (weight_map.contains(t.name))
        fail(directory.string(), in_quotes(t.name) + " is given twice");
      weight_map[t.name] = name;
      total += t.target_bytes();
    }
    write_safetensors((directory / name).string(), shards[i]);
  }
  const nlohmann::json index = {{"metadata", {{"total_size", total}}}, {"weight_map", weight_map}};
  write_file(directory / (single + ".index.json"), index.dump(2) + "\n");
}

}  // namespace

void write_hf_model(const std::string& directory, const std::vector<TensorSource>& tensors,
                    const HfWriteOptions& options) {
  const fs::path target = resolve_target(directory);
  check_target(target, options.overwrite);
  TemporaryDirectory temporary(target);
  write_small_files(temporary.path(), options);  // first: they fail fast
  write_shards(temporary.path(), tensors, options);
  temporary.publish(options.overwrite);
}

}  // namespace lapidary
