#include "lapidary/ops/cuda/moe_sort.cuh"

#include "lapidary/ops/cuda/cuda.h"
#include "lapidary/ops/cuda/moe_scratch.h"

namespace lapidary::ops::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kScanThreads = 1024;
constexpr unsigned kWarp = 0xffffffffU;

struct Pair {
  int64_t token;
  int slot;
};
__device__ Pair pair_at(const PairSort& s, unsigned pair) {
  const unsigned token = pair / static_cast<unsigned>(s.top_k);
  return {token, static_cast<int>(pair - token * static_cast<unsigned>(s.top_k))};
}

// The expert of a pair, or -1 when it gets no row.
__device__ int expert_of(const PairSort& s, const Pair& pair) {
  const int expert = s.indices[pair.token * s.index_stride + pair.slot];
  if (expert < 0 || expert >= s.experts) return -1;
  return s.valid == nullptr || s.valid[pair.token] != 0 ? expert : -1;
}

__device__ int warp_inclusive_scan(int x, int lane) {
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const int below = __shfl_up_sync(kWarp, x, distance);
    if (lane >= distance) x += below;
  }
  return x;
}

// places (cleared before) = pairs of each expert in each chunk. Sums of integers: the order of the
// atomics doesn't show.
__global__ void __launch_bounds__(kThreads) count_pairs_kernel(PairSort s, int64_t chunks) {
  const unsigned pair = blockIdx.x * kThreads + threadIdx.x;
  if (pair >= s.tokens * s.top_k) return;
  const int expert = expert_of(s, pair_at(s, pair));
  if (expert >= 0) atomicAdd(s.places + expert * chunks + pair / kSortChunk, 1);
}

// One warp per expert: places = pairs of the expert in the chunks before; counts = all of them.
__global__ void __launch_bounds__(kThreads) scan_chunks_kernel(PairSort s, int64_t chunks) {
  const int64_t expert = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (expert >= s.experts) return;
  int32_t* places = s.places + expert * chunks;
  int before = 0;
  for (int64_t first = 0; first < chunks; first += 32) {
    const int64_t chunk = first + lane;
    const int own = chunk < chunks ? places[chunk] : 0;
    const int sum = warp_inclusive_scan(own, lane);
    if (chunk < chunks) places[chunk] = before + sum - own;
    before += __shfl_sync(kWarp, sum, 31);
  }
  if (lane == 0) s.counts[expert] = before;
}

// One block: where the segments start.
__global__ void __launch_bounds__(kScanThreads) scan_experts_kernel(PairSort s) {
  __shared__ int of_warp[32];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  int start = 0;  // of the first expert of this round
  for (int first = 0; first < s.experts; first += kScanThreads) {
    const int expert = first + static_cast<int>(threadIdx.x);
    const int count = expert < s.experts ? s.counts[expert] : 0;
    const int rows = (count + s.align - 1) / s.align * s.align;
    const int sum = warp_inclusive_scan(rows, lane);
    __syncthreads();  // of_warp of the last round has been read
    if (lane == 31) of_warp[warp] = sum;
    __syncthreads();
    const int warps = warp_inclusive_scan(of_warp[lane], lane);
    const int before = warp == 0 ? 0 : __shfl_sync(kWarp, warps, warp - 1);
    if (expert < s.experts) {
      s.offsets[expert] = start + before + sum - rows;
      if (s.loads != nullptr) s.loads[expert] += count;
    }
    start += __shfl_sync(kWarp, warps, 31);
  }
  if (threadIdx.x == 0) s.offsets[s.experts] = start;
}

// row -1: none.
__device__ void write_pair(const PairSort& s, unsigned pair, int row) {
  const auto [token, slot] = pair_at(s, pair);
  if (s.pair_row != nullptr) s.pair_row[token * s.row_stride + slot] = row;
  if (row < 0) return;
  if (s.row_pair != nullptr) s.row_pair[row] = static_cast<int32_t>(pair);
  if (s.row_token != nullptr) s.row_token[row] = static_cast<int32_t>(token);
  if (s.row_weight != nullptr) s.row_weight[row] = s.weights[token * s.weight_stride + slot];
}

