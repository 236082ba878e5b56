#pragma once

#include "lapidary/core/context.h"

namespace lapidary::ops {

// h = [row_weight] g(gate) up with g(x) = x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))).
//   gate, up, h [N, I] (any row stride)   row_weight [N] in accumulate_dtype, undefined = 1
// Computed in accumulate_dtype, rounded once.
struct GegluArgs {
  ConstTensor gate;
  ConstTensor up;
  ConstTensor row_weight = {};
  Tensor h;
};
void geglu(Context& ctx, const GegluArgs& args);

// With w = row_weight (or 1):  dgate = w dh up g'(gate)    dup = w dh g(gate)
//   drow_weight = sum_I dh g(gate) up      (all written; drow_weight [N], may be undefined)
// dgate, dup may alias gate, up; dup may be added to instead (accumulate_dup: per-layer
// embeddings).
struct GegluBwdArgs {
  ConstTensor dh;
  ConstTensor gate;
  ConstTensor up;
  ConstTensor row_weight = {};
  Tensor dgate;
  Tensor dup;
  bool accumulate_dup = false;
  Tensor drow_weight = {};
};
void geglu_bwd(Context& ctx, const GegluBwdArgs& args);

}  // namespace lapidary::ops
