#include "lapidary/ops/cuda/loss_rows.cuh"

#include <cooperative_groups.h>

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <utility>

namespace lapidary::ops::cuda {
namespace {

constexpr int kVectors = 4;  // 16-byte reads of a thread per tile
constexpr float kLowest = -INFINITY;

// The `kThreads` x 16 logits of a row from `base` on, as one thread holds them: values[4 v + e] is
// logit at(base, v) + e of a row of n.
template <int kThreads>
struct Tile {
  static constexpr int kLogits = kThreads * kVectors * 4;
  float values[kVectors * 4];

  __device__ static int64_t at(int64_t base, int v) {
    return base + (v * kThreads + static_cast<int>(threadIdx.x)) * 4;
  }
  // whole: the row does not end within the tile. What lies beyond its end is 0.
  template <bool whole>
  __device__ void load(const float* row, int64_t base, int64_t n) {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int64_t j = at(base, v);
      float4 four = {};
      if (whole || j + 4 <= n) {
        four = *reinterpret_cast<const float4*>(row + j);
      } else if (j < n) {
        four.x = row[j];
        if (j + 1 < n) four.y = row[j + 1];
        if (j + 2 < n) four.z = row[j + 2];
      }
      values[4 * v] = four.x;
      values[4 * v + 1] = four.y;
      values[4 * v + 2] = four.z;
      values[4 * v + 3] = four.w;
    }
  }
  __device__ void set(int64_t base, int64_t index, float value) {
    if (index < base || index >= base + kLogits) return;
#pragma unroll
    for (int i = 0; i < kVectors * 4; ++i) {
      if (at(base, i / 4) + i % 4 == index) values[i] = value;
    }
  }
  template <class T>
  __device__ void store(T* row, int64_t base, int64_t n) const {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) store_four(row, at(base, v), n, values + 4 * v);
  }

 private:
  __device__ static void store_four(float* row, int64_t j, int64_t n, const float* d) {
    if (j + 4 <= n) {
      *reinterpret_cast<float4*>(row + j) = {d[0], d[1], d[2], d[3]};
      return;
    }
#pragma unroll
    for (int e = 0; e < 3; ++e) {
      if (j + e < n) row[j + e] = d[e];
    }
  }
  __device__ static void store_four(device_bf16* row, int64_t j, int64_t n, const float* d) {
    if (j + 4 <= n) {
      struct alignas(8) {
        __nv_bfloat162 low, high;
      } const four{__floats2bfloat162_rn(d[0], d[1]), __floats2bfloat162_rn(d[2], d[3])};
      *reinterpret_cast<uint2*>(row + j) = *reinterpret_cast<const uint2*>(&four);
      return;
    }
#pragma unroll
    for (int e = 0; e < 3; ++e) {
      if (j + e < n) row[j + e] = from_float<device_bf16>(d[e]);
    }
  }
};

// f(base, whole) for every tile of a row of n: `whole` is std::true_type but for a cut last one.
template <int kLogits, class F>
__device__ void for_each_tile(int64_t n, F&& f) {
  int64_t base = 0;
  for (; base + kLogits <= n; base += kLogits) f(base, std::true_type{});
  if (base < n) f(base, std::false_type{});
}

// The largest of some values and the sum of exp(value - largest).
struct Softmax {
  float top = kLowest, sum = 0.0F;

  // A tile of logits, which become capped ones.
  template <bool capped, bool whole, int kThreads>
  __device__ void add(Tile<kThreads>& tile, int64_t base, int64_t n, const Rows& p) {
    const auto inside = [&](int i) { return whole || tile.at(base, i / 4) + i % 4 < n; };
    float highest = top;
#pragma unroll
    for (int i = 0; i < kVectors * 4; ++i) {
      float& value = tile.values[i];
      value = cap_of<capped>(value, p.cap, p.inverse_cap).z;
      if (inside(i)) highest = fmaxf(highest, value);
    }
    if (highest > top) sum *= expf(top - highest);
    top = highest;
    float part = 0.0F;
#pragma unroll
    for (int i = 0; i < kVectors * 4; ++i) {
      if (inside(i)) part += expf(tile.values[i] - top);
    }
    sum += part;
  }
};

// Sums as seen from one maximum: a block's, then a row's.
struct WideSoftmax {
  float top;
  double sum;
};

