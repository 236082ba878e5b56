#include <fcntl.h>
#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <optional>

#include "lapidary/checkpoint/agreement.h"
#include "lapidary/checkpoint/files.h"
#include "lapidary/checkpoint/hf.h"
#include "lapidary/checkpoint/json.h"
#include "lapidary/checkpoint/model_directory.h"
#include "lapidary/checkpoint/parts.h"
#include "lapidary/checkpoint/safetensors_layout.h"
#include "lapidary/core/error.h"

namespace lapidary {
namespace {

namespace fs = std::filesystem;

// The files of a model directory, the same on every rank.
struct Plan {
  struct File {
    std::string name;
    FileLayout layout;
  };
  std::vector<File> files;
  std::string index;  // contents; "" when there is one file
};

std::vector<std::vector<const TensorSource*>> split(const std::vector<TensorSource>& tensors,
                                                    int64_t max_bytes) {
  std::vector<std::vector<const TensorSource*>> shards(1);
  int64_t bytes = 0;
  for (const TensorSource& t : tensors) {
    if (!shards.back().empty() && bytes + t.target_bytes() > max_bytes) {
      shards.emplace_back();
      bytes = 0;
    }
    bytes += t.target_bytes();
    shards.back().push_back(&t);
  }
  return shards;
}

Plan make_plan(const std::string& where, const std::vector<TensorSource>& tensors,
               const HfWriteOptions& options) {
  check_sources(where, tensors);
  if (options.max_shard_bytes < 1) fail(where, "max_shard_bytes must be positive");
  const auto shards = split(tensors, options.max_shard_bytes);
  Plan plan;
  nlohmann::json weight_map = nlohmann::json::object();
  int64_t total = 0;
  for (size_t i = 0; i < shards.size(); ++i) {
    const std::string name = shards.size() == 1 ? options.stem + ".safetensors"
                                                : fmt::format("{}-{:05}-of-{:05}.safetensors",
                                                              options.stem, i + 1, shards.size());
    for (const TensorSource* t : shards[i]) {
      weight_map[t->name] = name;
      total += t->target_bytes();
    }
    plan.files.push_back({name, lay_out(where, shards[i], {{"format", "pt"}})});
  }
  if (shards.size() == 1) return plan;
  const nlohmann::json index = {{"metadata", {{"total_size", total}}}, {"weight_map", weight_map}};
  plan.index = index.dump(2) + "\n";
  return plan;
}

Descriptor open_for_writing(const std::string& path, int flags) {
  Descriptor file(::open(path.c_str(), O_WRONLY | O_CLOEXEC | flags, 0666));
  if (file.get() < 0) fail(path, std::string("can't be written: ") + std::strerror(errno));
  return file;
}

// What the first rank does before the others write: every file, with its header and its full
// length.
void prepare(const ModelDirectory& directory, const Plan& plan, const HfWriteOptions& options) {
  const fs::path root = directory.path();
  directory.write_small_files(options);  // first: they fail fast
  if (!plan.index.empty())
    write_text_file((root / (options.stem + ".safetensors.index.json")).string(), plan.index);
  for (const Plan::File& planned : plan.files) {
    const std::string path = (root / planned.name).string();
    const Descriptor file = open_for_writing(path, O_CREAT | O_EXCL);
    reserve(file, path, planned.layout.bytes);
    write_at(file, path, planned.layout.header.data(),
             static_cast<int64_t>(planned.layout.header.size()), 0);
    sync(file, path);
  }
}

// What every rank does: its parts into the files that have any.
void write_parts(const std::string& directory, const Plan& plan) {
  for (const Plan::File& planned : plan.files) {
    const auto& places = planned.layout.places;
    if (std::all_of(places.begin(), places.end(), [](const FileLayout::Place& place) {
          return place.tensor->elements().empty();
        }))
      continue;
    const std::string path = (fs::path(directory) / planned.name).string();
    const Descriptor file = open_for_writing(path, 0);
    for (const FileLayout::Place& place : places) write_part(file, path, place);
    sync(file, path);
  }
}

}  // namespace

Interval part_of_first_rank(int64_t elements, const ProcessGroup& group) {
  return {0, group.rank() == 0 ? elements : 0};
}

void write_hf_model(const std::string& directory, const std::vector<TensorSource>& tensors,
                    const HfWriteOptions& options, ProcessGroup& group) {
  const std::string where = directory.empty() ? "output directory" : directory;
  Plan plan;
  together(group, where, [&] { plan = make_plan(where, tensors, options); });
  require_same_tensors(where, tensors, options.stem, options.max_shard_bytes, group);
  require_every_element_once(where, tensors, group);
  std::optional<ModelDirectory> made;  // of the first rank
  on_first_rank(group, where, [&] {
    made.emplace(directory, options.overwrite);
    prepare(*made, plan, options);
  });
  const std::string path = broadcast_text(group, made ? made->path() : "");
  together(group, where, [&] { write_parts(path, plan); });
  on_first_rank(group, where, [&] { made->publish(); });
}

void write_hf_model(const std::string& directory, const std::vector<TensorSource>& tensors,
                    const HfWriteOptions& options) {
  SelfGroup alone;
  write_hf_model(directory, tensors, options, alone);
}

}  // namespace lapidary
