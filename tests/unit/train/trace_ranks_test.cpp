#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "lapidary/checkpoint/safetensors.h"
#include "lapidary/train/trace.h"
#include "tests/support/golden.h"
#include "tests/support/process.h"
#include "tests/support/thread_group.h"

namespace lapidary {
namespace {

OwnedTensor as_doubles(const TensorEntry& entry) {
  OwnedTensor tensor(Backend::cpu, Dtype::f64, entry.shape);
  if (entry.dtype == FileDtype::i32) {
    OwnedTensor whole(Backend::cpu, Dtype::i32, entry.shape);
    convert(entry, whole.get());
    std::copy_n(whole->as<int32_t>(), whole->numel(), tensor->as<double>());
  } else {
    convert(entry, tensor.get());
  }
  return tensor;
}

// The same tensors, of the same shapes, in the same order. Positions of padding hold what nobody
// asked for: activations are compared where a token is real.
void expect_equal_files(const std::string& expected, const std::string& got,
                        const std::vector<uint8_t>& real, const std::string& which) {
  const SafetensorsReader want(expected), have(got);
  ASSERT_EQ(have.entries().size(), want.entries().size()) << which;
  for (const TensorEntry& entry : want.entries()) {
    const TensorEntry* other = have.find(entry.name);
    ASSERT_NE(other, nullptr) << which << " " << entry.name;
    ASSERT_EQ(other->shape, entry.shape) << which << " " << entry.name;
    EXPECT_EQ(other->dtype, entry.dtype) << which << " " << entry.name;
    const OwnedTensor a = as_doubles(entry), b = as_doubles(*other);
    const bool by_token = entry.name.rfind("grad.", 0) != 0 && entry.name != "loss";
    const int64_t width = by_token ? entry.shape.numel() / static_cast<int64_t>(real.size()) : 1;
    double difference = 0.0, size = 0.0;
    for (int64_t i = 0; i < entry.shape.numel(); ++i) {
      if (by_token && real[static_cast<size_t>(i / width)] == 0) continue;
      difference += std::pow(a->as<double>()[i] - b->as<double>()[i], 2.0);
      size += std::pow(a->as<double>()[i], 2.0);
    }
    ASSERT_GT(size, 0.0) << which << " " << entry.name;
    EXPECT_LT(std::sqrt(difference / size), 1e-9) << which << " " << entry.name;
  }
}

// More ranks than rows too: some run padding alone.
TEST(TraceRanks, WriteTheFileOfOneRank) {
  const test::TemporaryDirectory folder;
  const std::string one = folder.path() / "one.safetensors";
  const std::string ranks = folder.path() / "ranks.safetensors";
  const MeshOptions meshes[] = {{.world_size = 2},
                                {.world_size = 2, .ep_size = 2},
                                {.world_size = 3},
                                {.world_size = 4, .dp_replicate_size = 2, .ep_size = 2}};
  for (const char* name : {"moe_packed", "moe_text", "e_text"}) {
    const test::GoldenCase golden(name);
    TraceOptions options{.model = golden.directory,
                         .inputs = golden.directory + "/inputs.safetensors",
                         .output = one,
                         .grads = true,
                         .dtype = Dtype::f64};
    trace(options);
    options.output = ranks;
    for (const MeshOptions& mesh : meshes) {
      if (mesh.ep_size > 1 && std::string(name) == "e_text") continue;  // has no experts
      const std::string which = std::string(name) + " on " + std::to_string(mesh.world_size) +
                                " ranks, ep " + std::to_string(mesh.ep_size);
      test::run_on_mesh(Mesh(mesh), [&](const MeshGroups& groups) { trace(options, groups); });
      expect_equal_files(one, ranks, golden.inputs.real(), which);
      std::filesystem::remove(ranks);
    }
  }
}

}  // namespace
}  // namespace lapidary
