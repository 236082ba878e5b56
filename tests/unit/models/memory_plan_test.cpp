#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "lapidary/core/error.h"
#include "tests/support/golden.h"
#include "tests/support/tensors.h"

// A plan is made by the code that runs, without running it: it is exact, not an estimate.
namespace lapidary::test {
namespace {

using gemma4::TextInputs;

class MemoryPlans : public ::testing::TestWithParam<const char*> {
 protected:
  // Some tokens in rows; every row's first token is padding.
  struct Batch {
    OwnedTensor ids, mask, docs;
    TextInputs inputs() const {
      return {.input_ids = ids.get(), .attention_mask = mask.get(), .packed_seq_ids = docs.get()};
    }
  };
  static Batch batch(int64_t rows, int64_t cols) {
    Batch out{zeros(Dtype::i64, {rows, cols}), zeros(Dtype::i64, {rows, cols}),
              zeros(Dtype::i64, {rows, cols})};
    for (int64_t t = 0; t < rows * cols; ++t) {
      out.ids->as<int64_t>()[t] = 3 + t * 7 % 250;
      out.mask->as<int64_t>()[t] = t % cols > 0 ? 1 : 0;
      out.docs->as<int64_t>()[t] = t % cols < cols / 2 ? 1 : 2;
    }
    return out;
  }
  static Context context(const MemoryPlan& plan) { return Context::make(test_backend(), plan); }
  static void expect_exact(const Context& ctx, const MemoryPlan& plan) {
    EXPECT_EQ(ctx.activations.peak(), plan.activations);
    EXPECT_EQ(ctx.scratch.peak(), plan.scratch);
    EXPECT_EQ(ctx.staging.peak(), plan.staging);
    EXPECT_EQ(ctx.activations.mark(), 0);
    EXPECT_EQ(ctx.scratch.mark(), 0);
  }
  const GoldenCase golden_{GetParam()};
};

TEST_P(MemoryPlans, OfLossAreExact) {
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
    Gemma4ForConditionalGeneration model = golden_.model(dtype);
    model.zero_gradients();
    for (const Shape shape : {Shape{1, 1}, Shape{2, 24}, Shape{1, 40}, Shape{3, 9}}) {
      for (const nn::Recompute policy :
           {nn::Recompute::none, nn::Recompute::light, nn::Recompute::block}) {
        for (const bool backward : {false, true}) {
          const Batch in = batch(shape[0], shape[1]);
          const gemma4::LossOptions options{.policy = policy, .backward = backward};
          const MemoryPlan plan = model.plan_loss(in.inputs(), options);
          Context ctx = context(plan);
          model.loss(ctx, in.inputs(), in.ids.get(), options);
          SCOPED_TRACE(shape.str() + " " + nn::name_of(policy) + " " + name_of(dtype));
          expect_exact(ctx, plan);
        }
      }
    }
  }
}

TEST_P(MemoryPlans, OfForwardAreExact) {
  Gemma4ForConditionalGeneration model = golden_.model(Dtype::bf16);
  for (const Shape shape : {Shape{1, 1}, Shape{2, 24}, Shape{1, 40}}) {
    for (const int64_t keep : {0, 1}) {
      const Batch in = batch(shape[0], shape[1]);
      const gemma4::ForwardOptions options{.logits_to_keep = keep, .output_hidden_states = true};
      const MemoryPlan plan = model.plan_forward(in.inputs(), options);
      Context ctx = context(plan);
      model.forward(ctx, in.inputs(), options);
      SCOPED_TRACE(shape.str());
      expect_exact(ctx, plan);
    }
  }
}

TEST_P(MemoryPlans, OfNextLogitsAreExact) {
  Gemma4ForConditionalGeneration model = golden_.model(Dtype::f32);
  for (const int64_t rows : {1, 3}) {
    const Batch in = batch(rows, 13);
    const MemoryPlan plan = model.plan_next_logits(rows, 13, 30);
    Context ctx = context(plan);
    gemma4::GenerationCache cache(test_backend(), Dtype::f32, model.config(), rows, 30, 13);
    const OwnedTensor logits = zeros(Dtype::f32, {rows, 300});
    model.next_logits(ctx, {.input_ids = in.ids.get()}, cache, logits.get());
    expect_exact(ctx, plan);
  }
}

TEST_P(MemoryPlans, OfAShapeSufficeForEveryBatchOfIt) {
  Gemma4ForConditionalGeneration model = golden_.model(Dtype::f32);
  model.zero_gradients();
  const MemoryPlan widest = model.plan_loss(TextInputs::of_shape(2, 24), {});
  const Batch in = batch(2, 24);
  for (const TextInputs& inputs : {in.inputs(), TextInputs{.input_ids = in.ids.get()}}) {
    const MemoryPlan plan = model.plan_loss(inputs, {});
    EXPECT_LE(plan.activations, widest.activations);
    EXPECT_LE(plan.scratch, widest.scratch);
  }
}

TEST_P(MemoryPlans, AContextThatIsTooSmallIsAnError) {
  Gemma4ForConditionalGeneration model = golden_.model(Dtype::f32);
  const Batch in = batch(2, 24);
  MemoryPlan plan = model.plan_forward(in.inputs());
  plan.activations -= 64;
  Context ctx = context(plan);
  EXPECT_THROW(model.forward(ctx, in.inputs(), {}), Error);
}

INSTANTIATE_TEST_SUITE_P(Models, MemoryPlans,
                         ::testing::Values("moe_text", "dense_text", "e_text"));

// 300 tokens times 262144 logits would be 315 MB in f32, and their gradient as much again.
TEST(MemoryPlan, LossOverALargeVocabularyStaysSmall) {
  const std::string path = LAPIDARY_SOURCE_DIR "/tests/golden/data/dense_text";
  nlohmann::json json = nlohmann::json::parse(gemma4::load_config(path).json);
  json["text_config"]["vocab_size"] = 262144;
  json["text_config"]["hidden_size"] = 64;
  const gemma4::Config config = gemma4::parse_config(json.dump(), "config.json");
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
    auto model = Gemma4ForConditionalGeneration::from_config(
        config, {.dtype = dtype, .backend = Backend::meta});
    model.zero_gradients();
    const MemoryPlan plan = model.plan_loss(TextInputs::of_shape(1, 300), {});
    EXPECT_LT(plan.scratch, 200'000'000) << name_of(dtype);
    EXPECT_LT(plan.activations, 20'000'000) << name_of(dtype);
  }
}

}  // namespace
}  // namespace lapidary::test
