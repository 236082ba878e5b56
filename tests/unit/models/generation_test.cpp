#include "lapidary/models/gemma4/generation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "lapidary/core/error.h"
#include "tests/support/golden.h"
#include "tests/support/tensors.h"

// Sampling, and what a generation remembers. That cached tokens equal uncached ones is pinned on
// the golden cases.
namespace lapidary::test {
namespace {

using gemma4::GenerationOptions;
using gemma4::LayerType;
using ::testing::HasSubstr;

const std::vector<float> kLogits = {0.0F, 2.0F, 1.0F, 2.0F, -1.0F};

int64_t sample(const GenerationOptions& options, uint64_t step = 0) {
  return gemma4::sample(kLogits.data(), static_cast<int64_t>(kLogits.size()), options, step);
}

// How often each id comes in 4000 draws.
std::map<int64_t, double> frequencies(const GenerationOptions& options) {
  constexpr uint64_t kDraws = 4000;
  std::map<int64_t, double> out;
  for (uint64_t step = 0; step < kDraws; ++step) out[sample(options, step)] += 1.0 / kDraws;
  return out;
}

TEST(Sample, GreedyTakesTheLowestOfTheLargest) { EXPECT_EQ(sample({}), 1); }

TEST(Sample, FollowsTheSoftmaxOfLogitsOverTemperature) {
  for (const double temperature : {0.5, 1.0, 3.0}) {
    double sum = 0.0;
    for (const float z : kLogits) sum += std::exp(static_cast<double>(z) / temperature);
    std::map<int64_t, double> seen = frequencies({.temperature = temperature});
    for (size_t id = 0; id < kLogits.size(); ++id) {
      const double p = std::exp(static_cast<double>(kLogits[id]) / temperature) / sum;
      // Five standard deviations of a frequency in 4000 draws.
      EXPECT_NEAR(seen[static_cast<int64_t>(id)], p, 5 * std::sqrt(p * (1 - p) / 4000)) << id;
    }
  }
}

TEST(Sample, TopKKeepsTheLikeliest) {
  EXPECT_THAT(frequencies({.temperature = 5.0, .top_k = 1}), ::testing::SizeIs(1));
  std::map<int64_t, double> three = frequencies({.temperature = 5.0, .top_k = 3});
  EXPECT_EQ(three.size(), 3U);
  EXPECT_GT(three[1] * three[2] * three[3], 0.0);
  EXPECT_EQ(frequencies({.temperature = 5.0, .top_k = 99}).size(), 5U);
}

// The likeliest has p = 0.39, the two likeliest together 0.78, the first three 0.93.
TEST(Sample, TopPKeepsTheFewestThatReachIt) {
  EXPECT_EQ(frequencies({.temperature = 1.0, .top_p = 0.3}).size(), 1U);
  EXPECT_EQ(frequencies({.temperature = 1.0, .top_p = 0.7}).size(), 2U);
  EXPECT_EQ(frequencies({.temperature = 1.0, .top_p = 0.8}).size(), 3U);
  EXPECT_EQ(frequencies({.temperature = 1.0, .top_p = 1e-9}).size(), 1U);
}

TEST(Sample, SeedAndStepDecide) {
  const GenerationOptions options{.temperature = 1.0, .seed = 7};
  std::vector<int64_t> a, b, c;
  for (uint64_t step = 0; step < 50; ++step) {
    a.push_back(sample(options, step));
    b.push_back(sample(options, step));
    c.push_back(sample({.temperature = 1.0, .seed = 8}, step));
  }
  EXPECT_EQ(a, b);
  EXPECT_NE(a, c);
}

class Generate : public ::testing::Test {
 protected:
  std::string error_of(const std::vector<int64_t>& prompt) {
    try {
      gemma4::generate(model_, prompt, {.max_new_tokens = 2});
    } catch (const Error& e) {
      return e.what();
    }
    return "";
  }
  Gemma4ForConditionalGeneration model_ = GoldenCase("moe_text").model(Dtype::f32);
};

TEST_F(Generate, BadPromptsAreErrors) {
  EXPECT_THAT(error_of({}), HasSubstr("the prompt is empty"));
  EXPECT_THAT(error_of({5, 300}), HasSubstr("token id 300 at row 0, position 1"));
  EXPECT_THAT(error_of({-1}), HasSubstr("token id -1"));
}

TEST_F(Generate, NothingIsAskedFor) {
  EXPECT_TRUE(gemma4::generate(model_, {5, 6}, {.max_new_tokens = 0}).empty());
}

// The plan is that of the first step; later ones are narrower but see more keys.
TEST_F(Generate, ManyTokensFitTheMemoryOfTheFirstStep) {
  EXPECT_EQ(gemma4::generate(model_, {5}, {.max_new_tokens = 300}).size(), 300U);
  const std::vector<std::vector<int64_t>> batch =
      gemma4::generate_batch(model_, {{5}, {6, 7, 8}}, {.max_new_tokens = 150});
  EXPECT_EQ(batch[0].size(), 150U);
  EXPECT_EQ(batch[1].size(), 150U);
}

// A window of 8 tokens costs room for 7 and one stretch of steps, however long the text.
TEST_F(Generate, SlidingLayersHoldTheirWindowOnly) {
  constexpr int64_t kTokens = 5000;
  gemma4::GenerationCache cache(Backend::cpu, Dtype::f32, model_.config(), 1, kTokens, 1);
  const auto append = [&](int64_t layer, int64_t count) {
    const gemma4::LayerConfig& shape = model_.config().text.layers[static_cast<size_t>(layer)];
    const OwnedTensor k = zeros(Dtype::f32, {1, count, shape.num_key_value_heads, shape.head_dim});
    const OwnedTensor v = cast(k.get(), Dtype::f32);
    Context ctx;
    cache.layer(layer)->append(ctx, {k.get(), v.get()});
  };
  EXPECT_THROW(append(0, 100), Error);
  append(5, kTokens);
  Context ctx;
  for (int64_t t = 0; t < 500; ++t) {
    cache.begin_step(ctx, 1);
    append(0, 1);
    EXPECT_GE(cache.first_key(LayerType::sliding_attention), 0);
  }
  // After 500 tokens the last 7 are there, and not those of long ago.
  const auto held = 500 - cache.layer(0)->first();
  EXPECT_GE(held, 7);
  EXPECT_LE(held, 100);
}

}  // namespace
}  // namespace lapidary::test
