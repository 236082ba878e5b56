#include "lapidary/models/gemma4/generation.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "lapidary/core/error.h"
#include "lapidary/core/rng.h"

namespace lapidary::gemma4 {
namespace {

// One step of all rows: ids [B, S] after `mask.size() / B - S` tokens in the cache.
class Stepper {
 public:
  Stepper(Gemma4ForConditionalGeneration& model, int64_t rows, int64_t prompt, int64_t total)
      : model_(model),
        rows_(rows),
        cache_(model.backend(), model.dtype(), model.config(), rows, total, prompt),
        logits_(Backend::cpu, accumulate_dtype(model.dtype()),
                {rows, model.config().text.vocab_size}) {
    const MemoryPlan plan = model.plan_next_logits(rows, prompt, total);
    // The first step is the widest; later ones look at more keys, whose scratch is bounded by
    // tiles.
    ctx_ = Context::make(model.backend(), {.activations = plan.activations + rows * total + 4096,
                                           .scratch = plan.scratch + 4096,
                                           .staging = plan.staging + rows * total + 4096});
  }

  // mask [B, cached + S], 1 = real token.
  const Tensor& run(const std::vector<int64_t>& ids, const std::vector<int64_t>& positions,
                    const std::vector<int64_t>& mask) {
    const auto cols = static_cast<int64_t>(ids.size()) / rows_;
    const auto seen = static_cast<int64_t>(mask.size()) / rows_;
    const bool padded = std::find(mask.begin(), mask.end(), 0) != mask.end();
    TextInputs inputs{.input_ids = ConstTensor(ids.data(), Dtype::i64, {rows_, cols}),
                      .position_ids = ConstTensor(positions.data(), Dtype::i64, {rows_, cols})};
    if (padded) inputs.attention_mask = ConstTensor(mask.data(), Dtype::i64, {rows_, seen});
    model_.next_logits(ctx_, inputs, cache_, logits_.get());
    return logits_.get();
  }

 private:
  Gemma4ForConditionalGeneration& model_;
  int64_t rows_;
  GenerationCache cache_;
  OwnedTensor logits_;
  Context ctx_;
};

std::vector<float> row_of(const Tensor& logits, int64_t row) {
  std::vector<float> out(static_cast<size_t>(logits.dim(1)));
  for (int64_t i = 0; i < logits.dim(1); ++i) {
    const int64_t at = row * logits.dim(1) + i;
    out[static_cast<size_t>(i)] = logits.dtype() == Dtype::f64
                                      ? static_cast<float>(logits.as<double>()[at])
                                      : logits.as<float>()[at];
  }
  return out;
}

bool stops(const GenerationOptions& options, int64_t id) {
  return std::find(options.stop_ids.begin(), options.stop_ids.end(), id) != options.stop_ids.end();
}

using Rows = std::vector<std::vector<int64_t>>;

// Left-padded ids, mask and positions of the prompts.
struct Prefill {
  std::vector<int64_t> ids, positions, mask;
  int64_t cols = 0;

