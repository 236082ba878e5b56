#pragma once

#include <climits>

#include "lapidary/ops/cuda/attention.h"
#include "lapidary/ops/cuda/attention_mma_ptx.cuh"
#include "lapidary/ops/cuda/mask.cuh"

// What the tensor-core kernels of attention share: tiles of bf16 in shared memory and their
// products, and what a tile sees.
namespace lapidary::ops::cuda::mma {

constexpr int kThreads = 256;
constexpr float kLog2E = 1.44269504F, kLn2 = 0.69314718F;

// [B, n, heads, D] with a dense last dimension.
template <class T>
struct Heads {
  T* data;
  int64_t row, token, head;
  __device__ T* at(int b, int h) const { return data + b * row + h * head; }
};
template <class T, class AnyTensor>
Heads<T> heads_of(const AnyTensor& t) {
  return {static_cast<T*>(t.data()), t.stride(0), t.stride(1), t.stride(2)};
}

// Whether 16-byte accesses reach every row of D elements.
inline bool in_sixteens(const ConstTensor& t) {
  return t.stride(3) == 1 && t.stride(0) % 8 == 0 && t.stride(1) % 8 == 0 && t.stride(2) % 8 == 0 &&
         aligned16(t.data());
}
// Whether the kernels take these shapes: their numbers of blocks and steps are ints.
inline bool shapes_fit(const ConstTensor& q, const ConstTensor& k) {
  constexpr int64_t kMost = int64_t{1} << 30;
  const int64_t size = q.dim(3);
  return q.dtype() == Dtype::bf16 && (size == 64 || size == 128 || size == 256 || size == 512) &&
         k.dim(1) < kMost && q.dim(1) < kMost / 32 &&
         q.dim(0) * q.dim(2) * ceil_div(q.dim(1), 32) < kMost &&
         k.dim(0) * k.dim(2) * ceil_div(k.dim(1), 32) < kMost;
}

// f.operator()<D>() for the head size D.
template <class F>
void by_size(int64_t size, F&& f) {
  switch (size) {
    case 64: return f.template operator()<64>();
    case 128: return f.template operator()<128>();
    case 256: return f.template operator()<256>();
    default: return f.template operator()<512>();
  }
}

template <class Params>
void launch(const char* op, void (*kernel)(Params), int64_t blocks, int bytes, cudaStream_t stream,
            const Params& params) {
  if (blocks == 0) return;
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = static_cast<size_t>(bytes);
  config.stream = stream;
  cudaLaunchKernelEx(&config, kernel, params);
  check_launch(op);
}

// A tile in shared memory: rows of kColumns bf16 (a power of two, 32 at least), their 16-byte
// chunks permuted so that eight rows at one column lie in different banks.
template <int kColumns>
__host__ __device__ constexpr uint32_t chunk_offset(int row, int chunk) {
  constexpr int kChunks = kColumns / 8;
  const int place = kChunks >= 8 ? chunk ^ (row & 7) : chunk ^ ((row >> 1) & 3);
  return static_cast<uint32_t>(row * kChunks + place) * 16;
}
// The part of a fragment's address that depends on the lane. Other rows (in multiples of 8) are
// added to it; other columns (in multiples of 16) are xor-ed to it, 2 bytes each.
//   by_rows: [16 rows, 16 columns] as left factor; transposed, as right factor of 16 columns
//   by_columns: [16 rows, 16 columns], transposed when read, as right factor of 16 columns
template <int kColumns>
__host__ __device__ constexpr uint32_t by_rows(int lane) {
  return chunk_offset<kColumns>(lane % 16, lane / 16);
}
template <int kColumns>
__host__ __device__ constexpr uint32_t by_columns(int lane) {
  return chunk_offset<kColumns>(lane % 8 + lane / 16 * 8, lane / 8 % 2);
}

// Rows [first, first + kRows) of a matrix to shared memory; rows from `limit` on are zero, and
// their addresses are formed but not read.
template <int kColumns, int kRows>
__device__ void load_tile(uint32_t tile, const device_bf16* rows, int64_t stride, int first,
                          int limit) {
  constexpr int kChunks = kColumns / 8, kStep = kThreads / kChunks;
  static_assert(kRows % kStep == 0);
  const int chunk = static_cast<int>(threadIdx.x) % kChunks;
  const int top = static_cast<int>(threadIdx.x) / kChunks;
  const device_bf16* from = rows + (first + top) * stride + chunk * 8;
#pragma unroll
  for (int r = 0; r < kRows; r += kStep) {
    copy_async16(tile + chunk_offset<kColumns>(top + r, chunk), from, first + top + r < limit);
    from += kStep * stride;
  }
}

// acc [16 kM, 8 kN] += a b^T, of a's first 16 kM and b's first 8 kN rows, all kColumns columns.
template <int kColumns, int kM, int kN>
__device__ void add_rows_by_rows(float (&acc)[kM][kN][4], uint32_t a, uint32_t b, int lane) {
  const uint32_t a_lane = by_rows<kColumns>(lane), b_lane = by_columns<kColumns>(lane);
#pragma unroll 8
  for (uint32_t column = 0; column < kColumns; column += 16) {
    uint32_t left[kM][4];
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      load_matrices(left[m], a + m * 16 * kColumns * 2 + (a_lane ^ (column * 2)));
    }
#pragma unroll
    for (int n = 0; n < kN; n += 2) {
      uint32_t right[4];
      load_matrices(right, b + n * 8 * kColumns * 2 + (b_lane ^ (column * 2)));
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        multiply_add(acc[m][n], left[m], right[0], right[1]);
        multiply_add(acc[m][n + 1], left[m], right[2], right[3]);
      }
    }
  }
}

