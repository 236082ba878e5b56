#include <algorithm>
#include <cmath>

#include "lapidary/ops/cuda/cuda.h"
#include "lapidary/ops/cuda/device.cuh"
#include "lapidary/ops/cuda/plan_loss.h"

namespace lapidary::ops::cuda {
namespace {

constexpr int64_t kIgnored = -100;
constexpr int kThreads = 512;
constexpr int kVectors = 4;                     // 16-byte reads of a thread per tile
constexpr int kTile = kThreads * kVectors * 4;  // logits of a row that a block takes at once
constexpr float kLowest = -INFINITY;

// z = cap tanh(l / cap), with what its derivative 1 - tanh^2 needs.
struct Capped {
  float z, slope;
};
template <bool capped>
__device__ Capped cap_of(float logit, float cap, float inverse_cap) {
  if constexpr (!capped) return {logit, 1.0F};
  const float t = tanhf(logit * inverse_cap);
  return {cap * t, fmaf(-t, t, 1.0F)};
}

struct Rows {
  float* logits;
  int64_t stride, vocabulary;
  const int64_t* targets;  // one per row
  double* losses;
  float cap, inverse_cap;
  double grad_scale;
};

// The tile of a row from `base` on, as the thread holds it: element 4 v + e of its values is logit
// base + (v kThreads + thread) 4 + e.
struct Tile {
  float values[kVectors * 4];

  __device__ static int64_t at(int64_t base, int v) {
    return base + int64_t{v * kThreads + static_cast<int>(threadIdx.x)} * 4;
  }
  // whole: the row does not end within the tile. What lies beyond its end is left at 0.
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
};

// The largest of some values and the sum of exp(value - largest).
struct Softmax {
  float top = kLowest, sum = 0.0F;

  template <bool capped, bool whole>
  __device__ void add(const float* row, int64_t base, const Rows& p) {
    Tile tile;
    tile.load<whole>(row, base, p.vocabulary);
    float highest = top;
#pragma unroll
    for (int i = 0; i < kVectors * 4; ++i) {
      float& value = tile.values[i];
      value = cap_of<capped>(value, p.cap, p.inverse_cap).z;
      if (whole || Tile::at(base, i / 4) + i % 4 < p.vocabulary) highest = fmaxf(highest, value);
    }
    if (highest > top) sum *= expf(top - highest);
    top = highest;
    float part = 0.0F;
#pragma unroll
    for (int i = 0; i < kVectors * 4; ++i) {
      if (whole || Tile::at(base, i / 4) + i % 4 < p.vocabulary) part += expf(tile.values[i] - top);
    }
    sum += part;
  }
};

__device__ float block_max(float x) {
  __shared__ float of_warp[32];
  x = warp_max(x);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  __syncthreads();
  if (lane == 0) of_warp[warp] = x;
  __syncthreads();
  return warp_max(lane < kThreads / 32 ? of_warp[lane] : kLowest);
}

// What one row adds to the loss, and its gradient at the target.
struct Token {
  double loss;
  float at_target;
};
template <bool capped>
__device__ Token token_of(float logit, float top, double sum, const Rows& p) {
  const Capped target = cap_of<capped>(logit, p.cap, p.inverse_cap);
  // The cap hides an infinite logit.
  const double loss = isfinite(logit)
                          ? static_cast<double>(top) - static_cast<double>(target.z) + log(sum)
                          : static_cast<double>(NAN);
  // exp(-loss) - 1 without cancellation where the target is nearly certain.
  const double slope = p.grad_scale * static_cast<double>(target.slope);
  return {loss, static_cast<float>(slope * expm1(-loss))};
}

__device__ void store_four(float* row, int64_t j, int64_t n, const float* d) {
  if (j + 4 <= n) {
    *reinterpret_cast<float4*>(row + j) = {d[0], d[1], d[2], d[3]};
  } else {
    for (int e = 0; e < 4 && j + e < n; ++e) row[j + e] = d[e];
  }
}
__device__ void store_four(device_bf16* row, int64_t j, int64_t n, const float* d) {
  if (j + 4 <= n) {
    __nv_bfloat162 pairs[2] = {__floats2bfloat162_rn(d[0], d[1]),
                               __floats2bfloat162_rn(d[2], d[3])};
    *reinterpret_cast<uint2*>(row + j) = *reinterpret_cast<const uint2*>(pairs);
  } else {
    for (int e = 0; e < 4 && j + e < n; ++e) row[j + e] = from_float<device_bf16>(d[e]);
  }
}

// dl over the logits of a tile. As bf16 it is half as long: tile k goes to where tile k / 2 was, so
// that it hits nothing unread once every thread has read tile k.
template <class T, bool capped, bool whole>
__device__ void gradient_tile(float* row, int64_t base, int64_t target, float top, float scale,
                              float at_target, const Rows& p) {
  Tile tile;
  tile.load<whole>(row, base, p.vocabulary);
#pragma unroll
  for (int i = 0; i < kVectors * 4; ++i) {
    const Capped c = cap_of<capped>(tile.values[i], p.cap, p.inverse_cap);
    tile.values[i] = scale * expf(c.z - top) * c.slope;
  }
  if (base <= target && target < base + kTile) {
#pragma unroll
    for (int i = 0; i < kVectors * 4; ++i) {
      if (Tile::at(base, i / 4) + i % 4 == target) tile.values[i] = at_target;
    }
  }
  if constexpr (sizeof(T) < sizeof(float)) __syncthreads();
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    store_four(reinterpret_cast<T*>(row), Tile::at(base, v), p.vocabulary, tile.values + 4 * v);
  }
}

// One row of logits: its loss, and with `gradient` its logits become dl in the dtype T. A block per
// row. A row without target gets no loss and zeros; one whose target is no token at all gets a NaN
// loss, for the host, which cannot look, to find.
template <class T, bool capped, bool gradient>
__global__ void __launch_bounds__(kThreads, 2) loss_rows(const Rows p) {
  const int64_t n = p.vocabulary, target = p.targets[blockIdx.x];
  float* row = p.logits + blockIdx.x * p.stride;
  if (target < 0 || target >= n) {
    if (threadIdx.x == 0) {
      p.losses[blockIdx.x] = target == kIgnored ? 0.0 : static_cast<double>(NAN);
    }
    if (!gradient) return;
    // Whole 16 bytes: rows have a multiple of them.
    const int64_t pieces = (n * static_cast<int64_t>(sizeof(T)) + 15) / 16;
    for (int64_t j = threadIdx.x; j < pieces; j += kThreads) reinterpret_cast<uint4*>(row)[j] = {};
    return;
  }
  const float logit = row[target];
  Softmax own;
  int64_t base = 0;
  for (; base + kTile <= n; base += kTile) own.add<capped, true>(row, base, p);
  if (base < n) own.add<capped, false>(row, base, p);
  const float top = block_max(own.top);
  // A thread without logits has sum 0 and top -inf.
  const double sum = block_sum(static_cast<double>(own.sum * expf(own.top - top)));
  __shared__ float at_target;
  if (threadIdx.x == 0) {
    const Token token = token_of<capped>(logit, top, sum, p);
    p.losses[blockIdx.x] = token.loss;
    at_target = token.at_target;
  }
  if (!gradient) return;
  __syncthreads();
  const auto scale = static_cast<float>(p.grad_scale / sum);
  for (base = 0; base + kTile <= n; base += kTile) {
    gradient_tile<T, capped, true>(row, base, target, top, scale, at_target, p);
  }
  if (base < n) gradient_tile<T, capped, false>(row, base, target, top, scale, at_target, p);
}

// loss += the sum of n values; one block, fixed order.
__global__ void add_losses(const double* losses, int64_t n, double* loss) {
  double sum = 0.0;
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) sum += losses[i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) *loss += sum;
}

