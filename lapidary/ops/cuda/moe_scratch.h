#pragma once

#include "lapidary/ops/cpu/scratch.h"
#include "lapidary/ops/moe.h"

// Layouts of the scratch memory of the router and of the sort, for the plan and for the kernels.
namespace lapidary::ops::cuda {

constexpr int64_t kSortChunk = 256;  // pairs that one warp places, in their order

inline int64_t sort_chunks(int64_t pairs) { return (pairs + kSortChunk - 1) / kSortChunk; }

struct SortScratch {
  int32_t* places;  // [E, chunks]: pairs of a chunk, then of the chunks before it
  int64_t bytes;
  SortScratch(void* base, const MoeSortArgs& a) {
    cpu::Carver carver(base);
    places = carver.take<int32_t>(a.counts.dim(0) * sort_chunks(a.indices.numel()));
    bytes = carver.bytes();
  }
};

struct RouterScratch {
  float* logits;  // [T, E]
  int64_t bytes;
  RouterScratch(void* base, const RouterArgs& a) {
    cpu::Carver carver(base);
    logits = carver.take<float>(a.u.dim(0) * a.proj.dim(0));
    bytes = carver.bytes();
  }
};

// What the gradients of parameters need is absent where all of them are frozen.
struct RouterBwdScratch {
  float* dlogits;      // [T, K] of the chosen experts, times H^-1/2
  float* z_weights;    // [T, K] the same, times rstd
  float* dscales;      // [T, K] dw share
  int32_t* places;     // [E, chunks]
  int32_t* counts;     // [E]
  int32_t* offsets;    // [E + 1] pairs sorted by expert
  int32_t* row_pair;   // [T K]
  int32_t* row_token;  // [T K]
  float* row_weight;   // [T K] z_weights
  float* sums;         // [E, H] sum of row_weight u[row_token] over the rows of an expert
  int64_t bytes;
  RouterBwdScratch(void* base, const RouterBwdArgs& a) {
    cpu::Carver carver(base);
    const int64_t experts = a.proj.dim(0), pairs = a.indices.numel();
    const int64_t sorted = sorts(a) ? 1 : 0, scaled = a.dscale.defined() ? 1 : 0;
    dlogits = carver.take<float>(pairs);
    z_weights = carver.take<float>(sorted * pairs);
    dscales = carver.take<float>(sorted * pairs);
    places = carver.take<int32_t>(sorted * experts * sort_chunks(pairs));
    counts = carver.take<int32_t>(sorted * experts);
    offsets = carver.take<int32_t>(sorted * (experts + 1));
    row_pair = carver.take<int32_t>(sorted * pairs);
    row_token = carver.take<int32_t>(sorted * pairs);
    row_weight = carver.take<float>(sorted * pairs);
    sums = carver.take<float>(scaled * experts * a.proj.dim(1));
    bytes = carver.bytes();
  }
  static bool sorts(const RouterBwdArgs& a) {
    return a.dscale.defined() || a.dproj.defined() || a.dper_expert_scale.defined();
  }
};

}  // namespace lapidary::ops::cuda
