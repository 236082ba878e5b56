#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/golden.h"
#include "tests/support/tensors.h"

// Random weights of from_config().
namespace lapidary::test {
namespace {

using Model = Gemma4ForConditionalGeneration;

gemma4::Config config_of(const std::string& name) {
  return gemma4::load_config(LAPIDARY_SOURCE_DIR "/tests/golden/data/" + name);
}

class Initialize : public ::testing::TestWithParam<const char*> {
 protected:
  Model model(uint64_t seed, Dtype dtype = Dtype::f32) const {
    return Model::from_config(config_of(GetParam()), {.dtype = dtype, .seed = seed});
  }
};

TEST_P(Initialize, NothingIsAllZero) {
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
    Model m = model(1, dtype);
    m.for_each_parameter([&](Parameter& p) {
      double sum = 0.0;
      for (const double v : values(p.value)) sum += v * v;
      const double rms = std::sqrt(sum / static_cast<double>(p.value.numel()));
      if (p.init == Init::ones) {
        EXPECT_EQ(rms, 1.0) << p.name;
      } else {
        // initializer_range; a tensor of n values has an RMS within 4 / sqrt(2 n) of it.
        const auto n = static_cast<double>(p.value.numel());
        EXPECT_NEAR(rms / 0.02, 1.0, 4.0 / std::sqrt(2.0 * n) + 0.01) << p.name;
      }
    });
  }
}

TEST_P(Initialize, PadRowsAreZero) {
  Model m = model(1);
  int tables = 0;
  m.for_each_parameter([&](Parameter& p) {
    if (p.name.find("embed_tokens") == std::string::npos) return;
    ++tables;
    for (const double v : values(p.value.slice(0, 0, 1))) EXPECT_EQ(v, 0.0) << p.name;
    double row = 0.0;
    for (const double v : values(p.value.slice(0, 1, 1))) row += std::abs(v);
    EXPECT_GT(row, 0.0) << p.name;
  });
  EXPECT_EQ(tables, std::string(GetParam()) == "e_text" ? 2 : 1);
}

TEST_P(Initialize, SeedDecides) {
  Model a = model(1), b = model(1), c = model(2);
  a.for_each_parameter([&](Parameter& p) {
    EXPECT_TRUE(same_bits(p.value, b.parameter(p.name).value)) << p.name;
    if (p.init == Init::ones) return;
    EXPECT_FALSE(same_bits(p.value, c.parameter(p.name).value)) << p.name;
  });
}

INSTANTIATE_TEST_SUITE_P(Models, Initialize, ::testing::Values("moe_text", "dense_text", "e_text"));

// A tensor's values depend on seed and name alone: what else the model has does not matter.
TEST(InitializeByName, OtherTensorsDoNotMatter) {
  Model moe = Model::from_config(config_of("moe_text"), {.seed = 3});
  Model dense = Model::from_config(config_of("dense_text"), {.seed = 3});
  int compared = 0;
  dense.for_each_parameter([&](Parameter& p) {
    EXPECT_TRUE(same_bits(p.value, moe.parameter(p.name).value)) << p.name;
    ++compared;
  });
  EXPECT_GT(compared, 50);
  const std::string layer = "model.language_model.layers.";
  EXPECT_FALSE(same_bits(dense.parameter(layer + "0.mlp.up_proj.weight").value,
                         dense.parameter(layer + "1.mlp.up_proj.weight").value));
}

// At random weights the loss lies at that of a uniform guess, and every tensor has a gradient.
TEST_P(Initialize, LossStartsAtAUniformGuess) {
  const GoldenCase golden(GetParam());
  Model m = model(1);
  const LossAndGradients got = run_gradients(m, golden.inputs);
  EXPECT_NEAR(got.loss, std::log(300.0), 0.1);
  for (const auto& [name, gradient] : got.gradients) {
    double sum = 0.0;
    for (const double g : values(gradient.get())) sum += std::abs(g);
    EXPECT_GT(sum, 0.0) << name;
  }
}

}  // namespace
}  // namespace lapidary::test