// Rows of x, zeros for those without target: whatever stands there must not reach dw. A block per
// row; `width` pieces of type P make a row.
template <class P>
__global__ void copy_counted(const P* x, int64_t stride, const int64_t* targets, P* rows,
                             int64_t width) {
  const bool counted = targets[blockIdx.x] != kIgnored;
  for (int64_t j = threadIdx.x; j < width; j += blockDim.x) {
    rows[blockIdx.x * width + j] = counted ? x[blockIdx.x * stride + j] : P{};
  }
}

template <class P>
void launch_copy(Context& ctx, const ConstTensor& x, const int64_t* targets, void* rows) {
  const int64_t size = sizeof(P), element = size_of(x.dtype());
  copy_counted<P><<<static_cast<unsigned>(x.dim(0)), 256, 0, ctx.stream>>>(
      data<P>(x), x.stride(0) * element / size, targets, static_cast<P*>(rows),
      x.dim(1) * element / size);
  check_launch("linear_cross_entropy");
}

void copy_rows(Context& ctx, const ConstTensor& x, const int64_t* targets, void* rows) {
  const int64_t element = size_of(x.dtype());
  const bool wide = aligned16(x.data()) && aligned16(rows) && x.stride(0) * element % 16 == 0 &&
                    x.dim(1) * element % 16 == 0;
  if (wide) return launch_copy<uint4>(ctx, x, targets, rows);
  by_dtype("linear_cross_entropy", x.dtype(),
           [&]<class T>(T) { launch_copy<T>(ctx, x, targets, rows); });
}

template <class T, bool capped>
void launch_rows(Context& ctx, const Rows& p, int64_t count, bool gradient) {
  const auto blocks = static_cast<unsigned>(count);
  if (gradient) {
    loss_rows<T, capped, true><<<blocks, kThreads, 0, ctx.stream>>>(p);
  } else {
    loss_rows<float, capped, false><<<blocks, kThreads, 0, ctx.stream>>>(p);
  }
  check_launch("linear_cross_entropy");
}

