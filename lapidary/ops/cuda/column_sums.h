#pragma once

#include <algorithm>

#include "lapidary/core/context.h"

// Sums over the rows of a matrix in a fixed order: every block of a kernel sums the rows that it
// owns into one row of partial sums, then these are added in order.
namespace lapidary::ops::cuda {

// Two blocks for each multiprocessor of an H100. A constant, so that sums are the same everywhere.
constexpr int64_t kMostPartials = 264;

inline int64_t partial_count(int64_t rows) { return std::min(rows, kMostPartials); }

inline int64_t column_sums_bytes(int64_t rows, int64_t columns) {
  constexpr int64_t kAlignment = 64;
  const int64_t bytes = partial_count(rows) * columns * static_cast<int64_t>(sizeof(float));
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

// total [columns] += the sum over the rows of partial [partials, columns].
void add_partials(Context& ctx, const char* op, const float* partial, int64_t partials,
                  int64_t columns, float* total);

}  // namespace lapidary::ops::cuda