// What the threads of a block found, in every thread; a fixed tree.
__device__ WideSoftmax of_block(const Softmax& own) {
  __shared__ float of_warp[32];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int warps = static_cast<int>(blockDim.x) / 32;
  const float highest = warp_max(own.top);
  if (lane == 0) of_warp[warp] = highest;
  __syncthreads();
  const float top = warp_max(lane < warps ? of_warp[lane] : kLowest);
  // A thread without logits has sum 0 and top -inf; so may a whole block, where 0 must not turn
  // NaN.
  const float part = own.sum == 0.0F ? 0.0F : own.sum * expf(own.top - top);
  return {top, block_sum(static_cast<double>(part))};
}

// What one row adds to the loss, and its gradient at the target.
struct Token {
  double loss;
  float at_target;
};
template <bool capped>
__device__ Token token_of(float logit, const WideSoftmax& row, const Rows& p) {
  const Capped target = cap_of<capped>(logit, p.cap, p.inverse_cap);
  const double below = static_cast<double>(row.top) - static_cast<double>(target.z);
  // The cap would hide an infinite logit.
  const double loss = isfinite(logit) ? below + log(row.sum) : static_cast<double>(NAN);
  // exp(-loss) - 1 without cancellation where the target is nearly certain.
  const double slope = p.grad_scale * static_cast<double>(target.slope);
  return {loss, static_cast<float>(slope * expm1(-loss))};
}

// A row without a target to count: `threads` of them write, this is number `thread`.
template <class T>
__device__ void skip_row(float* row, int64_t index, int thread, int threads, const Rows& p) {
  if (thread == 0) {
    p.losses[index] = p.targets[index] == kIgnored ? 0.0 : static_cast<double>(NAN);
  }
  if (!p.gradient) return;
  // Whole 16 bytes: a row has room for a multiple of them.
  const int64_t pieces = (p.vocabulary * static_cast<int64_t>(sizeof(T)) + 15) / 16;
  for (int64_t j = thread; j < pieces; j += threads) reinterpret_cast<uint4*>(row)[j] = {};
}

constexpr int kNarrow = 512;

// A block per row, which is read twice. As bf16, dl is half as long as the logits that it replaces:
// tile k goes to where tile k / 2 was, which hits nothing unread once all threads have read tile k.
template <class T, bool capped, bool gradient>
__global__ void __launch_bounds__(kNarrow, 2) rows_in_two_passes(const Rows p) {
  using RowTile = Tile<kNarrow>;
  const int64_t n = p.vocabulary, target = p.targets[blockIdx.x];
  float* row = p.logits + blockIdx.x * p.stride;
  if (target < 0 || target >= n) {
    return skip_row<T>(row, blockIdx.x, static_cast<int>(threadIdx.x), kNarrow, p);
  }
  const float logit = row[target];
  Softmax own;
  for_each_tile<RowTile::kLogits>(n, [&](int64_t base, auto whole) {
    RowTile tile;
    tile.template load<whole>(row, base, n);
    own.add<capped, whole>(tile, base, n, p);
  });
  const WideSoftmax all = of_block(own);
  __shared__ float at_target;
  if (threadIdx.x == 0) {
    const Token token = token_of<capped>(logit, all, p);
    p.losses[blockIdx.x] = token.loss;
    at_target = token.at_target;
  }
  if (!gradient) return;
  __syncthreads();
  const auto scale = static_cast<float>(p.grad_scale / all.sum);
  for_each_tile<RowTile::kLogits>(n, [&](int64_t base, auto whole) {
    RowTile tile;
    tile.template load<whole>(row, base, n);
#pragma unroll
    for (float& value : tile.values) {
      const Capped c = cap_of<capped>(value, p.cap, p.inverse_cap);
      value = scale * expf(c.z - all.top) * c.slope;
    }
    tile.set(base, target, at_target);
    if constexpr (sizeof(T) < sizeof(float)) __syncthreads();
    tile.store(reinterpret_cast<T*>(row), base, n);
  });
}

constexpr int kCluster = 8, kWide = 1024;
constexpr int64_t kMaxSegment = 56 * 1024;  // logits: 224 KiB of shared memory
constexpr int64_t kMinShared = 32 * 1024;   // shorter rows are not worth a cluster

int64_t segment_of(int64_t vocabulary) { return ceil_div(ceil_div(vocabulary, kCluster), 4) * 4; }

