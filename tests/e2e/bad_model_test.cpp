#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "tests/e2e/program.h"

// Model folders that are damaged, lie or are incomplete. Every one is refused with one message.
namespace lapidary::test {
namespace {

namespace fs = std::filesystem;

// Every command that reads a model's weights refuses the file; memory stays small.
void expect_refused(const Workspace& work, const std::vector<std::string>& fragments) {
  ProcessOptions options;
  options.max_memory_bytes = uint64_t{2} << 30;
  const ProcessResult result =
      work.run({"generate", "model", "--input-ids", "2,5", "--print-ids"}, options);
  expect_error(result, fragments);
  EXPECT_EQ(result.out, "");
}

void expect_header_refused(const std::string& bytes, const std::string& fragment) {
  const Workspace work;
  work.copy_model("moe_text");
  work.write("model/model.safetensors", bytes);
  expect_refused(work, {"model/model.safetensors", fragment});
}

std::string entry(const std::string& name, const std::string& shape, int64_t begin, int64_t end) {
  return "\"" + name + R"(": {"dtype": "F32", "shape": )" + shape + R"(, "data_offsets": [)" +
         std::to_string(begin) + ", " + std::to_string(end) + "]}";
}

TEST(BadModel, TruncatedFile) {
  const Workspace work;
  work.copy_model("moe_text");
  const fs::path file = work.path("model/model.safetensors");
  const uintmax_t whole = fs::file_size(file);
  // In the data, in the header, in the length of the header, nothing at all.
  for (const uintmax_t size : {whole - 1, whole / 2, uintmax_t{100}, uintmax_t{5}, uintmax_t{0}}) {
    fs::resize_file(file, size);
    expect_refused(work, {"model/model.safetensors"});
  }
}

TEST(BadModel, BytesBehindTheData) {
  const Workspace work;
  work.copy_model("moe_text");
  const std::string bytes = read_file(work.path("model/model.safetensors"));
  work.write("model/model.safetensors", bytes + "1234");
  expect_refused(work, {"model/model.safetensors", "4 bytes at the end"});
}

TEST(BadModel, OverlappingTensors) {
  const std::string header = "{" + entry("a", "[4]", 0, 16) + ", " + entry("b", "[4]", 8, 24) + "}";
  expect_header_refused(safetensors_bytes(header, 24), "\"b\" overlaps");
}

TEST(BadModel, TensorOutsideTheFile) {
  expect_header_refused(safetensors_bytes("{" + entry("a", "[8]", 0, 32) + "}", 16), "\"a\"");
}

TEST(BadModel, TensorTwice) {
  const std::string header = "{" + entry("a", "[1]", 0, 4) + ", " + entry("a", "[1]", 4, 8) + "}";
  expect_header_refused(safetensors_bytes(header, 8), "\"a\" occurs twice");
}

TEST(BadModel, ShapeThatOverflows) {
  const std::string shape = "[4294967296, 4294967296, 4294967296]";
  expect_header_refused(safetensors_bytes("{" + entry("a", shape, 0, 4) + "}", 4), "overflows");
}

TEST(BadModel, ShapeThatIsNotThatOfItsBytes) {
  expect_header_refused(safetensors_bytes("{" + entry("a", "[3]", 0, 16) + "}", 16), "needs 12");
}

TEST(BadModel, HeaderOfTenGigabytes) {
  std::string bytes = safetensors_bytes("{" + entry("a", "[1]", 0, 4) + "}", 4);
  const uint64_t length = 10'000'000'000;
  std::memcpy(bytes.data(), &length, sizeof(length));
  expect_header_refused(bytes, "10000000000");
}

TEST(BadModel, HeaderThatIsNotJson) {
  expect_header_refused(safetensors_bytes("{\"a\": {\"dtype\"", 4), "JSON");
  expect_header_refused(safetensors_bytes(std::string(100'000, '['), 0), "header");
  expect_header_refused(safetensors_bytes("{\"a\": {\"dtype\": \"Q7\"}}", 0), "\"Q7\"");
}

// The tensors of a golden model, changed by a function of each one's source.
template <class F>
void rewrite_model(const Workspace& work, F&& change) {
  const std::string file = work.text_path("model/model.safetensors");
  work.copy_model("moe_text");
  std::vector<TensorSource> tensors;
  {
    const SafetensorsReader reader(golden("moe_text") + "/model.safetensors");
    for (const TensorEntry& source : reader.entries()) {
      tensors.push_back({.name = source.name, .shape = source.shape, .data = source.data});
    }
    change(tensors);
    write_safetensors(file, tensors);
  }
}

TensorSource& named(std::vector<TensorSource>& tensors, const std::string& name) {
  for (TensorSource& tensor : tensors) {
    if (tensor.name == name) return tensor;
  }
  throw std::runtime_error("no tensor " + name);
}

const std::string kLayer = "model.language_model.layers.";

TEST(BadModel, RewrittenAsItWasIsFine) {
  const Workspace work;
  rewrite_model(work, [](std::vector<TensorSource>&) {});
  expect_success(work.run({"generate", "model", "--input-ids", "2,5", "--print-ids"}));
}

TEST(BadModel, WrongShapes) {
  const Workspace work;
  rewrite_model(work, [](std::vector<TensorSource>& tensors) {
    named(tensors, kLayer + "0.mlp.down_proj.weight").shape = {56, 40};
    named(tensors, kLayer + "1.self_attn.q_norm.weight").shape = {4, 2};
  });
  expect_refused(work, {kLayer + "0.mlp.down_proj.weight", "[56, 40]", "[40, 56]",
                        kLayer + "1.self_attn.q_norm.weight"});
}

TEST(BadModel, MissingAndSurplusTensorsAreNamedTogether) {
  const Workspace work;
  rewrite_model(work, [](std::vector<TensorSource>& tensors) {
    named(tensors, kLayer + "0.mlp.down_proj.weight").name = kLayer + "0.mlp.wrong_proj.weight";
    named(tensors, kLayer + "2.self_attn.q_proj.weight").name = kLayer + "9.q_proj.weight";
  });
  expect_refused(work, {kLayer + "0.mlp.down_proj.weight", kLayer + "0.mlp.wrong_proj.weight",
                        kLayer + "2.self_attn.q_proj.weight", kLayer + "9.q_proj.weight"});
}

TEST(BadModel, FolderWithoutItsParts) {
  const Workspace work;
  work.copy_model("moe_text");
  fs::remove(work.path("model/model.safetensors"));
  expect_refused(work, {"model", "model.safetensors"});
  fs::remove(work.path("model/config.json"));
  expect_refused(work, {"model/config.json"});
  fs::remove(work.path("model"));
  expect_refused(work, {"model", "no such directory"});
}

TEST(BadModel, IndexThatDisagreesWithItsShards) {
  const Workspace work;
  work.copy_model("moe_text");
  fs::rename(work.path("model/model.safetensors"), work.path("model/one.safetensors"));
  work.write("model/model.safetensors.index.json",
             R"({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}})");
  expect_refused(work, {"model.safetensors.index.json", "\"two.safetensors\" is missing",
                        "\"a\" is not in its shard"});
  work.write("model/model.safetensors.index.json", R"({"weight_map": {"a": "../../etc/passwd"}})");
  expect_refused(work, {"model.safetensors.index.json", "\"a\""});
}

// Edits config.json and expects the message.
template <class F>
void expect_config_refused(F&& change, const std::vector<std::string>& fragments) {
  const Workspace work;
  work.copy_model("moe_text");
  auto config = nlohmann::json::parse(read_file(work.path("model/config.json")));
  change(config.at("text_config"));
  work.write("model/config.json", config.dump());
  std::vector<std::string> all = {"model/config.json"};
  all.insert(all.end(), fragments.begin(), fragments.end());
  expect_refused(work, all);
}

using Json = nlohmann::json;

TEST(BadModel, UnknownLayerType) {
  expect_config_refused([](Json& text) { text["layer_types"][2] = "spiral_attention"; },
                        {"layer_types[2]", "spiral_attention", "sliding_attention"});
}

TEST(BadModel, SeveralMistakesInTheConfiguration) {
  expect_config_refused(
      [](Json& text) {
        text["hidden_size"] = -4;
        text["num_experts"] = "eight";
      },
      {"hidden_size", "num_experts"});
}

TEST(BadModel, SizesThatNoMachineHolds) {
  expect_config_refused([](Json& text) { text["vocab_size"] = int64_t{1} << 50; }, {});
  expect_config_refused([](Json& text) { text["num_hidden_layers"] = int64_t{1} << 40; }, {});
}

TEST(BadModel, ConfigurationThatIsNotJson) {
  const Workspace work;
  work.copy_model("moe_text");
  for (const char* text : {"", "{", "[]", "{\"text_config\": 3}", "\xff\xfe"}) {
    work.write("model/config.json", text);
    expect_refused(work, {"model/config.json"});
  }
}

TEST(BadModel, MalformedTokenizer) {
  const Workspace work;
  const std::string whole = read_file(work.path("tokenizer.json"));
  const std::string bad[] = {"", "{}", whole.substr(0, whole.size() / 2), "[1, 2]",
                             R"({"model": {"type": "WordPiece"}})"};
  for (const std::string& text : bad) {
    work.write("tokenizer.json", text);
    expect_error(work.run({"tokenize", "--tokenizer", "tokenizer.json"}), {"tokenizer.json"});
    expect_error(work.train(), {"tokenizer.json"});
  }
  EXPECT_FALSE(fs::exists(work.path("run"))) << "nothing is begun before the inputs are read";
}

TEST(BadModel, FolderThatCannotBeRead) {
  const Workspace work;
  work.copy_model("moe_text");
  fs::permissions(work.path(""), fs::perms::all);
  ProcessOptions options;
  options.unprivileged = true;
  const std::vector<std::string> arguments = {"generate", "model", "--input-ids", "2",
                                              "--print-ids"};
  if (work.run(arguments, options).exit_code == kNotStarted) {
    GTEST_SKIP() << "the program lies where only root can start it";
  }
  expect_success(work.run(arguments, options));
  fs::permissions(work.path("model/model.safetensors"), fs::perms::none);
  expect_error(work.run(arguments, options), {"model.safetensors", "Permission denied"});
  fs::permissions(work.path("model"), fs::perms::none);
  expect_error(work.run(arguments, options), {"model", "Permission denied"});
  fs::permissions(work.path("model"), fs::perms::owner_all);
}

}  // namespace
}  // namespace lapidary::test
