// A training step of a mid-size mixture-of-experts model against its matrix products alone.
//   lapidary_step_bench [fp32|bf16|all] [none|light|block] [steps] [rows]
// Prints one line of JSON per dtype: seconds of a step (median); of the products of its linear
// layers, experts and head alone (the same shapes, run back to back by oneDNN in this process); of
// attention's products (whole squares, times the visible share of them); ratios of the step to the
// first and to both; and the seconds of each operation. The step holds forward, backward, clipping
// and AdamW.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "lapidary/core/rng.h"
#include "lapidary/models/gemma4/conditional_generation.h"
#include "lapidary/ops/matmul.h"
#include "lapidary/ops/moe.h"
#include "lapidary/train/optimizer.h"

namespace lapidary {
namespace {

constexpr int64_t kSequence = 1024;

const char* kConfig = R"({
  "model_type": "gemma4_text", "architectures": ["Gemma4ForCausalLM"],
  "vocab_size": 32768, "hidden_size": 1024, "intermediate_size": 768, "num_hidden_layers": 12,
  "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 128, "global_head_dim": 256,
  "num_global_key_value_heads": 2, "attention_k_eq_v": true, "sliding_window": 512,
  "enable_moe_block": true, "num_experts": 32, "top_k_experts": 4, "moe_intermediate_size": 256,
  "hidden_size_per_layer_input": 0, "final_logit_softcapping": 30.0, "tie_word_embeddings": true
})";

