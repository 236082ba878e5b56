#pragma once

#include <cfloat>
#include <type_traits>

#include "lapidary/ops/cuda/attention.h"
#include "lapidary/ops/cuda/device.cuh"
#include "lapidary/ops/cuda/mask.cuh"

// What the plain attention kernels share. A block holds a tile of kTileRows rows of one head in
// shared memory ("own" rows: queries or, for dk and dv, keys) and streams tiles of the other side
// past it. Warp w owns the rows 4 w .. 4 w + 3 from their products to their sums, so that warps
// meet only when a tile is replaced. Within a warp
//   scores:  lane l holds own row l % 4 against the streamed rows l / 4 + 8 j; the four lanes of a
//            row share the sum over the head's elements, 4 of every 16 each
//   sums:    lane l holds the elements 4 (l + 32 c) .. + 3 of all four own rows, c < C
// Tiles are f32, zero beyond the tensor's rows and elements.
namespace lapidary::ops::cuda::plain {

constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;
constexpr int kTileRows = 4 * kWarps;
constexpr int kWarpWeights = 128;  // floats: 16 or 32 streamed rows of one or two kinds
constexpr unsigned kAllLanes = 0xffffffffU;

struct Sizes {
  int queries, keys, heads, groups;
  int size;    // of a head
  int padded;  // size rounded up to 16
  int pitch;   // floats from row to row of a tile: half a line of banks more than whole ones

  Sizes(const ConstTensor& q, const ConstTensor& k)
      : queries(static_cast<int>(q.dim(1))),
        keys(static_cast<int>(k.dim(1))),
        heads(static_cast<int>(q.dim(2))),
        groups(static_cast<int>(k.dim(2))),
        size(static_cast<int>(q.dim(3))),
        padded((size + 15) / 16 * 16),
        pitch(padded % 32 == 16 ? padded : padded + 16) {}
  // Every kernel: the rows of three tiles and every warp's weights.
  __host__ __device__ int tile() const { return kTileRows * pitch; }
  int shared_bytes() const { return 4 * (3 * tile() + kWarps * kWarpWeights); }
};

struct Lane {
  int warp = static_cast<int>(threadIdx.x) / 32;
  int lane = static_cast<int>(threadIdx.x) % 32;
  int part = lane % 4;   // own row of its scores
  int first = lane / 4;  // streamed row of its first score
};

// [B, N, heads, D] with a dense last dimension.
template <class T>
struct Rows {
  T* data;
  int64_t batch, row, head;
  bool wide;  // four elements may be read or written at once

  template <class AnyTensor>
  explicit Rows(const AnyTensor& t)
      : data(static_cast<T*>(t.data())), batch(t.stride(0)), row(t.stride(1)), head(t.stride(2)) {
    wide = reinterpret_cast<uintptr_t>(data) % (4 * sizeof(T)) == 0 && batch % 4 == 0 &&
           row % 4 == 0 && head % 4 == 0 && t.dim(3) % 4 == 0;
  }
  __device__ T* at(int b, int n, int h) const { return data + b * batch + n * row + h * head; }
};

__device__ inline float4 load4(const float* p) { return *reinterpret_cast<const float4*>(p); }
__device__ inline float4 load4(const device_bf16* p) {
  const uint2 x = *reinterpret_cast<const uint2*>(p);
  return {__uint_as_float(x.x << 16), __uint_as_float(x.x & 0xffff0000U),
          __uint_as_float(x.y << 16), __uint_as_float(x.y & 0xffff0000U)};
}
__device__ inline void store4(float* p, float4 x) { *reinterpret_cast<float4*>(p) = x; }
__device__ inline void store4(device_bf16* p, float4 x) {
  struct alignas(8) Four {
    device_bf16 x, y, z, w;
  };
  *reinterpret_cast<Four*>(p) = {from_float<device_bf16>(x.x), from_float<device_bf16>(x.y),
                                 from_float<device_bf16>(x.z), from_float<device_bf16>(x.w)};
}

// Elements column .. column + 3 of a row of `size`; zero beyond.
template <bool Wide, class T>
__device__ float4 load_row4(const T* row, int column, int size) {
  if constexpr (Wide) {
    return column < size ? load4(row + column) : float4{};
  } else {
    const auto x = [&](int d) { return d < size ? to_float(row[d]) : 0.0F; };
    return {x(column), x(column + 1), x(column + 2), x(column + 3)};
  }
}
template <class T>
__device__ void store_row4(T* row, int column, int size, bool wide, float4 x) {
  if (wide) {
    if (column < size) store4(row + column, x);
    return;
  }
  const float each[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (column + i < size) row[column + i] = from_float<T>(each[i]);
  }
}

// All loads are issued before the first store waits for one.
template <int C, int N, bool Wide, class T>
__device__ void load_tile_as(float* tile, const Sizes& n, const T* rows, int64_t stride,
                             int count) {
  const Lane l;
  float4 x[N / kWarps][C];
#pragma unroll
  for (int i = 0; i < N / kWarps; ++i) {
    const int r = i * kWarps + l.warp;
#pragma unroll
    for (int c = 0; c < C; ++c) {
      x[i][c] =
          r < count ? load_row4<Wide>(rows + r * stride, 4 * (l.lane + 32 * c), n.size) : float4{};
    }
  }
#pragma unroll
  for (int i = 0; i < N / kWarps; ++i) {
#pragma unroll
    for (int c = 0; c < C; ++c) {
      const int column = 4 * (l.lane + 32 * c);
      if (column < n.padded) store4(tile + (i * kWarps + l.warp) * n.pitch + column, x[i][c]);
    }
  }
}
// tile [N, pitch] = the rows from `first` on, of which `count` exist. By the whole block.
template <int C, int N, class T>
__device__ void load_tile(float* tile, const Sizes& n, const Rows<const T>& t, int b, int first,
                          int h, int count) {
  const T* rows = t.at(b, first, h);
  if (t.wide) {
    load_tile_as<C, N, true>(tile, n, rows, t.row, count);
  } else {
    load_tile_as<C, N, false>(tile, n, rows, t.row, count);
  }
}

// Bit j: own row l.part of the warp and streamed row l.first + 8 j exist and see each other. Own
// rows are [own, own_end), streamed ones [other, other_end).
template <int J, bool OwnKeys>
__device__ unsigned visible_bits(const DeviceMask& mask, int b, int own, int own_end, int other,
                                 int other_end) {
  const Lane l;
  const bool all = OwnKeys ? mask.all_visible(other, other_end, own, own_end)
                           : mask.all_visible(own, own_end, other, other_end);
  const int row = own + 4 * l.warp + l.part;
  if (row >= own_end) return 0;
  unsigned bits = 0;
#pragma unroll
  for (int j = 0; j < J; ++j) {
    const int column = other + l.first + 8 * j;
    if (column < other_end &&
        (all || (OwnKeys ? mask.visible(b, column, row) : mask.visible(b, row, column)))) {
      bits |= 1U << j;
    }
  }
  return bits;
}

__device__ inline float dot4(float4 a, float4 b, float sum) {
  return fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sum))));
}
__device__ inline void add4(float4& sum, float w, float4 x) {
  sum.x = fmaf(w, x.x, sum.x);
  sum.y = fmaf(w, x.y, sum.y);
  sum.z = fmaf(w, x.z, sum.z);
  sum.w = fmaf(w, x.w, sum.w);
}

