#include "lapidary/models/gemma4/cost.h"

#include <algorithm>

namespace lapidary::gemma4 {
namespace {

double real(int64_t n) { return static_cast<double>(n); }

// y = x W^T of `rows` rows.
double product(double rows, int64_t in, int64_t out) { return 2.0 * rows * real(in) * real(out); }

}  // namespace

double visible_pairs(int64_t queries, int64_t window, int64_t offset) {
  if (window <= 0) window = offset + queries;
  // The first `growing` queries see one key more each; the others see the whole window.
  const int64_t growing = std::clamp<int64_t>(window - offset, 0, queries);
  const double first = real(offset + 1), last = real(offset + growing);
  return real(growing) * (first + last) / 2.0 + real(queries - growing) * real(window);
}

double core_cost(int64_t heads, int64_t head_dim, double pairs) {
  return 4.0 * real(heads) * real(head_dim) * pairs;
}

Cost forward_cost(const TextConfig& text, int64_t rows, int64_t cols, int64_t offset) {
  Cost cost;
  const double tokens = real(rows) * real(cols);
  const int64_t hidden = text.hidden_size;
  const int64_t width = text.hidden_size_per_layer_input;
  for (const LayerConfig& layer : text.layers) {
    const int64_t queries = text.num_attention_heads * layer.head_dim;
    const int64_t keys = layer.num_key_value_heads * layer.head_dim;
    cost.projections += 2.0 * product(tokens, hidden, queries);
    if (!layer.kv_shared) {
      cost.projections += product(tokens, hidden, keys) * (layer.k_eq_v ? 1.0 : 2.0);
    }
    cost.dense += 3.0 * product(tokens, hidden, layer.intermediate_size);
    if (text.enable_moe_block) {
      cost.router += product(tokens, hidden, text.num_experts);
      cost.experts += 3.0 * product(tokens * real(text.top_k_experts), hidden,  //
                                    text.moe_intermediate_size);
    }
    // The share of this layer in per_layer_model_projection, its gate and its projection.
    if (width > 0) cost.per_layer += 3.0 * product(tokens, hidden, width);
    const bool full = layer.type == LayerType::full_attention;
    const double pairs = visible_pairs(cols, full ? 0 : text.sliding_window, offset);
    (full ? cost.full_core : cost.sliding_core) +=
        real(rows) * core_cost(text.num_attention_heads, layer.head_dim, pairs);
  }
  cost.head = product(tokens, hidden, text.vocab_size);
  return cost;
}

}  // namespace lapidary::gemma4
