#include <algorithm>
#include <cmath>

#include "lapidary/models/gemma4/cost.h"
#include "lapidary/models/gemma4/generation.h"
#include "lapidary/train/bench_run.h"
#include "lapidary/train/train_step.h"

namespace lapidary {
namespace {

using gemma4::Gemma4ForConditionalGeneration;
using gemma4::LayerConfig;

constexpr int64_t kSmallVocabulary = 1024;
constexpr int64_t kWarmTokens = 3;
constexpr int64_t kPrefills = 3;

ConstTensor ids_tensor(const std::vector<int64_t>& ids, int64_t rows) {
  return {ids.data(), Dtype::i64, {rows, static_cast<int64_t>(ids.size()) / rows}};
}

std::string shape_of(const gemma4::TextConfig& text, int64_t rows, int64_t cols) {
  return std::to_string(rows) + "x" + std::to_string(cols) + " tokens, " +
         std::to_string(text.num_hidden_layers) + " layers of " + std::to_string(text.hidden_size);
}

bool is_table(const Parameter& p) { return p.name.find("embed_tokens") != std::string::npos; }

// Elements of all parameters but the embedding tables, of which a pass reads a few rows. `share`
// of the experts' own.
double elements_of(Gemma4ForConditionalGeneration& model, double share = 1.0) {
  double count = 0.0;
  model.for_each_parameter([&](Parameter& p) {
    if (is_table(p)) return;
    const bool expert = p.name.find(".experts.") != std::string::npos;
    count += static_cast<double>(p.shape.numel()) * (expert ? share : 1.0);
  });
  return count;
}

gemma4::Config chosen_layers(const BenchRun& run) {
  return run.options.layers == 0 ? run.config : shortened_config(run.config, run.options.layers, 0);
}

// The expected share of experts that some of `rows` tokens choose, evenly drawn.
double share_of_experts(const gemma4::TextConfig& text, int64_t rows) {
  if (!text.enable_moe_block) return 1.0;
  const double chosen =
      static_cast<double>(text.top_k_experts) / static_cast<double>(text.num_experts);
  return 1.0 - std::pow(1.0 - chosen, static_cast<double>(rows));
}

// Bytes of keys and values that one step of one token per row reads.
double cache_bytes(const BenchRun& run, const gemma4::TextConfig& text, int64_t seen) {
  double elements = 0.0;
  for (const LayerConfig& layer : text.layers) {
    const bool full = layer.type == gemma4::LayerType::full_attention;
    const int64_t keys = full ? seen : std::min(seen, text.sliding_window);
    elements += static_cast<double>(2 * keys * layer.num_key_value_heads * layer.head_dim);
  }
  return elements * run.width() * static_cast<double>(run.options.batch);
}

}  // namespace

// One cycle of layer types at real width, from ids of a small vocabulary to the gradients of all
// weights; without a head. Gradients accumulate in zeroed buffers.
void bench_period(BenchRun& run) {
  const BenchOptions& o = run.options;
  const gemma4::Config config = shortened_config(run.config, period_of(run.text), kSmallVocabulary);
  auto model = run.random_model(config);
  const std::vector<int64_t> ids = run.random_ids(run.tokens(), config.text.vocab_size);
  const gemma4::TextInputs inputs{.input_ids = ids_tensor(ids, o.batch)};
  const OwnedTensor d_hidden = run.random({run.tokens(), config.text.hidden_size}, 0.01);
  gemma4::Gemma4TextModel& text = model.language_model();
  gemma4::Gemma4TextModel::Pass pass;
  const auto pass_through = [&](Context& ctx, bool backward) {
    const ArenaScope activations(ctx.activations), staging(ctx.staging);
    text.forward(ctx, inputs, {.policy = o.recompute}, pass);
    if (backward) text.backward(ctx, d_hidden.get(), pass);
  };
  gemma4::Cost cost = gemma4::forward_cost(config.text, o.batch, o.seq);
  cost.head = 0.0;
  const double weights = elements_of(model);
  BenchLine line{.part = "forward",
                 .shape = shape_of(config.text, o.batch, o.seq),
                 .flops = cost.forward(),
                 .bytes = weights * run.width(),
                 .tokens = static_cast<double>(run.tokens())};
  run.measure(line, BenchRun::Length::whole, [&](Context& ctx) { pass_through(ctx, false); });
  model.zero_gradients();
  line.part = "forward and backward";
  line.flops = cost.training();
  line.bytes = weights * (2.0 * run.width() + 8.0);  // read twice; gradients read and written
  run.measure(line, BenchRun::Length::whole, [&](Context& ctx) { pass_through(ctx, true); });
}

// What the trainer does between two batches: gradients cleared, loss, backward, clipping, AdamW.
void bench_step(BenchRun& run) {
  const BenchOptions& o = run.options;
  const gemma4::Config config = chosen_layers(run);
  auto model = run.random_model(config);
  const std::vector<int64_t> ids = run.random_ids(run.tokens(), config.text.vocab_size);
  const MicroBatch batch{{.input_ids = ids_tensor(ids, o.batch)}, ids_tensor(ids, o.batch)};
  double elements = 0.0;
  model.for_each_parameter([&](Parameter& p) { elements += static_cast<double>(p.shape.numel()); });
  AdamW optimizer(o.backend,
                  {.moments = parse_moment_type(o.state_dtype), .master_weights = o.master_weights},
                  model.optimizer_parameters());
  TrainStep step(model, optimizer, {.optimizer_in_bwd = o.optimizer_in_bwd});
  BenchLine line{.part = "loss and backward",
                 .shape = shape_of(config.text, o.batch, o.seq),
                 .flops = gemma4::forward_cost(config.text, o.batch, o.seq).training(),
                 .bytes = elements * (2.0 * run.width() + 8.0),  // as in bench_period
                 .tokens = static_cast<double>(run.tokens())};
  run.measure(line, BenchRun::Length::whole, [&](Context& ctx) {
    model.zero_gradients(ctx);  // in the buffers that the step has made
    model.loss(ctx, batch.inputs, batch.labels, {.policy = o.recompute, .grad_scale = 1e-3});
  });
  line.part = "step";
  // Also: weights written, moments and masters read and written.
  line.bytes += elements * run.width() + 2.0 * static_cast<double>(optimizer.state_bytes());
  const TrainStepOptions options{.recompute = o.recompute,
                                 .max_grad_norm = o.max_grad_norm,
                                 .lr = 1e-5,
                                 .weight_decay = 0.01,
                                 .grad_scale = 1.0 / static_cast<double>(run.tokens())};
  const MemoryPlan plan = step.plan(batch.inputs, o.recompute);
  run.measure(line, BenchRun::Length::whole, plan, [&](Context& ctx) {
    const ArenaScope staging(ctx.staging);
    step.issue(ctx, {&batch, 1}, options);
    step.read(ctx);
  });
}

namespace {

// Greedy decoding of `batch` equal prompts, one step at a time.
class Decoder {
 public:
  Decoder(const BenchRun& run, Gemma4ForConditionalGeneration& model, int64_t total)
      : model_(model),
        rows_(run.options.batch),
        total_(total),
        next_(static_cast<size_t>(rows_)),
        logits_(Backend::cpu, accumulate_dtype(model.dtype()),
                {rows_, model.config().text.vocab_size}),
        prompt_(run.random_ids(rows_ * run.options.prompt, model.config().text.vocab_size)),
        plan_(model.plan_next_logits(rows_, run.options.prompt, total)) {
    // Later steps look at more keys than the first, with a mask of one byte a key.
    plan_.activations += rows_ * total + 4096;
    plan_.staging += rows_ * total + 4096;
    plan_.scratch += 4096;
    ctx_ = Context::make(run.options.backend, plan_);
  }

