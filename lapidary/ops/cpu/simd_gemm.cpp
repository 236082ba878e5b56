#include "lapidary/ops/cpu/gemm_tile.h"
#include "lapidary/ops/cpu/simd.h"

namespace lapidary::ops::cpu {

LAPIDARY_CLONES void gemm_tile(const float* a, const float* b, float* c, int64_t rows,
                               int64_t depth) {
  for (int64_t i = 0; i < rows; ++i) {
    float sum[kTileColumns];
    for (int64_t j = 0; j < kTileColumns; ++j) sum[j] = c[i * kTileColumns + j];
    for (int64_t l = 0; l < depth; ++l) {
      const float x = a[i * kTileDepth + l];
      const float* row = b + l * kTileColumns;
      for (int64_t j = 0; j < kTileColumns; ++j) sum[j] += x * row[j];
    }
    for (int64_t j = 0; j < kTileColumns; ++j) c[i * kTileColumns + j] = sum[j];
  }
}

}  // namespace lapidary::ops::cpu
