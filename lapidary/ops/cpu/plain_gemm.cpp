#include <algorithm>

#include "lapidary/ops/cpu/by_dtype.h"
#include "lapidary/ops/cpu/gemm.h"
#include "lapidary/ops/cpu/gemm_tile.h"
#include "lapidary/ops/cpu/parallel.h"

namespace lapidary::ops::cpu {
namespace {

// to[i, l] = from[i row_step + l column_step] for i < rows, l < columns; `ld` floats a row.
template <class T>
void pack(const T* from, int64_t row_step, int64_t column_step, int64_t rows, int64_t columns,
          float* to, int64_t ld) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t l = 0; l < columns; ++l) {
      to[i * ld + l] = static_cast<float>(from[i * row_step + l * column_step]);
    }
  }
}

template <class T>
void write_tile(const Gemm& g, const float* sum, int64_t i0, int64_t j0, int64_t rows,
                int64_t columns) {
  for (int64_t i = 0; i < rows; ++i) {
    T* c = static_cast<T*>(g.c) + (i0 + i) * g.ldc + j0;
    for (int64_t j = 0; j < columns; ++j) {
      const float s = sum[i * kTileColumns + j];
      c[j] = T(g.accumulate ? static_cast<float>(c[j]) + s : s);
    }
  }
}

template <class T>
void tile(const Gemm& g, int64_t i0, int64_t j0) {
  float a[kTileRows * kTileDepth];
  float b[kTileDepth * kTileColumns];
  float c[kTileRows * kTileColumns] = {};
  const int64_t rows = std::min(kTileRows, g.m - i0);
  const int64_t columns = std::min(kTileColumns, g.n - j0);
  const int64_t a_row = g.trans_a ? 1 : g.lda, a_column = g.trans_a ? g.lda : 1;
  const int64_t b_row = g.trans_b ? 1 : g.ldb, b_column = g.trans_b ? g.ldb : 1;
  std::fill(b, b + kTileDepth * kTileColumns, 0.0F);
  for (int64_t l0 = 0; l0 < g.k; l0 += kTileDepth) {
    const int64_t depth = std::min(kTileDepth, g.k - l0);
    pack(static_cast<const T*>(g.a) + i0 * a_row + l0 * a_column, a_row, a_column, rows, depth, a,
         kTileDepth);
    pack(static_cast<const T*>(g.b) + l0 * b_row + j0 * b_column, b_row, b_column, depth, columns,
         b, kTileColumns);
    gemm_tile(a, b, c, rows, depth);
  }
  if (g.out == Dtype::f32) {
    write_tile<float>(g, c, i0, j0, rows, columns);
  } else {
    write_tile<bf16>(g, c, i0, j0, rows, columns);
  }
}

}  // namespace

void plain_gemm(const Gemm& g) {
  const int64_t row_tiles = (g.m + kTileRows - 1) / kTileRows;
  const int64_t column_tiles = (g.n + kTileColumns - 1) / kTileColumns;
  by_dtype("gemm", g.in, [&]<class T>(T) {
    parallel_for(row_tiles * column_tiles, [&](int64_t i) {
      tile<T>(g, i / column_tiles * kTileRows, i % column_tiles * kTileColumns);
    });
  });
}

}  // namespace lapidary::ops::cpu