// acc [16 kM, 8 kN] += a b for 16 rows of b, columns from `column` (a multiple of 16) on.
template <int kColumns, int kM, int kN>
__device__ void add_product(float (&acc)[kM][kN][4], const uint32_t (&a)[kM][4], uint32_t b,
                            uint32_t column, int lane) {
  const uint32_t b_lane = by_rows<kColumns>(lane);
#pragma unroll
  for (uint32_t n = 0; n < kN; n += 2) {
    uint32_t right[4];
    load_matrices<true>(right, b + (b_lane ^ ((column + n * 8) * 2)));
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      multiply_add(acc[m][n], a[m], right[0], right[1]);
      multiply_add(acc[m][n + 1], a[m], right[2], right[3]);
    }
  }
}

// Columns [16 n, 16 n + 16) of a result, rounded, as a left factor.
template <int kN>
__device__ void as_left(uint32_t (&a)[4], const float (&c)[kN][4], int n) {
  a[0] = pack(c[2 * n][0], c[2 * n][1]);
  a[1] = pack(c[2 * n][2], c[2 * n][3]);
  a[2] = pack(c[2 * n + 1][0], c[2 * n + 1][1]);
  a[3] = pack(c[2 * n + 1][2], c[2 * n + 1][3]);
}

// A result [16, 8 kN], rounded, to a tile: from row `row`, chunk `chunk` on.
template <int kColumns, int kN>
__device__ void put_result(unsigned char* tile, int row, int chunk, const float (&c)[kN][4],
                           int lane) {
#pragma unroll
  for (int n = 0; n < kN; ++n) {
    unsigned char* at = tile + lane % 4 * 4;
    *reinterpret_cast<uint32_t*>(at + chunk_offset<kColumns>(row + lane / 4, chunk + n)) =
        pack(c[n][0], c[n][1]);
    *reinterpret_cast<uint32_t*>(at + chunk_offset<kColumns>(row + lane / 4 + 8, chunk + n)) =
        pack(c[n][2], c[n][3]);
  }
}

// One warp writes 16 rows of a tile, kWidth columns from `column` on, to the rows [first, limit) of
// a matrix.
template <int kColumns, int kWidth>
__device__ void store_rows(const unsigned char* tile, int row, int column, device_bf16* to,
                           int64_t stride, int first, int limit, int lane) {
  constexpr int kChunks = kWidth / 8;
#pragma unroll
  for (int i = lane; i < 16 * kChunks; i += 32) {
    const int r = i / kChunks, chunk = i % kChunks;
    if (first + r >= limit) continue;
    *reinterpret_cast<uint4*>(to + (first + r) * stride + column + chunk * 8) =
        *reinterpret_cast<const uint4*>(tile + chunk_offset<kColumns>(row + r, column / 8 + chunk));
  }
}

// What a tile of queries sees of the keys, or one of keys is seen by, of row b. The others that
// matter lie in [first, last); the range may hold blind ones.
template <bool kOfQueries>
struct Outlook {
  int first = 0, last = 0;
  int doc = 0;        // the document of every own position; 0: they differ, or some are padding
  bool valid = true;  // no own position is padding by key_valid

