// Twenty AdamW steps of a small mixture-of-experts model, from random parameters, on one batch of
// random tokens. The loss begins near ln(vocab_size) and falls while the batch is learned by heart.
//   example_train_step
#include <cstdio>
#include <exception>
#include <string>
#include <vector>

#include "lapidary/core/rng.h"
#include "lapidary/models/gemma4/conditional_generation.h"
#include "lapidary/train/optimizer.h"

namespace {

using lapidary::Dtype;
using lapidary::gemma4::Gemma4ForConditionalGeneration;

constexpr int64_t kRows = 2;
constexpr int64_t kCols = 32;
constexpr int64_t kVocab = 256;
constexpr int kSteps = 20;

// A config.json as Hugging Face writes it; fields that are left out have its defaults.
const char* kConfig = R"({
  "model_type": "gemma4_text", "vocab_size": 256, "hidden_size": 64, "intermediate_size": 128,
  "num_hidden_layers": 6, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
  "global_head_dim": 32, "num_global_key_value_heads": 1, "attention_k_eq_v": true,
  "sliding_window": 16, "enable_moe_block": true, "num_experts": 8, "top_k_experts": 2,
  "moe_intermediate_size": 32, "hidden_size_per_layer_input": 0,
  "vocab_size_per_layer_input": 256, "final_logit_softcapping": 30.0
})";

std::vector<int64_t> random_tokens() {
  lapidary::Rng rng(1);
  std::vector<int64_t> ids(kRows * kCols);
  for (int64_t& id : ids) id = 3 + rng.below(kVocab - 3);  // 0, 1, 2: pad, end, begin
  return ids;
}

void run() {
  auto model = Gemma4ForConditionalGeneration::from_config(
      lapidary::gemma4::parse_config(kConfig, "example"), {.dtype = Dtype::f32});

  // The library reads the caller's memory; it copies nothing.
  const std::vector<int64_t> ids = random_tokens();
  const lapidary::ConstTensor tokens(ids.data(), Dtype::i64, {kRows, kCols});
  const lapidary::gemma4::TextInputs inputs{.input_ids = tokens};
  const double counted = kRows * (kCols - 1);  // position t predicts token t + 1

  // Gradients and optimiser state exist from here on; so does the memory of a step, which a dry
  // run measures.
  model.zero_gradients();
  std::vector<lapidary::Parameter*> parameters;
  model.for_each_parameter([&](lapidary::Parameter& p) { parameters.push_back(&p); });
  lapidary::AdamW optimizer(model.backend(), {.beta1 = 0.9, .beta2 = 0.95}, parameters);
  const lapidary::gemma4::LossOptions options{.grad_scale = 1.0 / counted};
  const lapidary::MemoryPlan plan = model.plan_loss(inputs, options);
  lapidary::Context ctx = lapidary::Context::make(model.backend(), plan);

  double first = 0.0, last = 0.0;
  for (int step = 0; step < kSteps; ++step) {
    model.zero_gradients();
    last = model.loss(ctx, inputs, tokens, options) / counted;
    if (step == 0) first = last;
    optimizer.begin_step();
    const double norm = optimizer.grad_norm(ctx);
    std::printf("step %2d  loss %.4f  gradient norm %.4f\n", step, last, norm);
    optimizer.clip(ctx, 1.0);
    optimizer.step(ctx, 5e-3, 0.01);
  }
  if (last < first) std::printf("loss fell from %.4f to %.4f\n", first, last);
}

}  // namespace

int main() {
  try {
    run();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
