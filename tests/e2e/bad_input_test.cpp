#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/e2e/program.h"

// What is wrong with a user's files is said once, where it is, and nothing that was there suffers.
namespace lapidary::test {
namespace {

namespace fs = std::filesystem;

// ---- model files -------------------------------------------------------------------------------

struct HostileFile {
  const char* name;
  std::string bytes;
  const char* fragment;
};

std::vector<HostileFile> hostile_files() {
  const std::string entry = R"("dtype":"F32","shape":[2],"data_offsets":)";
  return {
      {"empty", "", "model.safetensors"},
      {"cut inside the length", "abc", "model.safetensors"},
      {"a header of 10 GB", std::string("\x00\xe4\x0b\x54\x02\x00\x00\x00", 8) + "{}", "header"},
      {"no JSON", safetensors_bytes("{\"a\":", 0), "JSON"},
      {"cut inside the data", safetensors_bytes("{\"a\":{" + entry + "[0,8]}}", 4), "a"},
      {"overlap", safetensors_bytes("{\"a\":{" + entry + "[0,8]},\"b\":{" + entry + "[4,12]}}", 12),
       "b"},
      {"twice", safetensors_bytes("{\"a\":{" + entry + "[0,8]},\"a\":{" + entry + "[0,8]}}", 8),
       "a"},
      {"sizes that overflow",
       safetensors_bytes(
           R"({"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,8]}})", 8),
       "a"},
      {"negative offsets", safetensors_bytes("{\"a\":{" + entry + "[-8,0]}}", 8), "a"},
  };
}

TEST(BadInput, LyingSafetensors) {
  for (const HostileFile& file : hostile_files()) {
    const Workspace work;
    work.copy_model("moe_text");
    work.write("model/model.safetensors", file.bytes);
    const ProcessResult result =
        work.run({"generate", "model", "--input-ids", "2,5", "--print-ids"},
                 {.max_memory_bytes = uint64_t{8} << 30});
    SCOPED_TRACE(file.name);
    expect_error(result, {"model.safetensors", file.fragment});
  }
}

TEST(BadInput, EveryTensorThatDoesNotFitIsNamed) {
  const Workspace work;
  work.copy_model("dense_text");
  // The dense model's tensors against the configuration of the mixture of experts.
  fs::copy_file(fs::path(golden("moe_text")) / "config.json", work.path("model/config.json"),
                fs::copy_options::overwrite_existing);
  expect_error(work.run({"generate", "model", "--input-ids", "2"}),
               {"layers.0.router.proj.weight: is missing", "layers.5.experts.down_proj: is missing",
                "layers.0.post_feedforward_layernorm_1.weight: is missing"});

  // And the other way round: what is too much, and what has another shape.
  const Workspace other;
  other.copy_model("moe_text");
  std::string config = read_file(fs::path(golden("dense_text")) / "config.json");
  const std::string from = "\"intermediate_size\": 56";
  config.replace(config.find(from), from.size(), "\"intermediate_size\": 64");
  other.write("model/config.json", config);
  expect_error(other.run({"generate", "model", "--input-ids", "2"}),
               {"layers.0.router.proj.weight: is not a tensor of this model",
                "layers.0.mlp.gate_proj.weight: is [56, 40], expected [64, 40]"});
}

TEST(BadInput, Configurations) {
  const struct {
    const char *from, *to, *fragment;
  } changes[] = {
      {"\"full_attention\"\n    ]", "\"striped_attention\"\n    ]", "striped_attention"},
      {"\"num_attention_heads\": 4", "\"num_attention_heads\": 3", "num_attention_heads"},
      {"\"top_k_experts\": 2", "\"top_k_experts\": 9", "top_k_experts"},
      {"\"hidden_size\": 40", "\"hidden_size\": \"forty\"", "hidden_size"},
      {"\"vocab_size\": 300,", "\"vocab_size\": 300", "config.json"},
  };
  for (const auto& change : changes) {
    const Workspace work;
    work.copy_model("moe_text");
    std::string config = read_file(work.path("model/config.json"));
    const size_t at = config.find(change.from);
    ASSERT_NE(at, std::string::npos) << change.from;
    config.replace(at, std::string(change.from).size(), change.to);
    work.write("model/config.json", config);
    expect_error(work.run({"generate", "model", "--input-ids", "2"}), {change.fragment});
  }
}

