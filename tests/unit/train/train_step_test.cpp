#include "lapidary/train/train_step.h"

#include <gtest/gtest.h>

#include "lapidary/core/error.h"
#include "lapidary/core/transfer.h"
#include "tests/support/golden.h"
#include "tests/support/tensors.h"

namespace lapidary::test {
namespace {

using gemma4::GradientBuffers;

// A golden model in training, on the backend under test.
class Training {
 public:
  Training(const char* name, Dtype dtype, GradientBuffers gradients, const AdamWOptions& state = {})
      : golden_(name),
        model_(golden_.model(dtype)),
        optimizer_(model_.backend(), state, parameters()),
        step_(model_, optimizer_, data_parallel_, gradients) {
    options_.gradients = gradients;
  }

  TrainStep::Result run(int64_t micro_batches, double max_grad_norm) {
    const MemoryPlan plan = step_.plan(golden_.inputs.text(), options_.recompute, micro_batches);
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
  std::vector<Parameter*> parameters() {
    std::vector<Parameter*> out;
    model_.for_each_parameter([&](Parameter& p) { out.push_back(&p); });
    return out;
  }
  GoldenCase golden_;
  Gemma4ForConditionalGeneration model_;
  SelfGroup group_;
  DataParallel data_parallel_{group_};
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
      Training whole(name, dtype, GradientBuffers::whole, state);
      Training layers(name, dtype, GradientBuffers::per_layer, state);
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
  Training whole("moe_text", Dtype::f32, GradientBuffers::whole);
  Training layers("moe_text", Dtype::f32, GradientBuffers::per_layer);
  for (int step = 0; step < 3; ++step) {
    const TrainStep::Result expected = whole.run(1, 0.1), got = layers.run(1, 0.1);
    EXPECT_GT(expected.grad_norm, 0.1);
    EXPECT_NEAR(got.grad_norm / expected.grad_norm, 1.0, 1e-5);
    EXPECT_NEAR(got.loss / expected.loss, 1.0, 1e-5);
  }
}

TEST(TrainStep, LayersShareTheMemoryOfTheLargest) {
  Training whole("moe_text", Dtype::f32, GradientBuffers::whole);
  Training layers("moe_text", Dtype::f32, GradientBuffers::per_layer);
  EXPECT_LT(layers.model().gradient_bytes(), whole.model().gradient_bytes() / 2);
}

TEST(TrainStep, MicroBatchesAddUp) {
  Training one("dense_text", Dtype::f32, GradientBuffers::whole);
  Training two("dense_text", Dtype::f32, GradientBuffers::whole);
  const TrainStep::Result once = one.run(1, 1.0), twice = two.run(2, 1.0);
  EXPECT_NEAR(twice.loss / once.loss, 2.0, 1e-6);
  EXPECT_NEAR(twice.grad_norm / once.grad_norm, 1.0, 1e-6);
}

TEST(TrainStep, LayerByLayerTakesOneMicroBatch) {
  Training layers("moe_text", Dtype::f32, GradientBuffers::per_layer);
  EXPECT_THROW(layers.run(2, 1.0), Error);
}

TEST(TrainStep, NothingIsAllocatedAndNothingWaits) {
  if (test_backend() != Backend::cuda) GTEST_SKIP() << "only a GPU can be waited for";
  for (const GradientBuffers gradients : {GradientBuffers::whole, GradientBuffers::per_layer}) {
    const int64_t count = gradients == GradientBuffers::whole ? 3 : 1;
    Training training("moe_text", Dtype::bf16, gradients, kCodes);
    const MemoryPlan plan = training.step().plan(training.inputs(), nn::Recompute::none, count);
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