// out[j] = own row l.part of the warp . streamed row l.first + 8 j
template <int J>
__device__ void dot_rows(const float* own, const float* others, const Sizes& n, float (&out)[J]) {
  const Lane l;
  const float* a = own + 4 * l.warp * n.pitch + 4 * l.part;
  const float* b = others + l.first * n.pitch + 4 * l.part;
  float sum[4][J] = {};
#pragma unroll 2
  for (int d = 0; d < n.padded; d += 16) {
    float4 x[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) x[i] = load4(a + i * n.pitch + d);
#pragma unroll
    for (int j = 0; j < J; ++j) {
      const float4 y = load4(b + 8 * j * n.pitch + d);
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[i][j] = dot4(x[i], y, sum[i][j]);
    }
  }
  // The four lanes hold a quarter of every sum; each ends up with the whole sums of one row.
  const bool high = (l.part & 2) != 0, odd = (l.part & 1) != 0;
#pragma unroll
  for (int j = 0; j < J; ++j) {
    float even_row = high ? sum[2][j] : sum[0][j], odd_row = high ? sum[3][j] : sum[1][j];
    even_row += __shfl_xor_sync(kAllLanes, high ? sum[0][j] : sum[2][j], 2);
    odd_row += __shfl_xor_sync(kAllLanes, high ? sum[1][j] : sum[3][j], 2);
    out[j] = (odd ? odd_row : even_row) + __shfl_xor_sync(kAllLanes, odd ? even_row : odd_row, 1);
  }
}

// Where a lane's weight of streamed row l.first + 8 j goes; add_rows reads four rows' at once.
__device__ inline int weight_at(int j) { return 32 * j + static_cast<int>(threadIdx.x) % 32; }

// sum[i] += sum over the N streamed rows t of weights[4 t + i] others[t]
template <int C, int N>
__device__ void add_rows(float4 (&sum)[4][C], const float* weights, const float* others,
                         const Sizes& n) {
  const Lane l;
#pragma unroll 4
  for (int t = 0; t < N; ++t) {
    const float4 w = load4(weights + 4 * t);
#pragma unroll
    for (int c = 0; c < C; ++c) {
      const int column = 4 * (l.lane + 32 * c);
      if (column < n.padded) {
        const float4 x = load4(others + t * n.pitch + column);
        add4(sum[0][c], w.x, x);
        add4(sum[1][c], w.y, x);
        add4(sum[2][c], w.z, x);
        add4(sum[3][c], w.w, x);
      }
    }
  }
}

// f(std::integral_constant<int, C>) with room for heads of `size` elements.
template <class F>
void by_columns(const char* op, int64_t size, F&& f) {
  if (size <= 128) return f(std::integral_constant<int, 1>{});
  if (size <= 256) return f(std::integral_constant<int, 2>{});
  if (size <= 512) return f(std::integral_constant<int, 4>{});
  fail(op, "head size " + std::to_string(size) + " is above 512, the largest on a GPU",
       "use device cpu");
}

// One block per tile of `rows` of each of `pairs` (batch row, head); none where there are no rows.
template <class Args>
void launch(const char* op, void (*kernel)(Args), int64_t pairs, int64_t rows, cudaStream_t stream,
            const Args& args) {
  if (pairs == 0 || rows == 0) return;
  const int bytes = args.n.shared_bytes();
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  check_launch(op);
  const dim3 grid(static_cast<unsigned>(pairs), static_cast<unsigned>(ceil_div(rows, kTileRows)));
  kernel<<<grid, kThreads, bytes, stream>>>(args);
  check_launch(op);
}

}  // namespace lapidary::ops::cuda::plain