TEST(BadInput, FoldersThatAreNoModel) {
  const Workspace work;
  expect_error(work.run({"generate", "nowhere", "--input-ids", "2"}), {"nowhere"});
  fs::create_directory(work.path("empty"));
  expect_error(work.run({"inspect", "empty"}), {"empty", "config.json"});
}

TEST(BadInput, IdsOutsideTheVocabulary) {
  const Workspace work;
  work.copy_model("moe_text");
  expect_error(work.run({"generate", "model", "--input-ids", "2,300"}),
               {"300", "position 1", "vocabulary"});
  expect_error(work.run({"generate", "model", "--input-ids", "2,five"}), {"2,five"});
}

TEST(BadInput, DevicesOfOtherBuilds) {
  const Workspace work;
  work.copy_model("moe_text");
  expect_error(work.run({"generate", "model", "--input-ids", "2", "--device", "cuda"}), {"cuda"});
  expect_error(work.train({"--device=cuda"}), {"cuda"});
}

// ---- recipes and data --------------------------------------------------------------------------

TEST(BadInput, MistakesOfARecipeComeTogether) {
  const Workspace work;
  std::string recipe = read_file(work.path("tiny.yaml"));
  const auto change = [&](const std::string& from, const std::string& to) {
    recipe.replace(recipe.find(from), from.size(), to);
  };
  change("global_batch_size: 4", "global_batch_sise: 4");
  change("local_batch_size: 2", "local_batch_size: two");
  change("lr: 5.0e-3", "lr: .nan");
  work.write("tiny.yaml", recipe);
  expect_error(work.train(), {"tiny.yaml:4", "global_batch_size", "tiny.yaml:5", "two", "lr"});
  work.write("tiny.yaml", "model: [\n");
  expect_error(work.train(), {"tiny.yaml:"});
  expect_error(work.run({"train", "missing.yaml"}), {"missing.yaml"});
}

TEST(BadInput, ParallelAxesAreRefusedBeforeAnythingIsLoaded) {
  const Workspace work;
  fs::remove(work.path("chat.jsonl"));  // never looked at
  expect_error(work.train({"--distributed.tp_size=2"}), {"tp_size"});
}

TEST(BadInput, DataFiles) {
  const struct {
    const char* text;
    std::vector<std::string> fragments;
  } files[] = {
      {"{\"messages\": [}\n", {"chat.jsonl:1"}},
      {"{\"input_ids\": [2, 5], \"labels\": [2, 5]}\n{\"input_ids\": [2], \"labels\": []}\n",
       {"chat.jsonl:2", "labels"}},
      {"{\"input_ids\": [2, 4096], \"labels\": [2, 5]}\n", {"chat.jsonl:1", "4096"}},
      {"{\"messages\": [{\"role\": \"robot\", \"content\": \"hi\"}]}\n", {"chat.jsonl:1", "robot"}},
      {"{\"question\": \"?\"}\n", {"chat.jsonl:1"}},
      {"\n", {"chat.jsonl"}},
      {"", {"chat.jsonl"}},
  };
  for (const auto& file : files) {
    const Workspace work;
    work.write("chat.jsonl", file.text);
    expect_error(work.train(), file.fragments);
    EXPECT_FALSE(fs::exists(work.path("run/LATEST")));
  }
}

TEST(BadInput, SamplesThatAreAllTooLong) {
  const Workspace work;
  expect_error(work.train({"--dataset.max_length=3"}), {"chat.jsonl"});
}

TEST(BadInput, Tokenizers) {
  for (const char* text : {"", "{", "{\"model\": {\"type\": \"WordPiece\"}}", "[]",
                           "{\"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": 0, \"b\": 0}, "
                           "\"merges\": []}}"}) {
    const Workspace work;
    work.write("tokenizer.json", text);
    expect_error(work.run({"tokenize", "--tokenizer", "tokenizer.json"}), {"tokenizer.json"});
    expect_error(work.train(), {"tokenizer.json"});
  }
}

TEST(BadInput, FoldersThatCannotBeWritten) {
  const Workspace work;
  work.write("occupied", "a file");
  expect_error(work.train({"--checkpoint.checkpoint_dir=occupied/run"}), {"occupied"});
}

}  // namespace
}  // namespace lapidary::test
