#pragma once

#include "lapidary/ops/cuda/device.cuh"

namespace lapidary::ops::cuda {

// A stable sort of (token, slot) pairs by expert: rows of an expert are consecutive, from a
// multiple of `align` on, in the order of the pairs. Pairs of invalid tokens and of experts out of
// range get no row. Null outputs from `loads` on are left out; rows of gaps are not written.
struct PairSort {
  const int32_t* indices;  // [T, K]
  int64_t index_stride;
  const uint8_t* valid;  // [T] or null
  int64_t tokens;
  int top_k, experts, align;
  int32_t* places;   // scratch [E, sort_chunks(T K)]
  int32_t* counts;   // [E]
  int32_t* offsets;  // [E + 1]
  int64_t* loads;    // [E], += counts
  int32_t* row_pair;
  int32_t* row_token;
  float* row_weight;  // weights[row_pair]
  const float* weights;
  int64_t weight_stride;
  int32_t* pair_row;  // [T, K]; -1: no row
  int64_t row_stride;
};
void sort_pairs(const char* op, cudaStream_t stream, const PairSort& sort);

}  // namespace lapidary::ops::cuda
