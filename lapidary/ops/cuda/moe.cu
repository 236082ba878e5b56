#include <type_traits>

#include "lapidary/ops/cuda/cuda.h"
#include "lapidary/ops/cuda/device.cuh"

namespace lapidary::ops::cuda {
namespace {

constexpr int kGatherThreads = 256;  // a warp per row
constexpr int kCombineThreads = 128;

// Unit: what one lane copies at a time; strides and n count units.
template <class Unit>
__global__ void __launch_bounds__(kGatherThreads)
    gather_kernel(const Unit* __restrict__ x, int64_t x_stride,
                  const int32_t* __restrict__ row_token, const int32_t* __restrict__ used,
                  Unit* __restrict__ out, int64_t out_stride, int64_t rows, int64_t n) {
  const int64_t r = static_cast<int64_t>(blockIdx.x) * (kGatherThreads / 32) + threadIdx.x / 32;
  if (r >= rows || r >= *used) return;
  constexpr int kBatch = 6;  // copies that are on their way at a time
  const int64_t token = row_token[r];
  const Unit* from = x + token * x_stride;  // not read where token is -1
  Unit* to = out + r * out_stride;
  for (int64_t first = threadIdx.x % 32; first < n; first += 32 * kBatch) {
    Unit unit[kBatch] = {};
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      if (token >= 0 && first + j * 32 < n) unit[j] = from[first + j * 32];
    }
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      if (first + j * 32 < n) to[first + j * 32] = unit[j];
    }
  }
}

template <class Unit>
void gather(const MoeGatherArgs& a, cudaStream_t stream) {
  const int64_t element = size_of(a.x.dtype()), unit = sizeof(Unit), rows = a.out.dim(0);
  const auto blocks = static_cast<unsigned>(ceil_div(rows, kGatherThreads / 32));
  gather_kernel<<<blocks, kGatherThreads, 0, stream>>>(
      data<Unit>(a.x), a.x.stride(0) * element / unit, data<int32_t>(a.row_token),
      data<int32_t>(a.offsets) + a.offsets.dim(0) - 1, data<Unit>(a.out),
      a.out.stride(0) * element / unit, rows, a.out.dim(1) * element / unit);
  check_launch("moe_gather");
}

// Rows that 16-byte accesses cover exactly.
bool in_vectors(const ConstTensor& t) {
  const int64_t element = size_of(t.dtype());
  return aligned16(t.data()) && t.dim(1) * element % 16 == 0 && t.stride(0) * element % 16 == 0;
}

// n consecutive elements, one access of type Raw.
template <class T, int n>
struct Pack {
  using Raw = std::conditional_t<n == 1, T, uint4>;
  static_assert(n * sizeof(T) == sizeof(Raw));
  static __device__ void add(float* sum, Raw raw) {
    if constexpr (n == 1) {
      sum[0] += to_float(raw);
    } else {
      const unsigned words[] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
      for (int i = 0; i < n; ++i) {
        if constexpr (sizeof(T) == 4) {
          sum[i] += __uint_as_float(words[i]);
        } else {  // the upper half of a float
          sum[i] += __uint_as_float(i % 2 == 0 ? words[i / 2] << 16 : words[i / 2] & 0xffff0000U);
        }
      }
    }
  }
  static __device__ Raw rounded(const float* sum) {
    if constexpr (n == 1) {
      return from_float<T>(sum[0]);
    } else {
      unsigned words[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if constexpr (sizeof(T) == 4) {
          words[i] = __float_as_uint(sum[i]);
        } else {
          words[i] = bits(sum[2 * i]) | bits(sum[2 * i + 1]) << 16;
        }
      }
      return make_uint4(words[0], words[1], words[2], words[3]);
    }
  }

 private:
  static __device__ unsigned bits(float x) { return __bfloat16_as_ushort(__float2bfloat16_rn(x)); }
};

// A block per token and column tile, a pack of columns per thread.
template <class T, int n>
__global__ void __launch_bounds__(kCombineThreads)
    combine_kernel(const T* y, int64_t y_stride, const int32_t* pair_row, int64_t pair_stride,
                   int top_k, T* out, int64_t out_stride, int64_t columns, bool accumulate) {
  using Raw = typename Pack<T, n>::Raw;
  constexpr int kBatch = 8;  // rows that are on their way at a time
  const int64_t t = blockIdx.x;
  const int64_t first = (static_cast<int64_t>(blockIdx.y) * kCombineThreads + threadIdx.x) * n;
  if (first >= columns) return;
  pair_row += t * pair_stride;
  float sum[n] = {};
  for (int k = 0; k < top_k; k += kBatch) {
    int64_t row[kBatch];
    Raw raw[kBatch];
#pragma unroll
    for (int j = 0; j < kBatch; ++j) row[j] = k + j < top_k ? pair_row[k + j] : -1;
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      if (row[j] >= 0) raw[j] = *reinterpret_cast<const Raw*>(y + row[j] * y_stride + first);
    }
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      if (row[j] >= 0) Pack<T, n>::add(sum, raw[j]);
    }
  }
  auto* to = reinterpret_cast<Raw*>(out + t * out_stride + first);
  if (accumulate) Pack<T, n>::add(sum, *to);
  *to = Pack<T, n>::rounded(sum);
}

template <class T, int n>
void combine(const MoeCombineArgs& a, cudaStream_t stream) {
  const int64_t columns = a.out.dim(1);
  const dim3 grid(static_cast<unsigned>(a.out.dim(0)),
                  static_cast<unsigned>(ceil_div(columns, int64_t{kCombineThreads} * n)));
  combine_kernel<T, n><<<grid, kCombineThreads, 0, stream>>>(
      data<T>(a.y), a.y.stride(0), data<int32_t>(a.pair_row), a.pair_row.stride(0),
      static_cast<int>(a.pair_row.dim(1)), data<T>(a.out), a.out.stride(0), columns, a.accumulate);
  check_launch("moe_combine");
}

}  // namespace

void moe_gather(Context& ctx, const MoeGatherArgs& a) {
  if (a.out.numel() == 0) return;
  by_dtype("moe_gather", a.x.dtype(), [&]<class T>(T) {
    if (in_vectors(a.x) && in_vectors(a.out)) return gather<uint4>(a, ctx.stream);
    gather<T>(a, ctx.stream);
  });
}

void moe_combine(Context& ctx, const MoeCombineArgs& a) {
  if (a.out.numel() == 0) return;
  by_dtype("moe_combine", a.y.dtype(), [&]<class T>(T) {
    if (in_vectors(a.y) && in_vectors(a.out)) {
      return combine<T, 16 / static_cast<int>(sizeof(T))>(a, ctx.stream);
    }
    combine<T, 1>(a, ctx.stream);
  });
}

}  // namespace lapidary::ops::cuda
