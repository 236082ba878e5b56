#pragma once

#include "lapidary/core/context.h"

namespace lapidary::ops {

// y[t] = scale table[ids[t]].   ids [T] i64   table [V, D]   y [T, D] in the dtype of table or in
// accumulate_dtype.
// The scale is used as given (the model rounds it to the weight's dtype first); one rounding after.
struct EmbeddingArgs {
  ConstTensor ids;
  ConstTensor table;
  double scale = 1.0;
  Tensor y;
};
void embedding(Context& ctx, const EmbeddingArgs& args);

// dtable[ids[t]] += scale dy[t] for every token with ids[t] != skip_id (which need not be a row).
//   dtable [V, D] in accumulate_dtype. Errors: other ids outside the table (on a GPU, which cannot
//   report them, they are skipped).
struct EmbeddingBwdArgs {
  ConstTensor ids;
  ConstTensor dy;
  double scale = 1.0;
  int64_t skip_id = -1;
  Tensor dtable;
};
void embedding_bwd(Context& ctx, const EmbeddingBwdArgs& args);

}  // namespace lapidary::ops
