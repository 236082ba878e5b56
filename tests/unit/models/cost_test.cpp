#include "lapidary/models/gemma4/cost.h"

#include <gtest/gtest.h>

namespace lapidary::gemma4 {
namespace {

constexpr double kGiga = 1e9;
constexpr double kHalfUnit = 0.0005;  // the table below has three decimals

Cost per_token(const std::string& name, int64_t cols) {
  Cost cost = forward_cost(named_config(name).text, 1, cols);
  for (double* part : {&cost.projections, &cost.dense, &cost.router, &cost.experts, &cost.per_layer,
                       &cost.head, &cost.sliding_core, &cost.full_core}) {
    *part /= static_cast<double>(cols) * kGiga;
  }
  return cost;
}

// By hand: 2 (25 2816 (4096 2 + 2048 2) + 5 2816 (8192 2 + 1024)) and so on.
TEST(Cost, MixtureOfExpertsByHand) {
  const Cost cost = per_token("26b-a4b", 4096);
  EXPECT_NEAR(cost.projections, 2.220, kHalfUnit);
  EXPECT_NEAR(cost.dense, 1.071, kHalfUnit);
  EXPECT_NEAR(cost.router, 0.022, kHalfUnit);
  EXPECT_NEAR(cost.experts, 2.855, kHalfUnit);
  EXPECT_NEAR(cost.head, 1.476, kHalfUnit);
  EXPECT_EQ(cost.per_layer, 0.0);
  EXPECT_NEAR(cost.products(), 7.644, 2 * kHalfUnit);
  EXPECT_NEAR(cost.sliding_core, 0.367, kHalfUnit);
  EXPECT_NEAR(cost.full_core, 0.336, kHalfUnit);
  EXPECT_NEAR(cost.training(), 25.39, 0.005);
}

TEST(Cost, LongRowsByHand) {
  EXPECT_NEAR(per_token("26b-a4b", 8192).sliding_core, 0.393, kHalfUnit);
  EXPECT_NEAR(per_token("26b-a4b", 8192).full_core, 0.671, kHalfUnit);
  EXPECT_NEAR(per_token("26b-a4b", 8192).training(), 26.66, 0.005);
  EXPECT_NEAR(per_token("26b-a4b", 32768).training(), 33.77, 0.005);
}

// Layers that share keys and values project none, and have a wider MLP in E2B.
TEST(Cost, SharedLayersAndPerLayerEmbeddings) {
  const TextConfig text = named_config("e2b").text;
  const double tokens = 16.0;
  const Cost cost = forward_cost(text, 2, 8);
  double projections = 0.0, dense = 0.0;
  for (const LayerConfig& layer : text.layers) {
    const auto heads = static_cast<double>(2 * text.num_attention_heads +
                                           (layer.kv_shared ? 0 : 2 * layer.num_key_value_heads));
    projections += 2.0 * tokens * 1536.0 * heads * static_cast<double>(layer.head_dim);
    dense += 6.0 * tokens * 1536.0 * static_cast<double>(layer.intermediate_size);
  }
  EXPECT_DOUBLE_EQ(cost.projections, projections);
  EXPECT_DOUBLE_EQ(cost.dense, dense);
  EXPECT_DOUBLE_EQ(cost.per_layer, 35.0 * 3.0 * 2.0 * tokens * 1536.0 * 256.0);
  EXPECT_EQ(cost.experts, 0.0);
}

TEST(Cost, VisiblePairsAsCounted) {
  for (const int64_t window : {0, 1, 3, 7, 100}) {
    for (const int64_t offset : {0, 1, 2, 6, 50}) {
      for (const int64_t queries : {0, 1, 5, 9}) {
        double expected = 0.0;
        for (int64_t s = offset; s < offset + queries; ++s) {
          for (int64_t t = 0; t <= s; ++t) expected += window == 0 || t > s - window ? 1.0 : 0.0;
        }
        EXPECT_EQ(visible_pairs(queries, window, offset), expected)
            << window << " " << offset << " " << queries;
      }
    }
  }
}

}  // namespace
}  // namespace lapidary::gemma4