// One warp per chunk, 32 pairs at a time: a pair's row is the expert's next one, after those of
// lower lanes with the same expert.
__global__ void __launch_bounds__(kThreads) place_pairs_kernel(PairSort s, int64_t chunks) {
  constexpr int kRounds = kSortChunk / 32;
  const int64_t chunk = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  const unsigned lane = threadIdx.x % 32;
  if (chunk >= chunks) return;
  const auto first = static_cast<unsigned>(chunk * kSortChunk) + lane;
  const auto pairs = static_cast<unsigned>(s.tokens * s.top_k);
  int experts[kRounds];  // read before the chain of dependent rounds
#pragma unroll
  for (unsigned i = 0; i < kRounds; ++i) {
    const unsigned pair = first + i * 32;
    experts[i] = pair < pairs ? expert_of(s, pair_at(s, pair)) : -1;
  }
#pragma unroll
  for (unsigned i = 0; i < kRounds; ++i) {
    const unsigned pair = first + i * 32;
    const int expert = experts[i];
    const unsigned peers = __match_any_sync(kWarp, expert);
    const int lower = __popc(peers & ((1U << lane) - 1U));
    int32_t* next = s.places + expert * chunks + chunk;  // not read where expert is -1
    const int taken = expert >= 0 ? *next : 0;
    __syncwarp();
    if (expert >= 0 && lower == 0) *next = taken + __popc(peers);
    __syncwarp();
    if (pair < pairs) write_pair(s, pair, expert >= 0 ? s.offsets[expert] + taken + lower : -1);
  }
}

void clear(const char* op, void* memory, int value, int64_t bytes, cudaStream_t stream) {
  if (bytes == 0) return;
  const auto size = static_cast<size_t>(bytes);
  const cudaError_t error = cudaMemsetAsync(memory, value, size, stream);
  if (error != cudaSuccess) fail(op, std::string("CUDA: ") + cudaGetErrorString(error));
}

}  // namespace

void sort_pairs(const char* op, cudaStream_t stream, const PairSort& s) {
  constexpr int kWarps = kThreads / 32;
  const int64_t pairs = s.tokens * s.top_k, chunks = sort_chunks(pairs);
  if (pairs > INT32_MAX) fail(op, "more than 2^31 pairs", "use a smaller micro-batch");
  const auto blocks = [](int64_t n, int64_t each) {
    return static_cast<unsigned>(ceil_div(n, each));
  };
  clear(op, s.places, 0, s.experts * chunks * static_cast<int64_t>(sizeof(int32_t)), stream);
  if (pairs > 0) {
    count_pairs_kernel<<<blocks(pairs, kThreads), kThreads, 0, stream>>>(s, chunks);
    check_launch(op);
  }
  if (s.experts > 0) {
    scan_chunks_kernel<<<blocks(s.experts, kWarps), kThreads, 0, stream>>>(s, chunks);
    check_launch(op);
  }
  scan_experts_kernel<<<1, kScanThreads, 0, stream>>>(s);
  check_launch(op);
  if (pairs == 0) return;
  place_pairs_kernel<<<blocks(chunks, kWarps), kThreads, 0, stream>>>(s, chunks);
  check_launch(op);
}

void moe_sort(Context& ctx, const MoeSortArgs& a) {
  if (a.weights.dtype() != Dtype::f32) fail("moe_sort", "weights are not f32");
  const ArenaScope scope(ctx.scratch);
  const SortScratch scratch(cpu::scratch_block(ctx, moe_sort_scratch_bytes(a)), a);
  clear("moe_sort", a.row_token.data(), 0xff, a.row_token.bytes(), ctx.stream);  // -1
  clear("moe_sort", a.row_weight.data(), 0, a.row_weight.bytes(), ctx.stream);   // 0.0
  sort_pairs("moe_sort", ctx.stream,
             {.indices = data<int32_t>(a.indices),
              .index_stride = a.indices.stride(0),
              .valid = data<uint8_t>(a.token_valid),
              .tokens = a.indices.dim(0),
              .top_k = static_cast<int>(a.indices.dim(1)),
              .experts = static_cast<int>(a.counts.dim(0)),
              .align = static_cast<int>(a.align),
              .places = scratch.places,
              .counts = data<int32_t>(a.counts),
              .offsets = data<int32_t>(a.offsets),
              .loads = data<int64_t>(a.loads),
              .row_pair = nullptr,
              .row_token = data<int32_t>(a.row_token),
              .row_weight = data<float>(a.row_weight),
              .weights = data<float>(a.weights),
              .weight_stride = a.weights.stride(0),
              .pair_row = data<int32_t>(a.pair_row),
              .row_stride = a.pair_row.stride(0)});
}

}  // namespace lapidary::ops::cuda
