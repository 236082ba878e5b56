#include "tests/e2e/program.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

namespace lapidary::test {
namespace {

namespace fs = std::filesystem;

constexpr const char* kPrefix = "lapidary: error: ";

const TensorEntry& entry_of(const SafetensorsReader& reader, const std::string& name) {
  const TensorEntry* entry = reader.find(name);
  if (entry == nullptr) throw std::runtime_error(reader.path() + " has no " + name);
  return *entry;
}

}  // namespace

std::vector<std::string> lapidary_command(const std::vector<std::string>& arguments) {
  // Executables that were carried elsewhere say where the program is.
  const char* carried = std::getenv("LAPIDARY_TEST_PROGRAM");
  std::vector<std::string> command = {carried == nullptr ? LAPIDARY_BINARY : carried};
  command.insert(command.end(), arguments.begin(), arguments.end());
  return command;
}

ProcessResult lapidary_program(const std::vector<std::string>& arguments,
                               const ProcessOptions& options) {
  ProcessOptions with_threads = options;
  const auto is_threads = [](const std::string& entry) {
    return entry.rfind("OMP_NUM_THREADS=", 0) == 0;
  };
  std::vector<std::string>& environment = with_threads.environment;
  if (std::none_of(environment.begin(), environment.end(), is_threads)) {
    environment.emplace_back("OMP_NUM_THREADS=1");
  }
  return run_process(lapidary_command(arguments), with_threads);
}

void expect_success(const ProcessResult& result) {
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(result.signal, 0);
}

void expect_error(const ProcessResult& result, const std::vector<std::string>& fragments) {
  EXPECT_EQ(result.exit_code, 1) << result.err;
  EXPECT_EQ(result.signal, 0);
  EXPECT_EQ(result.err.rfind(kPrefix, 0), 0U) << result.err;
  EXPECT_EQ(result.err.find(kPrefix, 1), std::string::npos) << "more than one message";
  for (const std::string& fragment : fragments) {
    EXPECT_THAT(result.err, ::testing::HasSubstr(fragment));
  }
}

void expect_usage_error(const ProcessResult& result, const std::string& fragment) {
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_EQ(result.signal, 0);
  EXPECT_EQ(result.out, "");
  EXPECT_THAT(result.err, ::testing::HasSubstr(fragment));
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

fs::path source_file(const std::string& path) { return fs::path(LAPIDARY_SOURCE_DIR) / path; }

std::string golden(const std::string& name) {
  return source_file("tests/golden/data/" + name).string();
}

std::vector<nlohmann::json> read_jsonl(const fs::path& path) {
  std::vector<nlohmann::json> rows;
  for (const std::string& line : lines_of(read_file(path))) {
    rows.push_back(nlohmann::json::parse(line));
  }
  return rows;
}

std::vector<double> column(const std::vector<nlohmann::json>& rows, const std::string& name) {
  std::vector<double> values;
  for (const nlohmann::json& row : rows) values.push_back(row.at(name).get<double>());
  return values;
}

OwnedTensor load_tensor(const std::string& path, const std::string& name) {
  const SafetensorsReader reader(path);
  const TensorEntry& entry = entry_of(reader, name);
  OwnedTensor tensor(Backend::cpu, Dtype::f64, entry.shape);
  convert(entry, tensor.get());
  return tensor;
}

std::vector<int64_t> load_ids(const std::string& path, const std::string& name) {
  const SafetensorsReader reader(path);
  const TensorEntry& entry = entry_of(reader, name);
  std::vector<int64_t> ids(static_cast<size_t>(entry.shape.numel()));
  convert(entry, Tensor(ids.data(), Dtype::i64, entry.shape));
  return ids;
}

std::string joined(const std::vector<int64_t>& ids) {
  std::string text;
  for (const int64_t id : ids) text += (text.empty() ? "" : ",") + std::to_string(id);
  return text;
}

std::string safetensors_bytes(const std::string& header, size_t data_bytes) {
  const uint64_t length = header.size();
  std::string bytes(sizeof(length), '\0');
  std::memcpy(bytes.data(), &length, sizeof(length));
  return bytes + header + std::string(data_bytes, '\0');
}

Workspace::Workspace() {
  for (const char* name : {"tiny.yaml", "chat.jsonl"}) {
    fs::copy(source_file(std::string("tests/fixtures/e2e/") + name), path(name));
  }
  fs::copy(source_file("recipes/demo/tokenizer.json"), path("tokenizer.json"));
}

ProcessResult Workspace::run(const std::vector<std::string>& arguments,
                             ProcessOptions options) const {
  if (options.directory.empty()) options.directory = directory_.path().string();
  return lapidary_program(arguments, options);
}

ProcessResult Workspace::train(const std::vector<std::string>& changes,
                               const ProcessOptions& options) const {
  std::vector<std::string> arguments = {"train", "tiny.yaml"};
  arguments.insert(arguments.end(), changes.begin(), changes.end());
  return run(arguments, options);
}

std::vector<nlohmann::json> Workspace::training_log(const std::string& run) const {
  return read_jsonl(path(run) / "training.jsonl");
}

std::string Workspace::copy_model(const std::string& golden_case) const {
  fs::create_directory(path("model"));
  for (const char* name : {"config.json", "model.safetensors"}) {
    fs::copy(fs::path(golden(golden_case)) / name, path("model") / name);
  }
  return "model";
}

}  // namespace lapidary::test
