#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "lapidary/core/gpu.h"
#include "tests/e2e/program.h"
#include "tests/support/golden.h"
#include "tests/support/tensors.h"

// The program with --device cuda: what it says without a GPU, what it computes on one.
namespace lapidary::test {
namespace {

class OnGpu : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const std::string why = gpu::unavailable(); !why.empty()) GTEST_SKIP() << why;
  }
};

class WithoutGpu : public ::testing::Test {
 protected:
  void SetUp() override {
    if (gpu::unavailable().empty()) GTEST_SKIP() << "there is a GPU";
  }
};

std::vector<std::string> trace_of(const std::string& name, const std::string& output,
                                  const std::string& dtype) {
  return {"trace",    golden(name), "--inputs", golden(name) + "/inputs.safetensors",
          "--output", output,       "--grads",  "--dtype",
          dtype,      "--device",   "cuda"};
}

TEST_F(WithoutGpu, EveryCommandSaysWhatIsMissing) {
  const Workspace work;
  const std::string why = gpu::unavailable();
  expect_error(work.train({"--device=cuda"}), {"cuda", why, "device"});
  expect_error(work.train({"--device", "cuda"}), {"cuda", why, "device"});
  expect_error(lapidary_program(trace_of("moe_text", work.text_path("out"), "fp32")),
               {"cuda", why, "use device cpu"});
  expect_error(lapidary_program(
                   {"generate", golden("moe_text"), "--input-ids", "2,5,7", "--device", "cuda"}),
               {"cuda", why, "use device cpu"});
  expect_error(lapidary_program({"bench", "head", "--config", golden("moe_text"), "--seq", "8",
                                 "--device", "cuda"}),
               {"cuda", why, "use device cpu"});
}

// A plan needs no GPU.
TEST(Cuda, InspectPlansAGpu) {
  const ProcessResult result = lapidary_program({"inspect", "26b-a4b", "--device", "cuda"});
  expect_success(result);
  EXPECT_NE(result.out, lapidary_program({"inspect", "26b-a4b"}).out);
}

TEST_F(OnGpu, TraceAgreesWithTheGoldenCases) {
  const TemporaryDirectory folder;
  const std::string output = folder.path() / "out.safetensors";
  for (const char* name : {"moe_text", "moe_packed", "dense_text", "e_text"}) {
    expect_success(lapidary_program(trace_of(name, output, "fp32")));
    const TensorFile got(output), expected(golden(name) + "/expected.safetensors");
    EXPECT_LT(
        token_error(got.get("logits"), expected.get("logits"), GoldenCase(name).inputs.real()).peak,
        1e-5)
        << name;
    for (const std::string& tensor : expected.names("grad.")) {
      EXPECT_LT(l2_error(got.get(tensor), expected.get(tensor)), 1e-4) << name << " " << tensor;
    }
  }
}

TEST_F(OnGpu, GreedyTokensAreTheGoldenOnes) {
  for (const char* name : {"moe_text", "dense_text", "e_text"}) {
    const std::string file = golden(name) + "/generate.safetensors";
    const std::vector<int64_t> expected = load_ids(file, "tokens");
    const ProcessResult result = lapidary_program(
        {"generate", golden(name), "--input-ids", joined(load_ids(file, "prompt")), "--print-ids",
         "--ignore-eos", "--max-new-tokens", std::to_string(expected.size()), "--device", "cuda"});
    expect_success(result);
    EXPECT_EQ(result.out, joined(expected) + "\n") << name;
  }
}

// f32 on both devices: six steps stay within what rounding grows to.
TEST_F(OnGpu, TrainingFollowsTheCpus) {
  const Workspace cpu, gpu;
  expect_success(cpu.train());
  expect_success(gpu.train({"--device=cuda"}));
  const std::vector<double> expected = column(cpu.training_log(), "loss");
  const std::vector<double> got = column(gpu.training_log(), "loss");
  ASSERT_EQ(got.size(), expected.size());
  for (size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i] / expected[i], 1.0, 1e-4) << i;
}

// The form in which the largest models fit.
TEST_F(OnGpu, TrainsInTheLeastMemory) {
  const Workspace work;
  expect_success(
      work.train({"--device=cuda", "--model.torch_dtype=bfloat16", "--optimizer.state_dtype=int8",
                  "--optimizer.master_weights=false", "--optimizer_in_bwd=true",
                  "--recompute=block", "--step_scheduler.local_batch_size=4"}));
  const std::vector<double> losses = column(work.training_log(), "loss");
  ASSERT_EQ(losses.size(), 6U);
  EXPECT_LT(losses.back(), losses.front());
}

}  // namespace
}  // namespace lapidary::test
