#include "lapidary/checkpoint/hf.h"

#include <fmt/format.h>

#include <filesystem>
#include <set>

#include "lapidary/checkpoint/files.h"
#include "lapidary/checkpoint/json.h"
#include "lapidary/core/error.h"

namespace lapidary {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kMaxIndexBytes = int64_t{32} << 20;
constexpr size_t kMaxListed = 50;

// Problems, cut off where a list would no longer help.
class Contradictions {
 public:
  void add(const std::string& what) {
    if (++count_ <= kMaxListed) list_.add("", what);
  }
  void throw_if_any(const std::string& where) {
    if (count_ > kMaxListed) list_.add("", fmt::format("and {} more", count_ - kMaxListed));
    list_.throw_if_any(where);
  }

 private:
  Problems list_;
  size_t count_ = 0;
};

// weight_map: tensor name to file name.
std::map<std::string, std::string> read_weight_map(const std::string& index) {
  const nlohmann::json root = parse_json(read_text_file(index, kMaxIndexBytes), index);
  const auto map = root.is_object() ? root.find("weight_map") : root.end();
  if (!root.is_object() || map == root.end() || !map->is_object())
    fail(index, "has no object \"weight_map\"");
  std::map<std::string, std::string> files;
  for (const auto& [name, file] : map->items()) {
    const std::string text = file.is_string() ? file.get<std::string>() : "";
    if (text.empty() || text == "." || text == ".." || text.find('/') != std::string::npos ||
        text.find('\\') != std::string::npos)
      fail(index,
           "tensor " + in_quotes(name) + " is not given the name of a file beside the index");
    files[name] = text;
  }
  return files;
}

}  // namespace

HfReader::HfReader(const std::string& path, const std::string& stem) : path_(path) {
  std::error_code ignored;
  if (fs::is_directory(path, ignored)) {
    const std::string single = (fs::path(path) / (stem + ".safetensors")).string();
    const std::string index = single + ".index.json";
    if (fs::exists(single, ignored))
      files_.emplace_back(single);
    else if (fs::exists(index, ignored))
      read_index(path, index);
    else
      fail(path, fmt::format("has neither {0}.safetensors nor {0}.safetensors.index.json", stem));
  } else {
    files_.emplace_back(path);
  }
  for (const SafetensorsReader& file : files_) {
    for (const TensorEntry& entry : file.entries()) {
      entries_.push_back(&entry);
      by_name_.emplace(entry.name, &entry);
    }
  }
}

void HfReader::read_index(const std::string& directory, const std::string& index) {
  const std::map<std::string, std::string> weight_map = read_weight_map(index);
  std::set<std::string> shards;
  for (const auto& [name, file] : weight_map) shards.insert(file);

  Contradictions found;
  const auto path_of = [&](const std::string& shard) {
    return (fs::path(directory) / shard).string();
  };
  // First: the long list of single tensors may be cut off.
  const auto is_missing = [&](const std::string& shard) {
    std::error_code ignored;
    if (fs::exists(path_of(shard), ignored)) return false;
    found.add("the shard " + in_quotes(shard) + " is missing");
    return true;
  };
  std::erase_if(shards, is_missing);
  for (const std::string& shard : shards) {
    const SafetensorsReader& file = files_.emplace_back(path_of(shard));
    for (const auto& [name, home] : weight_map)
      if (home == shard && file.find(name) == nullptr)
        found.add("tensor " + in_quotes(name) + " is not in its shard " + in_quotes(shard));
    for (const TensorEntry& entry : file.entries()) {
      const auto home = weight_map.find(entry.name);
      if (home == weight_map.end())
        found.add("tensor " + in_quotes(entry.name) + " of shard " + in_quotes(shard) +
                  " is not in the index");
      else if (home->second != shard)
        found.add("tensor " + in_quotes(entry.name) + " is in shard " + in_quotes(shard) +
                  ", but the index says " + in_quotes(home->second));
    }
  }
  found.throw_if_any(index);
}

const TensorEntry* HfReader::find(std::string_view name) const {
  const auto it = by_name_.find(name);
  return it == by_name_.end() ? nullptr : it->second;
}

const TensorEntry& HfReader::at(std::string_view name) const {
  const TensorEntry* entry = find(name);
  if (entry == nullptr) fail(path_, "has no tensor " + in_quotes(name));
  return *entry;
}

}  // namespace lapidary