double seconds_of(const std::function<void()>& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

OwnedTensor random(Dtype dtype, const Shape& shape) {
  OwnedTensor t(Backend::cpu, dtype, shape);
  Rng rng(7, static_cast<uint64_t>(shape.numel()));
  for (int64_t i = 0; i < t->numel(); ++i) {
    const auto value = static_cast<float>(rng.uniform() - 0.5);
    if (dtype == Dtype::bf16)
      t->as<bf16>()[i] = bf16(value);
    else
      t->as<float>()[i] = value;
  }
  return t;
}

// The products of one linear layer: forward, data gradient, weight gradient.
class Products {
 public:
  Products(Context& ctx, Dtype dtype) : ctx_(ctx), dtype_(dtype) {}

  double linear(int64_t rows, int64_t in, int64_t out, Dtype y_dtype) {
    const OwnedTensor x = random(dtype_, {rows, in}), w = random(dtype_, {out, in});
    const OwnedTensor y(Backend::cpu, y_dtype, {rows, out}), dx(Backend::cpu, dtype_, {rows, in});
    const OwnedTensor dy = random(dtype_, {rows, out});
    const OwnedTensor dw(Backend::cpu, Dtype::f32, {out, in});
    const auto run = [&] {
      ops::matmul(ctx_, {.a = x.get(), .b = w.get(), .out = y.get(), .trans_b = true});
      ops::matmul(ctx_, {.a = dy.get(), .b = w.get(), .out = dx.get()});
      ops::matmul(
          ctx_,
          {.a = dy.get(), .b = x.get(), .out = dw.get(), .trans_a = true, .accumulate = true});
    };
    return timed(run);
  }

  // counts, offsets: as the model routed.
  double experts(const nn::Routing& routing, int64_t in, int64_t out, int64_t experts) {
    const int64_t rows = routing.row_token.dim(0);
    const OwnedTensor x = random(dtype_, {rows, in}), w = random(dtype_, {experts, out, in});
    const OwnedTensor y = random(dtype_, {rows, out}), dx(Backend::cpu, dtype_, {rows, in});
    const OwnedTensor dw(Backend::cpu, Dtype::f32, {experts, out, in});
    const auto product = [&](const Tensor& a, const Tensor& result, bool trans) {
      ops::grouped_matmul(ctx_, {.a = a,
                                 .b = w.get(),
                                 .counts = routing.counts,
                                 .offsets = routing.offsets,
                                 .out = result,
                                 .trans_b = trans});
    };
    return timed([&] {
      product(x.get(), y.get(), true);
      product(y.get(), dx.get(), false);
      ops::grouped_matmul_wgrad(ctx_, {.dy = y.get(),
                                       .x = x.get(),
                                       .counts = routing.counts,
                                       .offsets = routing.offsets,
                                       .dw = dw.get()});
    });
  }

  // The seven products of one head's forward and backward over a whole square of scores.
  double attention_head(int64_t length, int64_t size) {
    const OwnedTensor q = random(dtype_, {length, size}), k = random(dtype_, {length, size});
    const OwnedTensor s(Backend::cpu, Dtype::f32, {length, length});
    const OwnedTensor p = random(dtype_, {length, length});
    const OwnedTensor o(Backend::cpu, Dtype::f32, {length, size});
    return timed([&] {
      for (int i = 0; i < 3; ++i) {  // q k^T, q k^T again, dO v^T
        ops::matmul(ctx_, {.a = q.get(), .b = k.get(), .out = s.get(), .trans_b = true});
      }
      for (int i = 0; i < 2; ++i) {  // p v, dS k
        ops::matmul(ctx_, {.a = p.get(), .b = k.get(), .out = o.get()});
      }
      for (int i = 0; i < 2; ++i) {  // p^T dO, dS^T q
        ops::matmul(ctx_, {.a = p.get(), .b = q.get(), .out = o.get(), .trans_a = true});
      }
    });
  }

 private:
  static double timed(const std::function<void()>& run) {
    run();
    return median({seconds_of(run), seconds_of(run), seconds_of(run)});
  }
  Context& ctx_;
  Dtype dtype_;
};

double products_alone(Context& ctx, const gemma4::Gemma4ForConditionalGeneration& model,
                      int64_t tokens) {
  const gemma4::TextConfig& text = model.config().text;
  Products products(ctx, model.dtype());
  const Dtype dtype = model.dtype();
  const int64_t hidden = text.hidden_size;
  double total = products.linear(tokens, hidden, text.vocab_size, Dtype::f32);
  for (size_t i = 0; i < text.layers.size(); ++i) {
    const gemma4::LayerConfig& layer = text.layers[i];
    const int64_t q = text.num_attention_heads * layer.head_dim;
    const int64_t kv = layer.num_key_value_heads * layer.head_dim;
    total += products.linear(tokens, hidden, q, dtype) + products.linear(tokens, q, hidden, dtype) +
             products.linear(tokens, hidden, kv, dtype) * (layer.k_eq_v ? 1.0 : 2.0) +
             products.linear(tokens, hidden, layer.intermediate_size, dtype) * 2.0 +
             products.linear(tokens, layer.intermediate_size, hidden, dtype);
    const nn::Routing& routing = model.last_pass().routing[i];
    total += products.experts(routing, hidden, 2 * text.moe_intermediate_size, text.num_experts) +
             products.experts(routing, text.moe_intermediate_size, hidden, text.num_experts);
  }
  return total;
}

double attention_alone(Context& ctx, const gemma4::Gemma4ForConditionalGeneration& model,
                       int64_t rows) {
  const gemma4::TextConfig& text = model.config().text;
  Products products(ctx, model.dtype());
  const auto length = static_cast<double>(kSequence);
  double total = 0.0;
  for (const gemma4::LayerConfig& layer : text.layers) {
    const bool full = layer.type == gemma4::LayerType::full_attention;
    const double window = full ? length : static_cast<double>(text.sliding_window);
    const double visible = window * (window + 1.0) / 2.0 + (length - window) * window;
    total += products.attention_head(kSequence, layer.head_dim) *
             static_cast<double>(rows * text.num_attention_heads) * visible / (length * length);
  }
  return total;
}

void run(Dtype dtype, nn::Recompute policy, int steps, int64_t rows) {
  const int64_t tokens = rows * kSequence;
  auto model = gemma4::Gemma4ForConditionalGeneration::from_config(
      gemma4::parse_config(kConfig, "step_bench"), {.dtype = dtype});
  std::vector<int64_t> ids(static_cast<size_t>(tokens));
  Rng rng(3);
  for (int64_t& id : ids) id = 1 + rng.below(model.config().text.vocab_size - 1);
  const ConstTensor input_ids(ids.data(), Dtype::i64, {rows, kSequence});
  const gemma4::TextInputs inputs{.input_ids = input_ids};
  const gemma4::LossOptions options{.policy = policy,
                                    .grad_scale = 1.0 / static_cast<double>(tokens)};
  model.zero_gradients();
  std::vector<Parameter*> parameters;
  model.for_each_parameter([&](Parameter& p) { parameters.push_back(&p); });
  AdamW optimizer(Backend::cpu, {}, parameters);
  const MemoryPlan plan = model.plan_loss(inputs, options);
  Context ctx = Context::make(Backend::cpu, plan);
  const auto step = [&] {
    model.zero_gradients(ctx);
    model.loss(ctx, inputs, input_ids, options);
    optimizer.begin_step();
    optimizer.reset_squares(ctx);
    optimizer.add_squares(ctx);
    optimizer.clip(ctx, 1.0);
    optimizer.step(ctx, 1e-4, 0.01);
  };
  step();
  Profiler profiler;
  std::vector<double> seconds;
  ctx.profiler = &profiler;
  for (int i = 0; i < steps; ++i) seconds.push_back(seconds_of(step));
  ctx.profiler = nullptr;
  const double whole = median(seconds);
  const double alone = products_alone(ctx, model, tokens);
  const double attention = attention_alone(ctx, model, rows);
  std::printf(
      "{\"bench\": \"step\", \"dtype\": \"%s\", \"recompute\": \"%s\", \"tokens\": %lld, "
      "\"parameters\": %lld, \"step_s\": %.4f, \"products_s\": %.4f, "
      "\"attention_products_s\": %.4f, \"ratio\": %.3f, \"ratio_all_products\": %.3f, "
      "\"tokens_per_s\": %.1f, \"activation_MiB\": %.1f, \"ops_s\": {",
      name_of(dtype), nn::name_of(policy), static_cast<long long>(tokens),
      static_cast<long long>(gemma4::num_parameters(model.config())), whole, alone, attention,
      whole / alone, whole / (alone + attention), static_cast<double>(tokens) / whole,
      static_cast<double>(plan.activations) / 1048576.0);
  const char* comma = "";
  for (const auto& [op, entry] : profiler.entries()) {
    std::printf("%s\"%s\": %.4f", comma, op.c_str(), entry.seconds / steps);
    comma = ", ";
  }
  std::printf("}}\n");
  std::fflush(stdout);
}

}  // namespace
}  // namespace lapidary

int main(int argc, char** argv) {
  const std::string dtype = argc > 1 ? argv[1] : "all";
  const auto policy = lapidary::nn::parse_recompute(argc > 2 ? argv[2] : "none");
  const int steps = argc > 3 ? std::atoi(argv[3]) : 5;
  const int rows = argc > 4 ? std::atoi(argv[4]) : 1;
  for (const char* name : {"fp32", "bf16"}) {
    if (dtype != "all" && dtype != name) continue;
    lapidary::run(lapidary::parse_dtype(name), policy, steps, rows);
  }
  return 0;
}
