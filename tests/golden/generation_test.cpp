#include <gtest/gtest.h>

#include "lapidary/models/gemma4/generation.h"
#include "tests/golden/names.h"
#include "tests/support/golden.h"
#include "tests/support/tensors.h"

// Generation through the cache against the whole sequence run anew for every token. The models'
// window is 8 tokens; prompts are longer.
namespace lapidary::test {
namespace {

constexpr int64_t kNewTokens = 90;  // the sliding caches are moved at least once

class Generation : public ::testing::TestWithParam<const char*> {
 protected:
  const GoldenCase golden_{GetParam()};
  Gemma4ForConditionalGeneration model_ = golden_.model(Dtype::f64);

  // The first `count` tokens of a row of the case's inputs.
  std::vector<int64_t> prompt(int64_t row, int64_t count) const {
    return integers(golden_.inputs.input_ids->slice(0, row, 1).slice(1, 0, count));
  }

  std::vector<int64_t> uncached(std::vector<int64_t> ids, int64_t count) {
    std::vector<int64_t> out;
    for (int64_t i = 0; i < count; ++i) {
      const GoldenInputs inputs = GoldenInputs::of_tokens(ids);
      const gemma4::ForwardOutput step = run_forward(model_, inputs.text(), {.logits_to_keep = 1});
      const std::vector<double> logits = values(step.logits.get());
      const auto best = std::max_element(logits.begin(), logits.end()) - logits.begin();
      out.push_back(best);
      ids.push_back(best);
    }
    return out;
  }
};

TEST_P(Generation, CachedTokensEqualUncachedTokens) {
  const std::vector<int64_t> ids = prompt(0, 14);
  EXPECT_EQ(gemma4::generate(model_, ids, {.max_new_tokens = kNewTokens}),
            uncached(ids, kNewTokens));
}

// Step by step, so that a cache that goes wrong shows even where the best token stays the same.
TEST_P(Generation, CachedLogitsEqualUncachedLogits) {
  const std::vector<int64_t> ids = prompt(0, 20);
  const GoldenInputs all = GoldenInputs::of_tokens(ids);
  const gemma4::ForwardOutput whole = run_forward(model_, all.text());
  const int64_t vocabulary = whole.logits->dim(2);
  gemma4::GenerationCache cache(Backend::ref, Dtype::f64, model_.config(), 1, 20, 11);
  const OwnedTensor logits = zeros(Dtype::f64, {1, vocabulary});
  for (int64_t seen = 0; seen < 20;) {
    const int64_t step = seen == 0 ? 11 : (seen == 11 ? 3 : 1);
    const GoldenInputs part = all.document(0, seen, step);
    const MemoryPlan plan = model_.plan_next_logits(1, 11, 20);
    Context ctx = Context::make(Backend::ref, plan);
    model_.next_logits(ctx, {.input_ids = part.input_ids.get()}, cache, logits.get());
    seen += step;
    EXPECT_EQ(cache.length(), seen);
    const Tensor expected = whole.logits->slice(1, seen - 1, 1).slice(0, 0, 1);
    EXPECT_LT(peak_error(logits.get(), cast(expected, Dtype::f64)->view({1, vocabulary})), 1e-12)
        << "after " << seen << " tokens";
  }
}

TEST_P(Generation, ALeftPaddedBatchEqualsItsRowsAlone) {
  const std::vector<std::vector<int64_t>> prompts = {prompt(0, 3), prompt(0, 17), prompt(1, 9)};
  const gemma4::GenerationOptions options{.max_new_tokens = 20};
  const std::vector<std::vector<int64_t>> batch = gemma4::generate_batch(model_, prompts, options);
  ASSERT_EQ(batch.size(), prompts.size());
  for (size_t b = 0; b < prompts.size(); ++b) {
    EXPECT_EQ(batch[b], gemma4::generate(model_, prompts[b], options)) << "row " << b;
    EXPECT_EQ(batch[b], uncached(prompts[b], 20)) << "row " << b;
  }
}

TEST_P(Generation, StopsAtAStopIdAndWhenAskedTo) {
  const std::vector<int64_t> ids = prompt(0, 9);
  const std::vector<int64_t> free = gemma4::generate(model_, ids, {.max_new_tokens = 6});
  const auto at = std::find(free.begin(), free.end(), free[3]);
  const std::vector<int64_t> before(free.begin(), at);
  EXPECT_EQ(gemma4::generate(model_, ids, {.max_new_tokens = 6, .stop_ids = {free[3]}}), before);
  int seen = 0;
  EXPECT_EQ(
      gemma4::generate(model_, ids, {.max_new_tokens = 6}, [&](int64_t) { return ++seen < 2; })
          .size(),
      2U);
}

INSTANTIATE_TEST_SUITE_P(Golden, Generation, ::testing::Values("moe_text", "dense_text", "e_text"),
                         case_name);

}  // namespace
}  // namespace lapidary::test
