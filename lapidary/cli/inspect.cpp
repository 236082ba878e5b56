#include <fmt/format.h>

#include <map>
#include <memory>

#include "lapidary/cli/commands.h"
#include "lapidary/models/gemma4/conditional_generation.h"

namespace lapidary::cli {
namespace {

using gemma4::Capabilities;
using gemma4::Config;
using gemma4::Gemma4ForConditionalGeneration;

struct Options {
  std::string model, dtype = "bf16", device = "cpu";
  int64_t rows = 1, cols = 4096;
  bool print_config = false;
};

const char* variant(const gemma4::TextConfig& text) {
  if (text.enable_moe_block) return "mixture of experts (26B-A4B kind)";
  if (text.hidden_size_per_layer_input > 0) return "per-layer embeddings (E2B / E4B kind)";
  return "dense (31B kind)";
}

// The part of the model that a parameter belongs to.
std::string part_of(const std::string& name) {
  constexpr std::pair<const char*, const char*> kParts[] = {
      {"embed_tokens_per_layer", "per-layer embeddings"},
      {"per_layer", "per-layer inputs"},
      {"embed_tokens", "embeddings"},
      {"lm_head", "head"},
      {"self_attn", "attention"},
      {".experts.", "experts"},
      {".router.", "router"},
      {".mlp.", "dense MLP"},
  };
  for (const auto& [key, part] : kParts) {
    if (name.find(key) != std::string::npos) return part;
  }
  return "norms and scales";
}

void print_parameters(Gemma4ForConditionalGeneration& model) {
  std::map<std::string, int64_t> parts;
  int64_t total = 0, buffers = 0;
  model.for_each_parameter([&](Parameter& p) {
    if (p.buffer) {
      buffers += p.shape.numel();
      return;
    }
    parts[part_of(p.name)] += p.shape.numel();
    total += p.shape.numel();
  });
  fmt::print("parameters\n");
  for (const auto& [part, count] : parts) fmt::print("  {:<22}{:>16}\n", part, count);
  fmt::print("  {:<22}{:>16}\n", "total", total);
  fmt::print("  {:<22}{:>16}\n", "and buffers", buffers);
}

void print_layers(const gemma4::TextConfig& text) {
  fmt::print("layers\n");
  for (size_t first = 0; first < text.layers.size();) {
    const gemma4::LayerConfig& layer = text.layers[first];
    size_t last = first;
    while (last + 1 < text.layers.size() && text.layers[last + 1].type == layer.type &&
           text.layers[last + 1].kv_shared == layer.kv_shared) {
      ++last;
    }
    const bool full = layer.type == gemma4::LayerType::full_attention;
    fmt::print("  {:>3}-{:<3} {:<8} {} query heads, {} key/value heads of {}{}{}\n", first, last,
               full ? "full" : "sliding", text.num_attention_heads, layer.num_key_value_heads,
               layer.head_dim, layer.k_eq_v ? ", values are keys" : "",
               layer.kv_shared ? fmt::format(", keys of layer {}", layer.kv_source) : "");
    first = last + 1;
  }
}

void print_axis(const char* name, bool supported, const std::string& note) {
  fmt::print("  {:<4}{}{}\n", name, supported ? "yes" : "no", note.empty() ? "" : ": " + note);
}

void print_capabilities(const Config& config) {
  const Capabilities can = Gemma4ForConditionalGeneration::get_capabilities(config);
  fmt::print("parallel axes the model allows (this version runs on one rank)\n");
  print_axis("tp", can.tp,
             can.tp ? fmt::format("sizes that divide {}", can.max_tp) : can.why_no_tp);
  print_axis("cp", can.cp, "");
  print_axis("pp", can.pp, can.why_no_pp);
  print_axis("ep", can.ep, can.why_no_ep);
}

// Weights without a master copy, 8-bit moments with a scale for each 256, one layer's gradients.
void print_least_memory(const Gemma4ForConditionalGeneration& model, double parameters) {
  constexpr double kGiB = 1024.0 * 1024.0 * 1024.0;
  auto lean = Gemma4ForConditionalGeneration::from_config(
      model.config(), {.dtype = model.dtype(), .backend = Backend::meta});
  lean.zero_gradients(gemma4::GradientBuffers::per_layer);
  const double moments = parameters * (2.0 + 8.0 / 256.0);
  fmt::print(
      "  in the least memory (optimizer_in_bwd, optimizer.state_dtype int8, no master "
      "weights): {:.2f} GiB\n",
      (static_cast<double>(lean.gradient_bytes()) + moments) / kGiB);
}

void print_memory(Gemma4ForConditionalGeneration& model, const Options& options) {
  constexpr double kGiB = 1024.0 * 1024.0 * 1024.0;
  const auto width = static_cast<double>(size_of(model.dtype()));
  double weights = 0.0;
  model.for_each_parameter(
      [&](Parameter& p) { weights += static_cast<double>(p.shape.numel()) * width; });
  const double states = weights / width * (model.dtype() == Dtype::f32 ? 12.0 : 16.0);
  fmt::print("memory of a training step, {} x {} tokens, {}\n", options.rows, options.cols,
             name_of(model.dtype()));
  fmt::print("  weights {:.2f} GiB; gradients and AdamW state {:.2f} GiB\n", weights / kGiB,
             states / kGiB);
  if (model.dtype() == Dtype::bf16) print_least_memory(model, weights / width);
  model.zero_gradients();
  for (const auto policy : {nn::Recompute::none, nn::Recompute::light, nn::Recompute::block}) {
    const MemoryPlan plan = model.plan_loss(
        gemma4::TextInputs::of_shape(options.rows, options.cols), {.policy = policy});
    fmt::print("  recompute {:<6} activations {:.2f} GiB, scratch {:.2f} GiB\n",
               nn::name_of(policy), static_cast<double>(plan.activations) / kGiB,
               static_cast<double>(plan.scratch) / kGiB);
  }
}

void run(const Options& options) {
  const Config config = gemma4::load_config(options.model);
  if (options.print_config) {
    fmt::print("{}", config.json);
    return;
  }
  for (const std::string& warning : config.warnings) fmt::print(stderr, "warning: {}\n", warning);
  auto model = Gemma4ForConditionalGeneration::from_config(
      config, {.dtype = parse_dtype(options.dtype),
               .backend = Backend::meta,
               .target = parse_backend(options.device)});
  fmt::print("variant: {}\n", variant(config.text));
  print_parameters(model);
  print_layers(config.text);
  print_capabilities(config);
  print_memory(model, options);
}

}  // namespace

void add_inspect(CLI::App& app) {
  CLI::App* command = app.add_subcommand(
      "inspect", "Say what a model is: parts, parallel axes, memory by recompute policy");
  const auto o = std::make_shared<Options>();
  command->add_option("model", o->model, "model directory, config.json, or 26b-a4b, 31b, e2b, e4b")
      ->required();
  command->add_option("--rows", o->rows, "rows of a micro-batch")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--seq-len", o->cols, "tokens of a row")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--dtype", o->dtype, "fp32 or bf16")
      ->check(CLI::IsMember({"fp32", "bf16"}))
      ->capture_default_str();
  command->add_option("--device", o->device, "cpu or cuda")->capture_default_str();
  command->add_flag("--print-config", o->print_config, "print its config.json and nothing else");
  command->callback([=] { run(*o); });
}

}  // namespace lapidary::cli