  void prefill() {
    const int64_t cols = static_cast<int64_t>(prompt_.size()) / rows_;
    step(prompt_, cols);
  }
  void token() { step(next_, 1); }
  void restart() {
    cache_ = {};
    cache_ = gemma4::GenerationCache(model_.backend(), model_.dtype(), model_.config(), rows_,
                                     total_, static_cast<int64_t>(prompt_.size()) / rows_);
  }
  const MemoryPlan& plan() const { return plan_; }

 private:
  void step(const std::vector<int64_t>& ids, int64_t cols) {
    model_.next_logits(ctx_, {.input_ids = ConstTensor(ids.data(), Dtype::i64, {rows_, cols})},
                       cache_, logits_.get());
    const int64_t vocabulary = logits_->dim(1);
    for (int64_t b = 0; b < rows_; ++b) {
      next_[static_cast<size_t>(b)] =
          gemma4::sample(logits_->as<float>() + b * vocabulary, vocabulary, {}, 0);
    }
  }

  Gemma4ForConditionalGeneration& model_;
  int64_t rows_, total_;
  std::vector<int64_t> next_;
  OwnedTensor logits_;  // on the host
  std::vector<int64_t> prompt_;
  MemoryPlan plan_;
  Context ctx_;
  gemma4::GenerationCache cache_;
};

double seconds_of(const std::function<void()>& work) {
  const double start = bench_seconds();
  work();
  return bench_seconds() - start;
}

}  // namespace

// Reads a prompt, then decodes greedily; a token is timed until its id is known to the host.
void bench_decode(BenchRun& run) {
  const BenchOptions& o = run.options;
  const gemma4::Config config = chosen_layers(run);
  auto model = run.random_model(config);
  const auto rows = static_cast<double>(o.batch);
  Decoder decoder(run, model, o.prompt + kWarmTokens + o.repeat);
  const double all = elements_of(model);
  const double head =
      static_cast<double>(config.text.vocab_size) * static_cast<double>(config.text.hidden_size);

  gemma4::Cost cost = gemma4::forward_cost(config.text, o.batch, o.prompt);
  cost.head /= static_cast<double>(o.prompt);  // of the last position alone
  BenchLine line{.part = "prefill",
                 .shape = shape_of(config.text, o.batch, o.prompt),
                 .flops = cost.forward(),
                 .bytes = (all + head) * run.width(),
                 .tokens = rows * static_cast<double>(o.prompt),
                 .activation_bytes = decoder.plan().activations,
                 .scratch_bytes = decoder.plan().scratch};
  std::vector<double> seconds;
  for (int64_t i = 0; i <= kPrefills; ++i) {
    decoder.restart();
    const double once = seconds_of([&] { decoder.prefill(); });
    if (i > 0) seconds.push_back(once);
  }
  run.add(line, seconds);

  for (int64_t i = 0; i < kWarmTokens; ++i) decoder.token();
  seconds.clear();
  for (int64_t i = 0; i < o.repeat; ++i) seconds.push_back(seconds_of([&] { decoder.token(); }));
  const int64_t middle = o.prompt + kWarmTokens + o.repeat / 2;
  line.part = "token";
  line.shape = shape_of(config.text, o.batch, 1) + " after " + std::to_string(o.prompt);
  line.flops = gemma4::forward_cost(config.text, o.batch, 1, middle).forward();
  line.bytes = (elements_of(model, share_of_experts(config.text, o.batch)) + head) * run.width() +
               cache_bytes(run, config.text, middle);
  line.tokens = rows;
  run.add(line, seconds);
}

}  // namespace lapidary
