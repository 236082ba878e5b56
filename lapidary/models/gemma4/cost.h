#pragma once

#include "lapidary/models/gemma4/config.h"

namespace lapidary::gemma4 {

// Floating-point operations of a forward pass, counted from shapes: two for each multiply-add of a
// product; attention's core (q k^T and p v) over the keys that the mask shows, no others. Norms,
// rotation, softmax and whatever else is not a product count nothing.
struct Cost {
  double projections = 0.0;  // q, k, v, o
  double dense = 0.0;        // the dense MLP
  double router = 0.0;
  double experts = 0.0;    // the top_k chosen of each token
  double per_layer = 0.0;  // products of the per-layer embeddings
  double head = 0.0;
  double sliding_core = 0.0, full_core = 0.0;

  double products() const { return projections + dense + router + experts + per_layer + head; }
  double cores() const { return sliding_core + full_core; }
  double forward() const { return products() + cores(); }
  // Each product has two gradients of its own size; the core's two products become five
  // (q k^T again, dO v^T, p^T dO, dS k, dS^T q). What is recomputed does not count.
  double backward() const { return 2.0 * products() + 2.5 * cores(); }
  double training() const { return forward() + backward(); }
};

// (query, key) pairs that one head of one row sees: queries offset .. offset + queries - 1, each
// with the keys before it and its own, at most `window` of them (0: all).
double visible_pairs(int64_t queries, int64_t window, int64_t offset = 0);

// The core of one attention of one layer, forward.
double core_cost(int64_t heads, int64_t head_dim, double pairs);

// B rows of S new tokens after `offset` cached ones; the head at every position.
Cost forward_cost(const TextConfig& text, int64_t rows, int64_t cols, int64_t offset = 0);

}  // namespace lapidary::gemma4
