#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "lapidary/ops/cpu/parallel.h"

namespace lapidary::ops::cpu {

// (mean square + eps)^-1/2 from the sum of n squares, formed in double.
inline float rms_reciprocal(float sum_of_squares, int64_t n, double eps) {
  const double mean = static_cast<double>(sum_of_squares) / static_cast<double>(n);
  return static_cast<float>(1.0 / std::sqrt(mean + eps));
}

// Sums over rows that come out the same on any number of threads: chunks of kChunkRows rows are
// summed each for itself, and then the chunks in order.
constexpr int64_t kChunkRows = 64;

inline int64_t column_sums_bytes(int64_t rows, int64_t columns) {
  return (rows + kChunkRows - 1) / kChunkRows * columns * static_cast<int64_t>(sizeof(float));
}

// total[j] += the sum over the chunks of partial[chunk, j], in order.
inline void add_chunks(const float* partial, int64_t chunks, int64_t columns, float* total) {
  parallel_blocks(columns, 256, [&](int64_t first, int64_t last) {
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const float* row = partial + chunk * columns;
      for (int64_t j = first; j < last; ++j) total[j] += row[j];
    }
  });
}

// f(row, sums) for every row, where f adds the row's part to sums [columns] (null when total is);
// then total [columns] += all of them. partial: column_sums_bytes() of memory.
template <class F>
void column_sums(int64_t rows, int64_t columns, float* partial, float* total, F&& f) {
  const int64_t chunks = (rows + kChunkRows - 1) / kChunkRows;
  parallel_for(chunks, [&](int64_t chunk) {
    float* sums = total == nullptr ? nullptr : partial + chunk * columns;
    if (sums != nullptr) std::memset(sums, 0, static_cast<size_t>(columns) * sizeof(float));
    const int64_t last = std::min(rows, (chunk + 1) * kChunkRows);
    for (int64_t i = chunk * kChunkRows; i < last; ++i) f(i, sums);
  });
  if (total != nullptr) add_chunks(partial, chunks, columns, total);
}

}  // namespace lapidary::ops::cpu
