#pragma once

#include "lapidary/ops/loss.h"
#include "lapidary/ops/matmul.h"

namespace lapidary::ops::cuda {

// How linear_cross_entropy cuts its tokens and what it takes from ctx.scratch. Few, large chunks:
// each of them reads and writes the whole of dw.
struct LossPlan {
  int64_t chunk = 0;         // tokens
  int64_t stride = 0;        // floats from one row of logits to the next: rows start at 16 bytes
  bool copies_rows = false;  // x is copied, with zeros where a token does not count: for dw

  static LossPlan of(const LinearCrossEntropyArgs& a);
};

// The products of tokens [first, first + count). logits: [count, V] f32, where dl in the dtype of
// x comes to lie later, each row from where its logits began; rows: the copy of x.
struct ChunkProducts {
  MatmulArgs logits;
  MatmulArgs dx;  // where a.dx and a.dw are defined
  MatmulArgs dw;

  static ChunkProducts of(const LinearCrossEntropyArgs& a, const LossPlan& plan, int64_t first,
                          int64_t count, void* logits, void* rows);
};

}  // namespace lapidary::ops::cuda
