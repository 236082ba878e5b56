#pragma once

#include <algorithm>

#include "lapidary/core/tensor.h"
#include "lapidary/ops/cpu/parallel.h"

namespace lapidary::ops::cpu {

constexpr int64_t kPiece = 16384;  // elements of one share of elementwise work

template <class... Tensors>
bool all_contiguous(const Tensors&... t) {
  return (t.contiguous() && ...);
}

// Elements before row `row` of a rank-2 tensor; a flat tensor is one row.
inline int64_t row_offset(const ConstTensor& t, bool flat, int64_t row) {
  return flat ? 0 : row * t.stride(0);
}

// f(row, column, count) in parallel over the elements of t in pieces of at most kPiece. flat: all
// the tensors of the operation are contiguous, and t counts as one row of numel() elements;
// otherwise t has rank 2.
template <class F>
void for_pieces(const ConstTensor& t, bool flat, F&& f) {
  const int64_t rows = flat ? 1 : t.dim(0);
  const int64_t columns = flat ? t.numel() : t.dim(1);
  const int64_t pieces = (columns + kPiece - 1) / kPiece;
  parallel_for(rows * pieces, [&](int64_t i) {
    const int64_t column = i % pieces * kPiece;
    f(i / pieces, column, std::min(kPiece, columns - column));
  });
}

}  // namespace lapidary::ops::cpu
