#include "lapidary/train/train_step.h"

#include <gtest/gtest.h>

#include "lapidary/core/error.h"
#include "lapidary/core/transfer.h"
#include "tests/support/golden.h"
#include "tests/support/tensors.h"

namespace lapidary::test {
namespace {

constexpr GradientFlow kWhole{};
constexpr GradientFlow kPerLayer{.optimizer_in_bwd = true};

// A golden model in training, on the backend under test.
class Training {
 public:
  Training(const char* name, Dtype dtype, const GradientFlow& flow = {},
           const AdamWOptions& state = {})
      : golden_(name),
        model_(golden_.model(dtype)),
        optimizer_(model_.backend(), state, model_.optimizer_parameters()),
        step_(model_, optimizer_, flow) {}

  TrainStep::Result run(int64_t micro_batches, double max_grad_norm) {
    const MemoryPlan plan = step_.plan(golden_.inputs.text(), options_.recompute);
    Context ctx = Context::make(model_.backend(), plan);
    ctx.activations.set_poison(true);
    ctx.scratch.set_poison(true);
    issue(ctx, micro_batches, max_grad_norm);
    // A plan is that of a loss whose sum lies in the arena too.
    EXPECT_LE(ctx.activations.peak(), plan.activations);
    EXPECT_GE(ctx.activations.peak() + 64, plan.activations);
    EXPECT_LE(ctx.scratch.peak(), plan.scratch);
    EXPECT_LE(ctx.staging.peak(), plan.staging);
    return step_.read(ctx);
  }
  void issue(Context& ctx, int64_t micro_batches, double max_grad_norm) {
    const std::vector<MicroBatch> batches(static_cast<size_t>(micro_batches),
                                          {golden_.inputs.text(), golden_.inputs.labels.get()});
    options_.max_grad_norm = max_grad_norm;
    options_.lr = 1e-2;
    options_.grad_scale = 1.0 / static_cast<double>(micro_batches * golden_.inputs.targets());
    step_.issue(ctx, batches, options_);
  }
  std::map<std::string, OwnedTensor> weights() {
    std::map<std::string, OwnedTensor> out;
    model_.for_each_parameter(
        [&](Parameter& p) { out.emplace(p.name, to_host(model_.backend(), p.value)); });
    return out;
  }
  TrainStep& step() { return step_; }
  Gemma4ForConditionalGeneration& model() { return model_; }
  int64_t targets() const { return golden_.inputs.targets(); }
  gemma4::TextInputs inputs() const { return golden_.inputs.text(); }

 private:
  GoldenCase golden_;
  Gemma4ForConditionalGeneration model_;
  AdamW optimizer_;
  TrainStep step_;
  TrainStepOptions options_;
};

constexpr AdamWOptions kCodes{.moments = MomentType::int8, .master_weights = false};

// Without clipping the arithmetic is the same, whenever it is done.
TEST(TrainStep, LayerByLayerChangesNoBit) {
  for (const char* name : {"moe_text", "e_text"}) {
    for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
      const AdamWOptions state = dtype == Dtype::bf16 ? kCodes : AdamWOptions{};
      Training whole(name, dtype, kWhole, state);
      Training layers(name, dtype, kPerLayer, state);
      for (int step = 0; step < 3; ++step) {
        EXPECT_EQ(whole.run(1, 0.0).loss, layers.run(1, 0.0).loss);
      }
      const auto expected = whole.weights();
      for (const auto& [parameter, value] : layers.weights()) {
        EXPECT_TRUE(same_bits(value.get(), expected.at(parameter).get())) << name << parameter;
      }
    }
  }
}

// Clipped by a norm whose squares were added in another order.
TEST(TrainStep, LayerByLayerClipsByTheNormOfAll) {
  Training whole("moe_text", Dtype::f32, kWhole);
  Training layers("moe_text", Dtype::f32, kPerLayer);
  for (int step = 0; step < 3; ++step) {
    const TrainStep::Result expected = whole.run(1, 0.1), got = layers.run(1, 0.1);
    EXPECT_GT(expected.grad_norm, 0.1);
    EXPECT_NEAR(got.grad_norm / expected.grad_norm, 1.0, 1e-5);
    EXPECT_NEAR(got.loss / expected.loss, 1.0, 1e-5);
  }
}

TEST(TrainStep, LayersShareTheMemoryOfTheLargest) {
  Training whole("moe_text", Dtype::f32, kWhole);
  Training layers("moe_text", Dtype::f32, kPerLayer);
  EXPECT_LT(layers.model().gradient_bytes(), whole.model().gradient_bytes() / 2);
}

TEST(TrainStep, MicroBatchesAddUp) {
  Training one("dense_text", Dtype::f32, kWhole);
  Training two("dense_text", Dtype::f32, {.micro_batches = 2});
  const TrainStep::Result once = one.run(1, 1.0), twice = two.run(2, 1.0);
  EXPECT_NEAR(twice.loss / once.loss, 2.0, 1e-6);
  EXPECT_NEAR(twice.grad_norm / once.grad_norm, 1.0, 1e-6);
}

TEST(TrainStep, LayerByLayerTakesOneMicroBatch) {
  Training layers("moe_text", Dtype::f32, kPerLayer);
  EXPECT_THROW(layers.run(2, 1.0), Error);
}

TEST(TrainStep, NothingIsAllocatedAndNothingWaits) {
  if (test_backend() != Backend::cuda) GTEST_SKIP() << "only a GPU can be waited for";
  for (const bool in_bwd : {false, true}) {
    const int64_t count = in_bwd ? 1 : 3;
    Training training("moe_text", Dtype::bf16, {.optimizer_in_bwd = in_bwd, .micro_batches = count},
                      kCodes);
    const MemoryPlan plan = training.step().plan(training.inputs(), nn::Recompute::none);
    Context ctx = Context::make(Backend::cuda, plan);
    for (int step = 0; step < 3; ++step) {
      const ArenaScope staging(ctx.staging);
      const gpu::Counters before = gpu::counters();
      training.issue(ctx, count, 1.0);
      const gpu::Counters after = gpu::counters();
      EXPECT_EQ(after.allocations, before.allocations);
      EXPECT_EQ(after.waits, before.waits);
      EXPECT_GT(training.step().read(ctx).loss, 0.0);
      EXPECT_GT(gpu::counters().waits, after.waits);
    }
  }
}

}  // namespace
}  // namespace lapidary::test
