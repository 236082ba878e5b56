#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "lapidary/checkpoint/safetensors.h"
#include "lapidary/comm/process_group.h"

namespace lapidary {

// The tensors of a Hugging Face model directory as one list: `model.safetensors`, or the shards
// that `model.safetensors.index.json` names. A path of one .safetensors file works too.
class HfReader {
 public:
  // Error, with all of them listed, when index and shards contradict each other: a shard that is
  // missing, a tensor that its shard lacks, a tensor of a shard that the index puts elsewhere or
  // doesn't name. `stem`: "model", or "adapter_model" for a PEFT adapter.
  explicit HfReader(const std::string& path, const std::string& stem = "model");

  const std::string& path() const { return path_; }
  // Shard after shard, each in the order of its file.
  const std::vector<const TensorEntry*>& entries() const { return entries_; }
  const TensorEntry* find(std::string_view name) const;  // null when absent
  const TensorEntry& at(std::string_view name) const;    // Error when absent

 private:
  void read_index(const std::string& directory, const std::string& index);
  std::string path_;
  std::vector<SafetensorsReader> files_;
  std::vector<const TensorEntry*> entries_;
  std::map<std::string_view, const TensorEntry*> by_name_;
};

struct HfWriteOptions {
  int64_t max_shard_bytes = 5'000'000'000;  // a larger tensor gets a shard of its own
  std::string stem = "model";
  // More files: name ("config.json", "adapter_config.json") to contents.
  std::map<std::string, std::string> files = {};
  // A model directory whose tokenizer and processor files are copied, as far as it has them and
  // `files` doesn't; "" for none.
  std::string tokenizer_source = {};
  // Replace an existing model directory (with config.json, adapter_config.json or safetensors files
  // and without subdirectories; never anything else).
  bool overwrite = false;
};

// Writes a model directory as a whole or not at all: under `<directory>.incomplete-<pid>-<n>`,
// synced, then renamed. One `<stem>.safetensors` when all fits one shard, else
// `<stem>-00001-of-0000N.safetensors` and `<stem>.safetensors.index.json`, filled in the given
// order. An existing target is an Error unless it is empty or options.overwrite is set; it is then
// exchanged for the new one and removed.
//
// Collective: every rank of the group gives the same list (names, shapes, target types, order), the
// same stem and max_shard_bytes, and its own parts of the tensors, which together must be every
// element exactly once. The first rank makes the directory and all files in it with their full
// length, everybody writes its parts into them, the first rank publishes. The other options and the
// directory are those of the first rank; the file system must be shared. Where a rank fails nothing
// is published, and every rank throws.
void write_hf_model(const std::string& directory, const std::vector<TensorSource>& tensors,
                    const HfWriteOptions& options, ProcessGroup& group);
// One rank, whole tensors.
void write_hf_model(const std::string& directory, const std::vector<TensorSource>& tensors,
                    const HfWriteOptions& options = {});

// For a TensorSource::part of what any rank could write alone (tensors of a mapped file): all
// elements on the first rank, none on the others.
Interval part_of_first_rank(int64_t elements, const ProcessGroup& group);

}  // namespace lapidary
