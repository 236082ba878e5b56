#pragma once

#include "lapidary/core/context.h"

namespace lapidary::ops {

// y[t] = scale table[ids[t]].   ids [T] i64   table [V, D]   y [T, D]
// The scale is used as given (the model rounds it to the weight's dtype first); one rounding after.
struct EmbeddingArgs {
  ConstTensor ids;
  ConstTensor table;
  double scale = 1.0;
  Tensor y;
};
void embedding(Context& ctx, const EmbeddingArgs& args);

// dtable[ids[t]] += scale dy[t] for every token with ids[t] != pad_id (-1: no such row).
//   dtable [V, D] in accumulate_dtype
struct EmbeddingBwdArgs {
  ConstTensor ids;
  ConstTensor dy;
  double scale = 1.0;
  int64_t pad_id = -1;
  Tensor dtable;
};
void embedding_bwd(Context& ctx, const EmbeddingBwdArgs& args);

}  // namespace lapidary::ops