// A cluster of blocks per row: each keeps a segment of it, capped, in its shared memory, so that
// the row is read once and its cap is taken once. No logit is unread when the first dl is written.
template <class T, bool capped>
__global__ void __cluster_dims__(kCluster, 1, 1) __launch_bounds__(kWide, 1)
    rows_in_shared_memory(const Rows p, int64_t segment) {
  using RowTile = Tile<kWide>;
  extern __shared__ float4 dynamic[];
  float* z = reinterpret_cast<float*>(dynamic);
  __shared__ WideSoftmax own_part, parts[kCluster];
  __shared__ float at_target;
  const auto cluster = cooperative_groups::this_cluster();
  const int rank = static_cast<int>(cluster.block_rank()), thread = static_cast<int>(threadIdx.x);
  const int64_t index = blockIdx.x / kCluster, target = p.targets[index];
  float* row = p.logits + index * p.stride;
  if (target < 0 || target >= p.vocabulary) {
    return skip_row<T>(row, index, rank * kWide + thread, kCluster * kWide, p);
  }
  const float logit = row[target];
  const int64_t first = rank * segment;
  const int64_t left = p.vocabulary - first, n = left < 0 ? 0 : (left < segment ? left : segment);
  Softmax own;
  for_each_tile<RowTile::kLogits>(n, [&](int64_t base, auto whole) {
    RowTile tile;
    tile.template load<whole>(row + first, base, n);
    own.add<capped, whole>(tile, base, n, p);
    tile.store(z, base, n);  // read back by this thread alone
  });
  const WideSoftmax block = of_block(own);
  if (thread == 0) own_part = block;
  cluster.sync();
  if (thread < kCluster) parts[thread] = *cluster.map_shared_rank(&own_part, thread);
  __syncthreads();
  // No block may end while another reads from it.
  auto arrived = cluster.barrier_arrive();
  WideSoftmax all{kLowest, 0.0};
  for (const WideSoftmax& part : parts) all.top = fmaxf(all.top, part.top);
  for (const WideSoftmax& part : parts) {
    if (part.sum != 0.0) all.sum += part.sum * static_cast<double>(expf(part.top - all.top));
  }
  if (thread == 0) {
    const Token token = token_of<capped>(logit, all, p);
    if (rank == 0) p.losses[index] = token.loss;
    at_target = token.at_target;
  }
  __syncthreads();
  const auto scale = static_cast<float>(p.grad_scale / all.sum);
  for_each_tile<RowTile::kLogits>(n, [&](int64_t base, auto whole) {
    RowTile tile;
    tile.template load<whole>(z, base, n);
#pragma unroll
    for (float& value : tile.values) {
      const float ratio = value * p.inverse_cap;  // 0 without a cap
      value = scale * expf(value - all.top) * fmaf(-ratio, ratio, 1.0F);
    }
    tile.set(base, target - first, at_target);
    tile.store(reinterpret_cast<T*>(row) + first, base, n);
  });
  cluster.barrier_wait(std::move(arrived));
}

template <class T, bool capped>
void launch(Context& ctx, const Rows& p) {
  const auto rows = static_cast<unsigned>(p.count);
  const int64_t segment = segment_of(p.vocabulary);
  if (!p.gradient) {
    rows_in_two_passes<float, capped, false><<<rows, kNarrow, 0, ctx.stream>>>(p);
  } else if (p.vocabulary < kMinShared || segment > kMaxSegment) {
    rows_in_two_passes<T, capped, true><<<rows, kNarrow, 0, ctx.stream>>>(p);
  } else {
    const auto kernel = rows_in_shared_memory<T, capped>;
    const int bytes = static_cast<int>(segment * static_cast<int64_t>(sizeof(float)));
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    kernel<<<rows * kCluster, kWide, static_cast<size_t>(bytes), ctx.stream>>>(p, segment);
  }
  check_launch("linear_cross_entropy");
}

}  // namespace

void loss_rows(Context& ctx, const Rows& p) {
  by_dtype("linear_cross_entropy", p.dtype, [&]<class T>(T) {
    if (p.cap == 0.0F) {
      launch<T, false>(ctx, p);
    } else {
      launch<T, true>(ctx, p);
    }
  });
}

}  // namespace lapidary::ops::cuda