void run_rows(Context& ctx, const LinearCrossEntropyArgs& a, const Rows& p, int64_t count) {
  by_dtype("linear_cross_entropy", a.x.dtype(), [&]<class T>(T) {
    if (a.softcap == 0.0) {
      launch_rows<T, false>(ctx, p, count, a.dx.defined());
    } else {
      launch_rows<T, true>(ctx, p, count, a.dx.defined());
    }
  });
}

// z = cap tanh(l / cap) for rows of `width` pieces of kWide elements. A grid of columns and rows.
template <class T, int kWide>
__global__ void softcap_rows(T* logits, int64_t rows, int64_t stride, int64_t width, float cap,
                             float inverse_cap) {
  struct alignas(sizeof(T) * kWide) Piece {
    T values[kWide];
  };
  const int64_t j = blockIdx.x * int64_t{blockDim.x} + threadIdx.x;
  if (j >= width) return;
  for (int64_t i = blockIdx.y; i < rows; i += gridDim.y) {
    Piece* at = reinterpret_cast<Piece*>(logits + i * stride) + j;
    Piece piece = *at;
#pragma unroll
    for (T& value : piece.values) {
      value = from_float<T>(cap_of<true>(to_float(value), cap, inverse_cap).z);
    }
    *at = piece;
  }
}

template <class T, int kWide>
void launch_softcap(Context& ctx, const SoftcapArgs& a, int64_t rows, int64_t columns) {
  const int64_t width = columns / kWide;
  const dim3 grid(static_cast<unsigned>(ceil_div(width, 256)),
                  static_cast<unsigned>(std::min<int64_t>(rows, 65535)));
  softcap_rows<T, kWide><<<grid, 256, 0, ctx.stream>>>(data<T>(a.logits), rows, a.logits.stride(0),
                                                       width, static_cast<float>(a.softcap),
                                                       static_cast<float>(1.0 / a.softcap));
  check_launch("softcap");
}

}  // namespace

void softcap(Context& ctx, const SoftcapArgs& a) {
  if (a.logits.numel() == 0 || a.softcap == 0.0) return;
  const bool dense = a.logits.contiguous();
  const int64_t rows = dense ? 1 : a.logits.dim(0);
  const int64_t columns = dense ? a.logits.numel() : a.logits.dim(1);
  by_dtype("softcap", a.logits.dtype(), [&]<class T>(T) {
    constexpr int kWide = 16 / sizeof(T);
    const bool wide = aligned16(a.logits.data()) && columns % kWide == 0 &&
                      (rows == 1 || a.logits.stride(0) % kWide == 0);
    if (wide) {
      launch_softcap<T, kWide>(ctx, a, rows, columns);
    } else {
      launch_softcap<T, 1>(ctx, a, rows, columns);
    }
  });
}

void linear_cross_entropy(Context& ctx, const LinearCrossEntropyArgs& a) {
  const int64_t tokens = a.x.dim(0);
  if (tokens == 0) return;
  const LossPlan plan = LossPlan::of(a);
  const ArenaScope scope(ctx.scratch);
  double* losses = ctx.scratch.alloc(Dtype::f64, {tokens}).as<double>();
  void* logits = ctx.scratch.alloc(Dtype::f32, {plan.chunk, plan.stride}).data();
  void* rows =
      plan.copies_rows ? ctx.scratch.alloc(a.x.dtype(), {plan.chunk, a.x.dim(1)}).data() : nullptr;
  const auto* targets = data<int64_t>(a.targets);
  for (int64_t first = 0; first < tokens; first += plan.chunk) {
    const int64_t count = std::min(plan.chunk, tokens - first);
    const auto products = ChunkProducts::of(a, plan, first, count, logits, rows);
    if (rows != nullptr) copy_rows(ctx, a.x.slice(0, first, count), targets + first, rows);
    cuda::matmul(ctx, products.logits);
    run_rows(ctx, a,
             {.logits = static_cast<float*>(logits),
              .stride = plan.stride,
              .vocabulary = a.w.dim(0),
              .targets = targets + first,
              .losses = losses + first,
              .cap = static_cast<float>(a.softcap),
              .inverse_cap = a.softcap == 0.0 ? 0.0F : static_cast<float>(1.0 / a.softcap),
              .grad_scale = a.grad_scale},
             count);
    if (a.dx.defined()) cuda::matmul(ctx, products.dx);
    if (a.dw.defined()) cuda::matmul(ctx, products.dw);
  }
  add_losses<<<1, 1024, 0, ctx.stream>>>(losses, tokens, data<double>(a.loss));
  check_launch("linear_cross_entropy");
}

}  // namespace lapidary::ops::cuda