  // Own positions [begin, end), at most one per thread; `others`: how many there are on the other
  // side. The whole block calls it. room: 5 ints of shared memory.
  __device__ static Outlook of(const DeviceMask& mask, int b, int begin, int end, int others,
                               int* room) {
    const auto& own_docs = kOfQueries ? mask.query_docs : mask.key_docs;
    const auto& other_docs = kOfQueries ? mask.key_docs : mask.query_docs;
    const int thread = static_cast<int>(threadIdx.x), own = begin + thread;
    const bool docs = own_docs.data != nullptr && mask.dense == nullptr;
    if (thread == 0) room[0] = room[2] = INT_MAX, room[1] = room[3] = INT_MIN, room[4] = 1;
    __syncthreads();
    if (own < end) {
      const DeviceMask::Range range =
          kOfQueries ? mask.key_range(b, own, own + 1) : mask.query_range(b, own, own + 1, others);
      if (range.first < range.last) {
        atomicMin(&room[0], range.first);
        atomicMax(&room[1], range.last);
      }
      if (docs) {
        atomicMin(&room[2], own_docs.at(b, own));
        atomicMax(&room[3], own_docs.at(b, own));
      }
      if (!kOfQueries && mask.key_valid.data != nullptr && mask.key_valid.at(b, own) == 0) {
        atomicAnd(&room[4], 0);
      }
    }
    __syncthreads();
    Outlook out;
    out.first = room[0], out.last = room[1], out.valid = room[4] != 0;
    const int least = room[2], most = room[3];
    if (!docs) return out.first < out.last ? out : Outlook{};
    if (least == most && least > 0) out.doc = least;
    // Others see each other's documents only: the range shrinks to those that may be met.
    __syncthreads();
    if (thread == 0) room[0] = INT_MAX, room[1] = INT_MIN;
    __syncthreads();
    int first = INT_MAX, last = INT_MIN;
    for (int i = out.first + thread; i < out.last; i += kThreads) {
      const int doc = other_docs.at(b, i);
      if (doc <= 0 || doc < least || doc > most) continue;
      first = min(first, i);
      last = i + 1;
    }
    if (first < last) {
      atomicMin(&room[0], first);
      atomicMax(&room[1], last);
    }
    __syncthreads();
    out.first = room[0], out.last = room[1];
    if (out.first >= out.last) out.first = out.last = 0;
    return out;
  }

  // True when every pair of queries [s0, s1) and keys [t0, t1) is there and visible. The whole warp
  // calls it.
  __device__ bool all_visible(const DeviceMask& mask, int b, int s0, int s1, int t0, int t1,
                              int queries, int lane) const {
    // A causal pair within the window is visible by every image rule.
    if (mask.dense != nullptr || s1 > queries || t1 > mask.keys || s0 + mask.offset < t1 - 1 ||
        (mask.sliding && s1 - 1 + mask.offset - t0 >= mask.window)) {
      return false;
    }
    bool all = valid;
    if (kOfQueries && mask.key_valid.data != nullptr) {
      for (int t = t0 + lane; t < t1; t += 32) all = all && mask.key_valid.at(b, t) != 0;
    }
    if (mask.query_docs.data != nullptr) {
      const auto& docs = kOfQueries ? mask.key_docs : mask.query_docs;
      all = all && doc > 0;
      const int end = kOfQueries ? t1 : s1;
      for (int i = (kOfQueries ? t0 : s0) + lane; i < end; i += 32) {
        all = all && docs.at(b, i) == doc;
      }
    }
    return __all_sync(0xffffffffU, all);
  }
};

// Bit e: pair(e), a query and a key, is not visible or not there. At most 32 pairs.
template <int kPairs, class Pair>
__device__ uint32_t hidden_pairs(const DeviceMask& mask, int b, int queries, const Pair& pair) {
  uint32_t hidden = 0;
  if (mask.by_index()) {
    const auto window = static_cast<unsigned>(mask.sliding ? mask.window : INT_MAX);
#pragma unroll
    for (int e = 0; e < kPairs; ++e) {
      const int2 at = pair(e);
      const auto distance = static_cast<unsigned>(at.x + mask.offset - at.y);
      if (at.x >= queries || at.y >= mask.keys || distance >= window) hidden |= 1U << e;
    }
  } else {
#pragma unroll 1
    for (int e = 0; e < kPairs; ++e) {
      const int2 at = pair(e);
      if (at.x >= queries || at.y >= mask.keys || !mask.visible(b, at.x, at.y)) hidden |= 1U << e;
    }
  }
  return hidden;
}
// The same of the 16 x 8 kN result whose first elements in this lane belong to `query` and `key`.
template <int kN>
__device__ uint32_t hidden_in(const DeviceMask& mask, int b, int queries, int query, int key) {
  return hidden_pairs<4 * kN>(mask, b, queries, [=](int e) {
    return make_int2(query + e / 2 % 2 * 8, key + e / 4 * 8 + e % 2);
  });
}

}  // namespace lapidary::ops::cuda::mma
