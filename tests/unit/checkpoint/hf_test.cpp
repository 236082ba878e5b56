#include "lapidary/checkpoint/hf.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "lapidary/core/error.h"
#include "tests/unit/checkpoint/temporary_directory.h"

namespace lapidary {
namespace {

namespace fs = std::filesystem;
using lapidary::testing::read_bytes;
using lapidary::testing::TemporaryDirectory;
using lapidary::testing::write_bytes;
using ::testing::HasSubstr;

const std::vector<float> kValues = {1, 2, 3, 4};

// Four tensors of 16 bytes.
std::vector<TensorSource> four() {
  std::vector<TensorSource> tensors;
  for (const char* name : {"d", "c", "b", "a"})
    tensors.push_back({.name = name, .shape = {2, 2}, .data = kValues.data()});
  return tensors;
}

std::string error_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

std::vector<std::string> names(const std::string& directory) {
  std::vector<std::string> out;
  for (const auto& entry : fs::directory_iterator(directory))
    out.push_back(entry.path().filename().string());
  std::sort(out.begin(), out.end());
  return out;
}

TEST(Hf, OneFile) {
  const TemporaryDirectory dir;
  write_hf_model(dir / "deep/out/", four(), {.files = {{"config.json", "{}"}}});
  EXPECT_THAT(names(dir / "deep/out"), ::testing::ElementsAre("config.json", "model.safetensors"));
  EXPECT_THAT(names(dir / "deep"), ::testing::ElementsAre("out"));
  for (const std::string& path : {dir / "deep/out", dir / "deep/out/model.safetensors"}) {
    const HfReader reader(path);
    ASSERT_EQ(reader.entries().size(), 4U);
    EXPECT_EQ(reader.entries()[0]->name, "d");
    std::vector<float> out(4);
    convert(reader.at("a"), Tensor(out.data(), Dtype::f32, {2, 2}));
    EXPECT_EQ(out, kValues);
    EXPECT_EQ(reader.find("x"), nullptr);
    EXPECT_THAT(error_of([&] { reader.at("x"); }), HasSubstr("has no tensor \"x\""));
  }
}

TEST(Hf, Shards) {
  const TemporaryDirectory dir;
  std::vector<TensorSource> tensors = four();
  tensors[2].target = Dtype::bf16;  // "b": 8 bytes
  write_hf_model(dir / "out", tensors, {.max_shard_bytes = 24});
  EXPECT_THAT(
      names(dir / "out"),
      ::testing::ElementsAre("model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors",
                             "model-00003-of-00003.safetensors", "model.safetensors.index.json"));
  const auto index = nlohmann::json::parse(read_bytes(dir / "out/model.safetensors.index.json"));
  EXPECT_EQ(index["metadata"]["total_size"], 56);
  EXPECT_EQ(index["weight_map"]["b"], "model-00002-of-00003.safetensors");
  const HfReader reader(dir / "out");
  EXPECT_EQ(reader.entries().size(), 4U);
  EXPECT_EQ(reader.at("b").dtype, FileDtype::bf16);
  EXPECT_EQ(reader.at("a").shape, (Shape{2, 2}));
  // A tensor above the limit is not split.
  write_hf_model(dir / "small", four(), {.max_shard_bytes = 1, .stem = "adapter_model"});
  EXPECT_EQ(HfReader(dir / "small", "adapter_model").entries().size(), 4U);
}

TEST(Hf, ContradictionsAreListedTogether) {
  const TemporaryDirectory dir;
  const std::string out = dir / "out";
  write_hf_model(out, four(), {.max_shard_bytes = 16});
  const std::string path = out + "/model.safetensors.index.json";
  auto index = nlohmann::json::parse(read_bytes(path));
  index["weight_map"]["ghost"] = "model-00001-of-00004.safetensors";
  index["weight_map"]["far"] = "model-00009-of-00004.safetensors";
  index["weight_map"]["a"] = "model-00002-of-00004.safetensors";
  index["weight_map"]["x"] = "model-00004-of-00004.safetensors";
  index["weight_map"].erase("b");
  index["weight_map"]["y"] = "model-00003-of-00004.safetensors";
  write_bytes(path, index.dump());
  const std::string message = error_of([&] { HfReader reader(out); });
  EXPECT_THAT(message, HasSubstr("\"model-00009-of-00004.safetensors\" is missing"));
  EXPECT_THAT(message, HasSubstr("tensor \"ghost\" is not in its shard"));
  EXPECT_THAT(message, HasSubstr("tensor \"b\" of shard"));
  EXPECT_THAT(message, HasSubstr("but the index says \"model-00002-of-00004.safetensors\""));
}

TEST(Hf, RefusesBadIndexes) {
  const TemporaryDirectory dir;
  const std::string path = dir / "model.safetensors.index.json";
  EXPECT_THAT(error_of([&] { HfReader reader(dir / ""); }), HasSubstr("has neither"));
  for (const char* file : {"\"../model.safetensors\"", "\"/etc/passwd\"", "\"\"", "3", "\"..\""}) {
    write_bytes(path, std::string(R"({"weight_map":{"a":)") + file + "}}");
    EXPECT_THAT(error_of([&] { HfReader reader(dir / ""); }), HasSubstr("beside the index"))
        << file;
  }
  for (const char* text : {"{}", "[]", R"({"weight_map":[]})"}) {
    write_bytes(path, text);
    EXPECT_THAT(error_of([&] { HfReader reader(dir / ""); }), HasSubstr("weight_map")) << text;
  }
  write_bytes(path, std::string(100000, '['));
  EXPECT_THAT(error_of([&] { HfReader reader(dir / ""); }), HasSubstr("deeper"));
}

TEST(Hf, CopiesTokenizerFiles) {
  const TemporaryDirectory dir;
  fs::create_directory(dir / "src");
  write_bytes(dir / "src/tokenizer.json", "{\"t\":1}");
  write_bytes(dir / "src/chat_template.jinja", "{{ x }}");
  write_bytes(dir / "src/generation_config.json", "old");
  write_bytes(dir / "src/notes.txt", "no");
  write_hf_model(dir / "out", four(),
                 {.files = {{"generation_config.json", "new"}}, .tokenizer_source = dir / "src"});
  EXPECT_THAT(names(dir / "out"),
              ::testing::ElementsAre("chat_template.jinja", "generation_config.json",
                                     "model.safetensors", "tokenizer.json"));
  EXPECT_EQ(read_bytes(dir / "out/tokenizer.json"), "{\"t\":1}");
  EXPECT_EQ(read_bytes(dir / "out/generation_config.json"), "new");
  EXPECT_THROW(write_hf_model(dir / "o2", four(), {.tokenizer_source = dir / "none"}), Error);
  EXPECT_FALSE(fs::exists(dir / "o2"));
  EXPECT_THROW(write_hf_model(dir / "o2", four(), {.files = {{"../x", ""}}}), Error);
  EXPECT_EQ(dir.count(), 2U);
}

TEST(Hf, OverwritesOnlyWhenAskedAndOnlyModels) {
  const TemporaryDirectory dir;
  const std::string out = dir / "out";
  fs::create_directory(out);
  write_hf_model(out, four(), {.files = {{"config.json", "1"}}});  // empty directories are free
  EXPECT_THAT(error_of([&] { write_hf_model(out, four()); }), HasSubstr("exists already"));
  EXPECT_EQ(read_bytes(out + "/config.json"), "1");

  const HfReader old(out);
  write_hf_model(out, {four()[0]}, {.files = {{"config.json", "2"}}, .overwrite = true});
  EXPECT_EQ(read_bytes(out + "/config.json"), "2");
  EXPECT_EQ(HfReader(out).entries().size(), 1U);
  std::vector<float> values(4);
  convert(old.at("a"), Tensor(values.data(), Dtype::f32, {2, 2}));  // mapped data outlives the swap
  EXPECT_EQ(values, kValues);
  EXPECT_EQ(dir.count(), 1U);

  fs::create_directory(dir / "home");
  write_bytes(dir / "home/letter.txt", "dear");
  EXPECT_THAT(error_of([&] { write_hf_model(dir / "home", four(), {.overwrite = true}); }),
              HasSubstr("not a plain model directory"));
  write_bytes(dir / "home/config.json", "{}");
  fs::create_directory(dir / "home/photos");
  EXPECT_THROW(write_hf_model(dir / "home", four(), {.overwrite = true}), Error);
  EXPECT_THROW(write_hf_model(dir / "home/letter.txt", four(), {.overwrite = true}), Error);
  EXPECT_EQ(read_bytes(dir / "home/letter.txt"), "dear");
  EXPECT_THROW(write_hf_model("/", four(), {.overwrite = true}), Error);
  EXPECT_THROW(write_hf_model("", four(), {.overwrite = true}), Error);
}

TEST(Hf, ReplacesWhatASymbolicLinkNames) {
  const TemporaryDirectory dir;
  write_hf_model(dir / "v1", four());
  fs::create_directory_symlink(dir / "v1", dir / "latest");
  write_hf_model(dir / "latest", {four()[0]}, {.overwrite = true});
  EXPECT_TRUE(fs::is_symlink(dir / "latest"));
  EXPECT_EQ(HfReader(dir / "v1").entries().size(), 1U);
  EXPECT_EQ(dir.count(), 2U);
}

TEST(Hf, FullDiskLeavesTheOldModel) {
  const TemporaryDirectory dir;
  const std::string out = dir / "out";
  write_hf_model(out, four());
  const std::vector<float> large(1 << 16);
  std::vector<TensorSource> tensors = four();
  tensors.push_back({.name = "large", .shape = {1 << 16}, .data = large.data()});

  rlimit old{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &old), 0);
  const auto handler = ::signal(SIGXFSZ, SIG_IGN);
  const rlimit small{.rlim_cur = 1 << 14, .rlim_max = old.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  const std::string message =
      error_of([&] { write_hf_model(out, tensors, {.max_shard_bytes = 64, .overwrite = true}); });
  ::setrlimit(RLIMIT_FSIZE, &old);
  ::signal(SIGXFSZ, handler);

  EXPECT_THAT(message, HasSubstr("File too large"));
  EXPECT_EQ(HfReader(out).entries().size(), 4U);
  EXPECT_EQ(dir.count(), 1U);
}

TEST(Hf, ShardsReportDuplicates) {
  const TemporaryDirectory dir;
  std::vector<TensorSource> tensors = four();
  tensors.push_back(tensors[0]);
  EXPECT_THAT(error_of([&] { write_hf_model(dir / "out", tensors, {.max_shard_bytes = 16}); }),
              HasSubstr("given twice"));
  EXPECT_EQ(dir.count(), 0U);
}

}  // namespace
}  // namespace lapidary
