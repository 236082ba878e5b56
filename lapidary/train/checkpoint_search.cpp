#include "lapidary/train/checkpoint_search.h"

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "lapidary/checkpoint/agreement.h"
#include "lapidary/checkpoint/files.h"
#include "lapidary/checkpoint/hf.h"
#include "lapidary/core/error.h"

namespace lapidary {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kMaxStateBytes = 1 << 16;

// The step of "epoch_E_step_S".
std::optional<int64_t> step_in(const std::string& name) {
  const std::string prefix = "epoch_", middle = "_step_";
  const size_t at = name.find(middle);
  if (name.rfind(prefix, 0) != 0 || at == std::string::npos) return std::nullopt;
  const auto number = [](std::string_view text) -> std::optional<int64_t> {
    int64_t value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc() || end != text.data() + text.size() || value < 0) return std::nullopt;
    return value;
  };
  if (!number(std::string_view(name).substr(prefix.size(), at - prefix.size())))
    return std::nullopt;
  return number(std::string_view(name).substr(at + middle.size()));
}

std::string named_by_latest(const fs::path& folder) {
  std::error_code error;
  const fs::path link = fs::read_symlink(folder / "LATEST", error);
  if (!error) return link.filename().string();
  if (!fs::exists(folder / "LATEST.txt", error)) return "";
  std::string name = read_text_file((folder / "LATEST.txt").string(), 4096);
  while (!name.empty() && (name.back() == '\n' || name.back() == '\r')) name.pop_back();
  return name;
}

// Checkpoints by their names, the highest step first; unfinished ones are not among them.
std::vector<std::string> checkpoints_in(const fs::path& folder) {
  std::vector<std::pair<int64_t, std::string>> found;
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder, error)) {
    const std::string name = entry.path().filename().string();
    if (const std::optional<int64_t> step = step_in(name)) found.emplace_back(*step, name);
  }
  std::sort(found.rbegin(), found.rend());
  std::vector<std::string> names;
  for (const auto& [step, name] : found) names.push_back(name);
  return names;
}

// One line for each checkpoint of the folder, with what it lacks.
std::string listing(const fs::path& folder) {
  std::string list;
  for (const std::string& name : checkpoints_in(folder)) {
    TrainingState ignored;
    const std::string lack = incompleteness((folder / name).string(), &ignored);
    list += "\n  " + name + ": " + (lack.empty() ? "complete" : lack);
  }
  return list.empty() ? "there is no checkpoint in " + folder.string()
                      : "in " + folder.string() + " are:" + list;
}

FoundCheckpoint latest(const fs::path& folder) {
  FoundCheckpoint found;
  const std::string name = named_by_latest(folder);
  std::vector<std::string> candidates = checkpoints_in(folder);
  if (step_in(name)) candidates.insert(candidates.begin(), name);
  for (const std::string& candidate : candidates) {
    const std::string lack = incompleteness((folder / candidate).string(), &found.state);
    if (lack.empty()) {
      found.directory = (folder / candidate).string();
      return found;
    }
    const std::string line = candidate + " is passed over: " + lack;
    if (std::find(found.messages.begin(), found.messages.end(), line) == found.messages.end())
      found.messages.push_back(line);
  }
  fail("restore_from: LATEST", "no complete checkpoint; " + listing(folder),
       "name another checkpoint_dir, or leave restore_from out to begin anew");
}

FoundCheckpoint search(const fs::path& folder, const std::string& restore_from) {
  FoundCheckpoint found;
  std::error_code error;
  if (restore_from == "LATEST") {
    found = latest(folder);
  } else {
    const bool by_name = restore_from.find('/') == std::string::npos && step_in(restore_from);
    found.directory = by_name ? (folder / restore_from).string() : restore_from;
    const std::string lack = incompleteness(found.directory, &found.state);
    if (!lack.empty()) fail("restore_from: " + restore_from, lack + "; " + listing(folder));
  }
  const fs::path path = fs::canonical(found.directory, error);
  if (error) fail(found.directory, "can't be opened: " + error.message());
  found.directory = path.string();
  found.in_folder = fs::equivalent(path.parent_path(), folder, error) && !error;
  return found;
}

}  // namespace

std::string incompleteness(const std::string& directory, TrainingState* state) {
  const fs::path path = directory;
  std::error_code error;
  if (!fs::is_directory(path, error)) return "is not a directory";
  if (path.filename().string().find(".incomplete") != std::string::npos) return "is not finished";
  for (const char* name : {"config.yaml", "losses.json", "model/consolidated/config.json"})
    if (!fs::exists(path / name, error)) return std::string("has no ") + name;
  if (!fs::exists(path / "state.json", error))
    return "has no state.json: it is a model, without the state of its training";
  try {
    const std::string text = (path / "state.json").string();
    *state = parse_training_state(read_text_file(text, kMaxStateBytes), text);
    const HfReader model((path / "model" / "consolidated").string());
    const HfReader optimizer((path / "optim").string(), "optimizer");
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

std::optional<FoundCheckpoint> find_checkpoint(const std::string& folder,
                                               const std::string& restore_from,
                                               ProcessGroup& group) {
  FoundCheckpoint found;
  bool asked = false;
  on_first_rank(group, folder, [&] {
    asked = !restore_from.empty();
    if (asked) found = search(folder, restore_from);
  });
  found.directory = broadcast_text(group, found.directory);
  if (found.directory.empty()) return std::nullopt;
  found.in_folder = !broadcast_text(group, found.in_folder ? "yes" : "").empty();
  found.state = parse_training_state(broadcast_text(group, to_json(found.state)), found.directory);
  return found;
}

void cut_log(const std::string& path, int64_t steps) {
  std::error_code error;
  if (!fs::exists(path, error)) return;
  std::ifstream in(path, std::ios::binary);
  if (!in) fail(path, "can't be read");
  std::string kept, line;
  bool same = true;
  while (std::getline(in, line)) {
    const auto json = nlohmann::json::parse(line, nullptr, false);
    const auto step = json.is_object() ? json.find("step") : json.end();
    const bool keep = json.is_object() && step != json.end() && step->is_number_integer() &&
                      step->get<int64_t>() < steps && !in.eof();
    if (keep) kept += line + "\n";
    same = same && keep;
  }
  if (in.bad()) fail(path, "can't be read");
  if (same) return;
  const std::string beside = path + ".incomplete";
  write_text_file(beside, kept);
  fs::rename(beside, path, error);
  if (error) fail(path, "can't be replaced: " + error.message());
  sync_directory(fs::path(path).parent_path().string());
}

}  // namespace lapidary
