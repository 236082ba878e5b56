#pragma once

#include <nlohmann/json.hpp>

#include "lapidary/checkpoint/safetensors.h"
#include "lapidary/core/buffer.h"
#include "tests/support/process.h"

// The program as its users run it, and the files that it reads and writes.
namespace lapidary::test {

// Runs `lapidary ARGUMENTS...`, with one thread unless the environment says otherwise.
ProcessResult lapidary_program(const std::vector<std::string>& arguments,
                               const ProcessOptions& options = {});
std::vector<std::string> lapidary_command(const std::vector<std::string>& arguments);

// Exit code 1 and one message on standard error, which holds all of the fragments.
void expect_error(const ProcessResult& result, const std::vector<std::string>& fragments);
// Exit code 2, an explanation on standard error, nothing on standard output.
void expect_usage_error(const ProcessResult& result, const std::string& fragment);
void expect_success(const ProcessResult& result);
bool contains(const std::string& text, const std::string& part);

std::filesystem::path source_file(const std::string& path);
std::string golden(const std::string& name);  // folder of a golden case

// Every line parsed; throws for a line that is not whole.
std::vector<nlohmann::json> read_jsonl(const std::filesystem::path& path);
std::vector<double> column(const std::vector<nlohmann::json>& rows, const std::string& name);

// All elements of a tensor of a file, as doubles; throws when there is none of that name.
OwnedTensor load_tensor(const std::string& path, const std::string& name);
std::vector<int64_t> load_ids(const std::string& path, const std::string& name);
std::string joined(const std::vector<int64_t>& ids);  // "2,5,7"
// A safetensors file of this header, whatever it claims, and so many bytes of data.
std::string safetensors_bytes(const std::string& header, size_t data_bytes);

// A folder with the tiny recipe (tiny.yaml), its data (chat.jsonl) and a tokenizer.
class Workspace {
 public:
  Workspace();
  std::filesystem::path path(const std::string& name) const { return directory_.path() / name; }
  std::string text_path(const std::string& name) const { return path(name).string(); }
  void write(const std::string& name, const std::string& text) const {
    write_file(path(name), text);
  }

  // Runs the program in the folder.
  ProcessResult run(const std::vector<std::string>& arguments, ProcessOptions options = {}) const;
  // `lapidary train tiny.yaml CHANGES...`
  ProcessResult train(const std::vector<std::string>& changes = {},
                      const ProcessOptions& options = {}) const;
  std::vector<nlohmann::json> training_log(const std::string& run = "run") const;
  // Copies a golden model; returns the folder's name.
  std::string copy_model(const std::string& golden_case) const;

 private:
  TemporaryDirectory directory_;
};

// Where a run's last checkpoint is a Hugging Face folder.
inline constexpr const char* kLatestModel = "run/LATEST/model/consolidated";

}  // namespace lapidary::test
