#pragma once

#include <cstdint>

namespace lapidary::ops::cpu {

constexpr int64_t kTileRows = 64;
constexpr int64_t kTileColumns = 64;
constexpr int64_t kTileDepth = 128;

// c += a b for packed float tiles: a [rows, kTileDepth], b [kTileDepth, kTileColumns],
// c [rows, kTileColumns]; the first `depth` products are summed.
void gemm_tile(const float* a, const float* b, float* c, int64_t rows, int64_t depth);

}  // namespace lapidary::ops::cpu
