#pragma once

#include <string>

#include "lapidary/core/context.h"

namespace lapidary::nn {

// What backward finds and what it computes again. Gradients are bitwise equal under all three.
//   none   every activation is kept
//   light  norm outputs (queries, keys and values among them) and gated products are computed again
//   block  only the input of each decoder layer is kept; its forward runs again
// Routing, and keys and values that other layers read, are kept under every policy.
enum class Recompute { none, light, block };

Recompute parse_recompute(const std::string& text);  // Error unless none, light or block
const char* name_of(Recompute policy);

// Memory for an activation that `light` does not keep.
inline Tensor alloc_light(Context& ctx, Recompute policy, Dtype dtype, const Shape& shape) {
  return (policy == Recompute::light ? ctx.scratch : ctx.activations).alloc(dtype, shape);
}
// What to remember of such an activation: nothing when it is computed again.
inline Tensor keep_light(Recompute policy, const Tensor& t) {
  return policy == Recompute::light ? Tensor() : t;
}

}  // namespace lapidary::nn