  Prefill(const Rows& prompts, int64_t pad) {
    for (const auto& prompt : prompts) {
      if (prompt.empty()) fail("generate", "the prompt is empty", "give at least one token");
      cols = std::max(cols, static_cast<int64_t>(prompt.size()));
    }
    for (const auto& prompt : prompts) {
      const int64_t missing = cols - static_cast<int64_t>(prompt.size());
      for (int64_t s = 0; s < cols; ++s) {
        const bool real = s >= missing;
        ids.push_back(real ? prompt[static_cast<size_t>(s - missing)] : pad);
        mask.push_back(real ? 1 : 0);
        positions.push_back(std::max<int64_t>(s - missing, 0));
      }
    }
  }
};

Rows run(Gemma4ForConditionalGeneration& model, const Rows& prompts,
         const GenerationOptions& options, const std::function<bool(int64_t)>& on_token) {
  const auto rows = static_cast<int64_t>(prompts.size());
  const Prefill first(prompts, model.config().text.pad_token_id.value_or(0));
  const int64_t total = first.cols + std::max<int64_t>(options.max_new_tokens, 0);
  Stepper stepper(model, rows, first.cols, total);
  std::vector<int64_t> ids = first.ids, positions = first.positions;
  Rows masks(prompts.size());
  for (int64_t b = 0; b < rows; ++b) {
    masks[static_cast<size_t>(b)].assign(first.mask.begin() + b * first.cols,
                                         first.mask.begin() + (b + 1) * first.cols);
  }
  Rows out(prompts.size());
  std::vector<bool> done(prompts.size(), false);
  for (int64_t step = 0; step < options.max_new_tokens; ++step) {
    std::vector<int64_t> mask;
    for (const auto& m : masks) mask.insert(mask.end(), m.begin(), m.end());
    const Tensor& logits = stepper.run(ids, positions, mask);
    const auto cols = static_cast<int64_t>(ids.size()) / rows;
    std::vector<int64_t> next(prompts.size()), at(prompts.size());
    for (size_t b = 0; b < prompts.size(); ++b) {
      const auto row = static_cast<int64_t>(b);
      const std::vector<float> values = row_of(logits, row);
      const auto stream = static_cast<uint64_t>(step * rows + row);
      int64_t id = sample(values.data(), logits.dim(1), options, stream);
      // Ranks run in step, and their logits may differ in the last bit.
      model.groups().data().broadcast(Tensor(&id, Dtype::i64, {1}), 0);
      done[b] = done[b] || stops(options, id);
      if (!done[b]) {
        out[b].push_back(id);
        if (on_token && !on_token(id)) done[b] = true;
      }
      next[b] = id;
      at[b] = positions[static_cast<size_t>((row + 1) * cols - 1)] + 1;
      masks[b].push_back(1);
    }
    if (std::all_of(done.begin(), done.end(), [](bool d) { return d; })) break;
    ids = next;
    positions = at;
  }
  return out;
}

}  // namespace

int64_t sample(const float* logits, int64_t vocab_size, const GenerationOptions& options,
               uint64_t step) {
  if (options.temperature <= 0.0) {
    return std::max_element(logits, logits + vocab_size) - logits;  // the first of equals
  }
  std::vector<int64_t> order(static_cast<size_t>(vocab_size));
  std::iota(order.begin(), order.end(), 0);
  const auto likelier = [&](int64_t a, int64_t b) {
    return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  };
  const int64_t kept = options.top_k > 0 ? std::min(options.top_k, vocab_size) : vocab_size;
  std::partial_sort(order.begin(), order.begin() + kept, order.end(), likelier);
  order.resize(static_cast<size_t>(kept));
  std::vector<double> weight;
  double sum = 0.0;
  for (const int64_t id : order) {
    const double z = static_cast<double>(logits[id] - logits[order.front()]);
    weight.push_back(std::exp(z / options.temperature));
    sum += weight.back();
  }
  if (options.top_p < 1.0) {
    double mass = 0.0;
    size_t count = 0;
    while (count < weight.size() && mass < options.top_p * sum) mass += weight[count++];
    weight.resize(std::max<size_t>(count, 1));
    sum = std::accumulate(weight.begin(), weight.end(), 0.0);
  }
  double point = Rng(options.seed, step).uniform() * sum;
  for (size_t i = 0; i < weight.size(); ++i) {
    point -= weight[i];
    if (point < 0.0) return order[i];
  }
  return order[weight.size() - 1];
}

std::vector<int64_t> generate(Gemma4ForConditionalGeneration& model,
                              const std::vector<int64_t>& prompt, const GenerationOptions& options,
                              const std::function<bool(int64_t)>& on_token) {
  return run(model, {prompt}, options, on_token).front();
}

std::vector<std::vector<int64_t>> generate_batch(Gemma4ForConditionalGeneration& model,
                                                 const Rows& prompts,
                                                 const GenerationOptions& options) {
  return run(model, prompts, options, {});
}

}  // namespace lapidary::gemma4
