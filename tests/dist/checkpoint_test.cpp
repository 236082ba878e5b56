#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <optional>

#include "lapidary/checkpoint/agreement.h"
#include "tests/dist/world.h"
#include "tests/support/process.h"
#include "tests/support/ranks.h"

// Model directories that ranks write and read together.
namespace lapidary::test {
namespace {

namespace fs = std::filesystem;

// A folder that all ranks see; the first one makes and removes it.
class SharedDirectory {
 public:
  SharedDirectory() {
    if (world().rank() == 0) own_.emplace();
    path_ = broadcast_text(*all_, own_ ? own_->path().string() : "");
  }
  ~SharedDirectory() {
    try {
      all_->barrier();
    } catch (...) {  // a rank that has failed said so
    }
  }
  SharedDirectory(const SharedDirectory&) = delete;
  SharedDirectory& operator=(const SharedDirectory&) = delete;
  std::string path(const std::string& name) const { return (fs::path(path_) / name).string(); }

 private:
  std::unique_ptr<ProcessGroup> all_ = world().split(0, "world");
  std::optional<TemporaryDirectory> own_;
  std::string path_;
};

TEST(DistCheckpoint, EveryMeshWritesTheSameFiles) {
  const SharedDirectory folder;
  for (const char* name : {"moe_text", "e_text"}) {
    const GoldenCase golden(name);
    std::string expected;
    if (world().rank() == 0) {
      Gemma4ForConditionalGeneration alone =
          Gemma4ForConditionalGeneration::from_pretrained(golden.directory, {});
      const std::string path = folder.path(std::string("alone_") + name);
      alone.save_pretrained(path, {.dtype = Dtype::f32});
      expected = read_file(path + "/model.safetensors");
    }
    int i = 0;
    for (const MeshOptions& options : legal_meshes(world().size(), name[0] == 'm')) {
      const MeshGroups groups = groups_of(Mesh(options));
      for (const bool resident : {false, true}) {
        Gemma4ForConditionalGeneration model = Gemma4ForConditionalGeneration::from_pretrained(
            golden.directory, {.groups = &groups, .resident_weights = resident});
        const std::string path = folder.path(name + std::to_string(i++));
        model.save_pretrained(path, {.dtype = Dtype::f32});
        if (world().rank() == 0) {
          EXPECT_TRUE(read_file(path + "/model.safetensors") == expected) << name_of(options);
        }
      }
    }
  }
}

// Initial values are those of one rank, on any mesh.
TEST(DistCheckpoint, RandomWeightsDependOnNoMesh) {
  const SharedDirectory folder;
  const gemma4::Config config = gemma4::load_config(GoldenCase("moe_text").directory);
  std::string expected;
  if (world().rank() == 0) {
    auto alone = Gemma4ForConditionalGeneration::from_config(config, {.seed = 5});
    alone.save_pretrained(folder.path("alone"), {.dtype = Dtype::f32});
    expected = read_file(folder.path("alone/model.safetensors"));
  }
  int i = 0;
  for (const MeshOptions& options : legal_meshes(world().size(), true)) {
    const MeshGroups groups = groups_of(Mesh(options));
    auto model =
        Gemma4ForConditionalGeneration::from_config(config, {.seed = 5, .groups = &groups});
    const std::string path = folder.path(std::to_string(i++));
    model.save_pretrained(path, {.dtype = Dtype::f32});
    if (world().rank() == 0) {
      EXPECT_TRUE(read_file(path + "/model.safetensors") == expected) << name_of(options);
    }
  }
}

int64_t status_bytes(const std::string& field) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.rfind(field + ":", 0) == 0) return std::stoll(line.substr(field.size() + 1)) * 1024;
  }
  return 0;
}

// Private memory for the shards and the two buffers of the layers, and of the mapped file no more
// than the rank's own part.
TEST(DistCheckpoint, ARankReadsItsShareAlone) {
  if (world().size() < 4) GTEST_SKIP() << "a share of a half tells little";
  const SharedDirectory folder;
  gemma4::Config config = gemma4::parse_config(
      R"({"model_type": "gemma4_text", "vocab_size": 512, "hidden_size": 256,
          "intermediate_size": 512, "num_hidden_layers": 12, "num_attention_heads": 4,
          "num_key_value_heads": 2, "head_dim": 64, "global_head_dim": 64,
          "num_global_key_value_heads": 2, "sliding_window": 32, "enable_moe_block": true,
          "num_experts": 16, "top_k_experts": 2, "moe_intermediate_size": 192,
          "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0})",
      "test");
  const MeshGroups groups =
      groups_of(Mesh({.world_size = world().size(), .ep_size = world().size() / 2}));
  int64_t total = 0;
  {
    auto model = Gemma4ForConditionalGeneration::from_config(config, {.groups = &groups});
    model.for_each_parameter([&](Parameter& p) { total += p.shape.numel() * 4; });
    model.save_pretrained(folder.path("model"), {.dtype = Dtype::f32});
  }
  const int64_t share = total / world().size(), layer = total / 12;
  const int64_t anonymous = status_bytes("RssAnon"), mapped = status_bytes("RssFile");
  auto model =
      Gemma4ForConditionalGeneration::from_pretrained(folder.path("model"), {.groups = &groups});
  constexpr int64_t kSlack = int64_t{4} << 20;
  EXPECT_LT(status_bytes("RssAnon") - anonymous, share + 2 * layer + kSlack);
  EXPECT_LT(status_bytes("RssFile") - mapped, share + kSlack);
  EXPECT_GT(total, 10 * kSlack);
}

}  // namespace
}  // namespace lapidary::test
